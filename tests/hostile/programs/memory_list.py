# Grows a list without end.
# expect: not-passed
def solve(x):
    a = []
    while True: a.append(bytearray(1 << 24))
