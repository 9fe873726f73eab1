# An exception whose class has a name of ten million characters, at load.
# expect: failed Raised
raise type('N' * 10_000_000, (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
