# A list nested 5,000 deep.
# expect: failed BadValue
def solve(x):
    a = []
    for _ in range(5000): a = [a]
    return a
