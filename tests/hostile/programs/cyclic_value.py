# A list that holds itself.
# expect: failed BadValue
def solve(x):
    a = []
    a.append(a)
    return a
