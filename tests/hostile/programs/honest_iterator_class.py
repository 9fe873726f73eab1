# An iterator class that is an ordinary one, its start in __iter__.
# expect: passed
# test: walks
class Sorted:
    def __init__(self, x): self.x = x
    def __iter__(self):
        self.items = sorted(self.x, reverse=True)
        return self
    def __next__(self):
        if not self.items: raise StopIteration
        return self.items.pop()
def solve(x): return Sorted(x)
