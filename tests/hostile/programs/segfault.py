# Reads address zero.
# expect: failed Crash
import ctypes
def solve(x): return ctypes.string_at(0)
