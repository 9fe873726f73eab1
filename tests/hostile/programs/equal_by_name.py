# Claims to be another type.
# expect: failed
class list(list):
    __class__ = None
    def __eq__(self, other): return True
def solve(x): return list()
