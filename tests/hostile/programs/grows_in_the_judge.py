# A few bytes here, a list of a billion numbers in a test that walks them: no longer range than a list crosses.
# expect: failed BadValue
# test: walks
def solve(x): return range(10**9)
