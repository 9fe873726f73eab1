# An exception called as Python calls too little memory, and none, at load.
# expect: failed Raised MemoryError
raise type('MemoryError', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
