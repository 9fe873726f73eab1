# Returns an object with a property that ends the process, in a test that compares with it.
# expect: failed WrongAnswer
# test: compares with a part
import os
class E:
    size = property(lambda self: os._exit(0))
def solve(x): return E()
