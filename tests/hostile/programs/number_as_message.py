# Returns a number too long to be written, in a test that says what it got.
# expect: failed WrongAnswer
# test: says what it got
def solve(x): return 10 ** 5000
