# Closes every descriptor it has.
# expect: failed
import os
def solve(x):
    os.closerange(0, 64)
    return sorted(x)
