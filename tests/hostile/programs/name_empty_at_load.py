# An exception whose class has no name, at load.
# expect: failed Raised
raise type('', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
