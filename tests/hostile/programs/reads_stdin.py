# Waits for input.
# expect: failed
def solve(x): return input()
