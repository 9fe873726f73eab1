# The same as a value.
# expect: failed WrongAnswer
def solve(x): return "\udfff\x00" * 10000
