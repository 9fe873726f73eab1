# An exception called as the scorer calls too much memory, at load.
# expect: failed Raised MemoryLimit
raise type('MemoryLimit', (Exception,), {})('no answer after 3 s of CPU time')
def solve(x): return sorted(x)
