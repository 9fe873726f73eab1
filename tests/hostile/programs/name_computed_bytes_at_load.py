# An exception whose class computes its name: bytes, at load.
# expect: failed Raised E
class Meta(type):
    __name__ = property(lambda self: b'')
class E(Exception, metaclass=Meta): pass
raise E
def solve(x): return sorted(x)
