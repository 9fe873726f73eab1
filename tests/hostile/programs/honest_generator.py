# A generator with a local state and a return value.
# expect: passed
# test: walks
def solve(x):
    rest = list(x)
    while rest:
        least = min(rest)
        rest.remove(least)
        yield least
    return "done"
