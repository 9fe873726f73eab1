# An exception whose class computes its name: surrogates, at load.
# expect: failed Raised E
class Meta(type):
    __name__ = property(lambda self: '\ud800\udfff')
class E(Exception, metaclass=Meta): pass
raise E
def solve(x): return sorted(x)
