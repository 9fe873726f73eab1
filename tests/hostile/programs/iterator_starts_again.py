# Returns an iterator that gives something else each time it is walked.
# expect: failed WrongAnswer
# test: walks twice
class Again:
    turn = 0
    def __iter__(self):
        self.turn += 1
        self.items = [[3], [1, 2]][self.turn % 2][:]
        return self
    def __next__(self):
        if not self.items:
            self.items = [7, 8, 9]
            raise StopIteration
        return self.items.pop()
def solve(x): return Again()
