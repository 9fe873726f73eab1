# An exception whose class computes its name: raises, at load.
# expect: failed Raised E
class Meta(type):
    __name__ = property(lambda self: 1 / 0)
class E(Exception, metaclass=Meta): pass
raise E
def solve(x): return sorted(x)
