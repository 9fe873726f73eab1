# Opens files without end.
# expect: failed Raised OSError
def solve(x):
    held = []
    while True: held.append(open("/dev/null"))
