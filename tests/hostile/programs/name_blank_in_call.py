# An exception whose class is called by blanks, in a call.
# expect: failed Raised
def solve(x): raise type('  \n', (Exception,), {})('no answer after 3 s of CPU time')
