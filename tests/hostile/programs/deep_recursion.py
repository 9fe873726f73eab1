# Recurses without end.
# expect: failed Raised RecursionError
def solve(x): return solve(x)
