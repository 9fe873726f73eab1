# Grows a list without end.
# expect: failed MemoryLimit
def solve(x):
    a = []
    while True: a.append(bytearray(1 << 24))
