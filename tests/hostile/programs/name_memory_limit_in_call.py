# An exception called as the scorer calls too much memory, in a call.
# expect: failed Raised MemoryLimit
def solve(x): raise type('MemoryLimit', (Exception,), {})('no answer after 3 s of CPU time')
