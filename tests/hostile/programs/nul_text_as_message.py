# The same in a test that says what it got.
# expect: failed
# test: says what it got
def solve(x): return "\0" * 60_000_000 + "\u2603"
