# Stops its own process.
# expect: timed_out Timeout
# needs: walls
import os, signal
def solve(x): os.kill(os.getpid(), signal.SIGSTOP)
