# The same with GeneratorExit.
# expect: failed Raised GeneratorExit
def solve(x): raise GeneratorExit
