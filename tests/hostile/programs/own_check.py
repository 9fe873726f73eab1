# Defines check itself.
# expect: failed WrongAnswer
def check(candidate): pass
def solve(x): return None
