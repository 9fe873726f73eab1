# Kills its process group, which must not be the scorer's.
# expect: failed
# needs: walls
import os, signal
def solve(x): os.kill(0, signal.SIGKILL)
