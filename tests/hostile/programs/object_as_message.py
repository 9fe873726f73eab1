# Returns an object whose texts end the process, in a test that says what it got.
# expect: failed WrongAnswer
# test: says what it got
import os
class E:
    def __str__(self): os._exit(0)
    __repr__ = __format__ = __str__
    size = property(__str__)
def solve(x): return E()
