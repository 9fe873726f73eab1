# An exception whose class lies about its name and its ancestors, and raises when asked.
# expect: failed
class Meta(type):
    __name__ = property(lambda self: 1 / 0)
    __mro__ = property(lambda self: 1 / 0)
    def __eq__(self, other): return True
    __hash__ = type.__hash__
class Evil(Exception, metaclass=Meta): pass
def solve(x): raise Evil
