# An exception called as the scorer calls a crash, at load.
# expect: failed Raised Crash
raise type('Crash', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
