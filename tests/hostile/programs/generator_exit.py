# The same with GeneratorExit.
# expect: failed GeneratorExit
def solve(x): raise GeneratorExit
