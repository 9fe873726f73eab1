# Ends the process with success inside the call.
# expect: failed Crash
import os
def solve(x): os._exit(0)
