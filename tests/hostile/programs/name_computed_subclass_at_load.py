# An exception whose class computes its name: subclass, at load.
# expect: failed Raised E
class Meta(type):
    __name__ = property(lambda self: type('S', (str,), {'__eq__': lambda s, o: True, '__hash__': str.__hash__, '__getitem__': lambda s, i: '', '__len__': lambda s: 0})('Timeout'))
class E(Exception, metaclass=Meta): pass
raise E
def solve(x): return sorted(x)
