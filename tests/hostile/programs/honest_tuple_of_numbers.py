# A subclass of list is a list.
# expect: passed
class Mine(list): pass
def solve(x): return Mine(sorted(x))
