# A numpy subclass, or an object that imitates one.
# expect: failed
class generic: pass
class Fake(generic):
    __module__ = "numpy"
    dtype = "O"
    def __eq__(self, other): return True
def solve(x): return Fake()
