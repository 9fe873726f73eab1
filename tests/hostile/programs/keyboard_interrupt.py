# Pretends that the user stopped the scorer.
# expect: failed Raised KeyboardInterrupt
def solve(x): raise KeyboardInterrupt
