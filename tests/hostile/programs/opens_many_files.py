# Opens files without end.
# expect: failed OSError
def solve(x):
    held = []
    while True: held.append(open("/dev/null"))
