# An exception whose name looks like a word of the scorer's in another alphabet, at load.
# expect: failed Raised
raise type('\u0422imeout', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
