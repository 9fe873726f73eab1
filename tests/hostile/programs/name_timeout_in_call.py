# An exception called as the scorer calls a timeout, with its words, in a call.
# expect: failed Raised Timeout
def solve(x): raise type('Timeout', (Exception,), {})('no answer after 3 s of CPU time')
