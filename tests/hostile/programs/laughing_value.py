# Lists of lists of lists: few bytes here, 2^60 elements there.
# expect: failed BadValue
def solve(x):
    a = [1]
    for _ in range(60): a = [a, a]
    return a
