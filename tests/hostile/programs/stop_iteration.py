# Ends a loop of the test early.
# expect: failed Raised StopIteration
def solve(x): raise StopIteration
