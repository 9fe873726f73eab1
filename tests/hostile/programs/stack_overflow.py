# Recurses in C until the stack is gone.
# expect: failed Crash
import sys
sys.setrecursionlimit(10**9)
class A:
    def __getattr__(self, n): return getattr(self, n + "a")
def solve(x):
    def f(*a): return f(*[b for b in map(f, a)])
    return sorted([1, 2], key=lambda v: f(v))
