# Writes files without end.
# expect: failed
# needs: walls
def solve(x):
    for i in range(100000):
        with open(f"f{i}", "wb") as f: f.write(b"x" * (1 << 20))
    return "ESCAPED wrote 100 GB"
