# Asks for a terabyte.
# expect: failed MemoryLimit
def solve(x): return bytearray(1 << 40)
