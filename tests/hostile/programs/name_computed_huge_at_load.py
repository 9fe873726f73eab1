# An exception whose class computes its name: huge, at load.
# expect: failed Raised E
class Meta(type):
    __name__ = property(lambda self: 'N' * 10_000_000)
class E(Exception, metaclass=Meta): pass
raise E
def solve(x): return sorted(x)
