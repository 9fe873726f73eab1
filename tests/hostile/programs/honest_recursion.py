# Recursion nine hundred levels deep.
# expect: passed
def least_first(x, depth=0):
    if depth < 900: return least_first(x, depth + 1)
    return sorted(x)
def solve(x): return least_first(x)
