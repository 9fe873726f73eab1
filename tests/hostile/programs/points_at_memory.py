# Tells numpy where in the judge's memory its numbers are.
# expect: failed
# test: numpy
class Array:
    __array_interface__ = {"data": (4096, False), "shape": (3,), "typestr": "<i8", "version": 3}
    def __array__(self, *a, **k): return [1, 2, 3]
def solve(x): return Array()
