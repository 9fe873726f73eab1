# A few bytes here, a list of a billion numbers in a test that walks them.
# expect: failed MemoryLimit
# test: walks
def solve(x): return range(10**9)
