# Looks for the test in its own memory, inherited pages included.
# expect: failed WrongAnswer
def solve(x):
    try:
        import re
        needle = re.compile(b"MARKER-7f3[a]: what")
        with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb") as memory:
            for line in maps:
                if "rw" not in line: continue
                low, high = (int(v, 16) for v in line.split()[0].split("-"))
                try:
                    memory.seek(low)
                    if needle.search(memory.read(high - low)): return "ESCAPED marker found"
                except (OSError, ValueError): pass
    except OSError:
        pass
