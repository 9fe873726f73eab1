# An exception called as Python calls too little memory, and none, in a call.
# expect: failed Raised MemoryError
def solve(x): raise type('MemoryError', (Exception,), {})('no answer after 3 s of CPU time')
