# An exception whose name looks like a word of the scorer's in another alphabet, in a call.
# expect: failed Raised
def solve(x): raise type('\u0422imeout', (Exception,), {})('no answer after 3 s of CPU time')
