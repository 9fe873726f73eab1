# An exception called as the scorer calls a program without its function, at load.
# expect: failed Raised MissingEntryPoint
raise type('MissingEntryPoint', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
