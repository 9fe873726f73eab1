# A list subclass whose comparison lies.
# expect: failed WrongAnswer
class Liar(list):
    def __eq__(self, other): return True
    def __iter__(self): return iter([])
    def __len__(self): return 3
def solve(x): return Liar([9])
