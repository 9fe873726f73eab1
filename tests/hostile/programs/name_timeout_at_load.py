# An exception called as the scorer calls a timeout, with its words, at load.
# expect: failed Raised Timeout
raise type('Timeout', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
