"""What EvalPlus' tests use of numpy, in plain Python.

`allclose` says what numpy's says of numbers and of nested lists of them (`tests/benchmarks/test_allclose.py` holds it
against numpy), but for three things, in which numpy is an accident: shapes must be equal (numpy would broadcast, and
find `[5.0]` close to `[]`); ragged lists and integers beyond 64 bits, on which numpy raises, are compared.
"""

from __future__ import annotations

# `ndarray` is an empty tuple of types: isinstance(x, ()) is False, as it is for plain data in the original.
# An infinite tolerance would accept every number, so only a finite expected value has one.
_STAND_IN = """
class np:
    ndarray = float64 = float32 = ()

    @staticmethod
    def allclose(out, exp, rtol, atol):
        if isinstance(exp, (list, tuple)) and isinstance(out, (list, tuple)):
            return len(out) == len(exp) and all(np.allclose(a, b, rtol, atol) for a, b in zip(out, exp))
        if not all(isinstance(x, (int, float, complex)) for x in (out, exp)):
            return False
        try:
            return out == exp or abs(exp) < float("inf") and abs(out - exp) <= atol + rtol * abs(exp)
        except OverflowError:
            return False
"""


def without_numpy(test: str) -> str:
    """The test with numpy's `allclose` and `ndarray` replaced. Other uses of numpy do not occur (a test says so)."""
    return test.replace("import numpy as np\n", _STAND_IN, 1)
