# A generator that never ends.
# expect: failed WrongAnswer
def solve(x):
    while True: yield 1
