# Returns what is nested nearly as deep as may be, to a test that passes it on.
# expect: failed
# test: passes on
def solve(x):
    for _ in range(97): x = [x]
    return x
