# Overwrites the interpreter's small integers.
# expect: failed
import ctypes, sys
def solve(x):
    for i in range(1, 4):
        ctypes.memmove(id(i) + 24, id(7) + 24, 4)
    return [7, 7, 7]
