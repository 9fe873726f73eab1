# An exception whose class computes its name: none, at load.
# expect: failed Raised E
class Meta(type):
    __name__ = property(lambda self: None)
class E(Exception, metaclass=Meta): pass
raise E
def solve(x): return sorted(x)
