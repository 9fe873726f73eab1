# An exception called as the scorer calls success, in a call.
# expect: failed Raised passed
def solve(x): raise type('passed', (Exception,), {})('no answer after 3 s of CPU time')
