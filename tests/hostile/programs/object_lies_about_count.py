# Returns an object whose methods say what is wanted.
# expect: failed WrongAnswer
# test: asks methods
class L:
    def count(self, x): return 1000
    def __len__(self): return 3
    def __iter__(self): return iter([1, 2, 3])
def solve(x): return L()
