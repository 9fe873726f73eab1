# Kills all it may.
# expect: failed
# needs: walls
import os, signal
def solve(x): os.kill(-1, signal.SIGKILL)
