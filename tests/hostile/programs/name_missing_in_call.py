# An exception called as the scorer calls a program without its function, in a call.
# expect: failed Raised MissingEntryPoint
def solve(x): raise type('MissingEntryPoint', (Exception,), {})('no answer after 3 s of CPU time')
