# An exception whose class has no name, in a call.
# expect: failed Raised
def solve(x): raise type('', (Exception,), {})('no answer after 3 s of CPU time')
