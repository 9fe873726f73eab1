# Ends a loop of the test early.
# expect: failed StopIteration
def solve(x): raise StopIteration
