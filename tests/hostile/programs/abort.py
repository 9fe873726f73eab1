# Aborts.
# expect: failed Crash
import os
def solve(x): os.abort()
