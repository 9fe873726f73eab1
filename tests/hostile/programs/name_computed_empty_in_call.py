# An exception whose class computes its name: empty, in a call.
# expect: failed Raised E
class Meta(type):
    __name__ = property(lambda self: '')
class E(Exception, metaclass=Meta): pass
def solve(x): raise E
