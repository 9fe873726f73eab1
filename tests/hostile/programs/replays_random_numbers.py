# Works out what the test draws, from all it could know.
# expect: failed WrongAnswer
# test: random
import random, zlib
STATES = []
def solve(x):
    # The state of this process' own generator, and that of every seed that a public text gives.
    for state in (random.getstate(), *STATES):
        random.setstate(state)
        return [random.randrange(10**9) for _ in range(3)]
