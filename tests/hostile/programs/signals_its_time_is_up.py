# Sends itself the signal that the kernel sends when the time is up.
# expect: failed Crash
import os, signal
def solve(x):
    os.kill(os.getpid(), signal.SIGXCPU)
    while True: pass
