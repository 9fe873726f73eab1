# Pretends that the user stopped the scorer.
# expect: failed KeyboardInterrupt
def solve(x): raise KeyboardInterrupt
