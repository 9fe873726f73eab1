# An exception whose class has a name that cannot be seen, at load.
# expect: failed Raised
raise type('\u200b', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
