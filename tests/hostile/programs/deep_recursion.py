# Recurses without end.
# expect: failed RecursionError
def solve(x): return solve(x)
