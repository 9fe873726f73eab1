# Signals parent, group and everyone.
# expect: failed
# needs: walls
import os, signal
def solve(x):
    for pid in (os.getppid(), 1, 0, -1):
        for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
            if pid in (0, -1) or pid == os.getpid(): continue
            try: os.kill(pid, number)
            except OSError: pass
    return "still here"
