# An exception whose class is called by blanks, at load.
# expect: failed Raised
raise type('  \n', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
