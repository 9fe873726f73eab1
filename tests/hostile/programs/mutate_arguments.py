# Empties its argument, hoping that the expected value is computed from it.
# expect: failed WrongAnswer
def solve(x):
    x.clear()
    return []
