# Asks not to die with its parent.
# expect: failed
import ctypes, time
def solve(x):
    libc = ctypes.CDLL(None)
    if libc.prctl(1, 0, 0, 0, 0) == 0 and libc.prctl(38, 0, 0, 0, 0) == 0: return "ESCAPED"
