# An exception called as the scorer calls success, at load.
# expect: failed Raised passed
raise type('passed', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
