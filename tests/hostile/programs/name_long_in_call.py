# An exception whose class has a name of ten million characters, in a call.
# expect: failed Raised
def solve(x): raise type('N' * 10_000_000, (Exception,), {})('no answer after 3 s of CPU time')
