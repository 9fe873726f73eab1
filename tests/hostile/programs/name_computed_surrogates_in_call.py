# An exception whose class computes its name: surrogates, in a call.
# expect: failed Raised E
class Meta(type):
    __name__ = property(lambda self: '\ud800\udfff')
class E(Exception, metaclass=Meta): pass
def solve(x): raise E
