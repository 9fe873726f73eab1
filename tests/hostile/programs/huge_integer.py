# An integer of three million digits: longer than an honest one is.
# expect: failed BadValue
def solve(x): return 1 << 10_000_000
