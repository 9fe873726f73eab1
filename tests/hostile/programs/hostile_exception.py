# An exception whose every method is an attack.
# expect: failed
class Evil(BaseException):
    def __str__(self): raise SystemExit(0)
    __repr__ = __str__
    def __reduce__(self): return (print, ("ESCAPED",))
def solve(x): raise Evil()
