# An exception whose class has a name that cannot be seen, in a call.
# expect: failed Raised
def solve(x): raise type('\u200b', (Exception,), {})('no answer after 3 s of CPU time')
