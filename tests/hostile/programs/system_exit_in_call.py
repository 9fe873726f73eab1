# SystemExit(0) inside the call.
# expect: failed Raised SystemExit
import sys
def solve(x): sys.exit(0)
