# An integer of three million digits.
# expect: failed WrongAnswer
def solve(x): return 1 << 10_000_000
