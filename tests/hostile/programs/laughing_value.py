# Lists of lists of lists: few bytes here, 2^60 elements there.
# expect: not-passed
def solve(x):
    a = [1]
    for _ in range(60): a = [a, a]
    return a
