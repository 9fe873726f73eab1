# Ends its process in a test that catches everything.
# expect: failed Crash
# test: catches
import os
def solve(x): os._exit(0)
