"""What EvalPlus' tests use of numpy, in plain Python."""

from __future__ import annotations

# `ndarray` is an empty tuple of types: isinstance(x, ()) is False, as it is for plain data in the original.
_STAND_IN = """
class np:
    ndarray = float64 = float32 = ()

    @staticmethod
    def allclose(out, exp, rtol, atol):
        if isinstance(exp, (list, tuple)) and isinstance(out, (list, tuple)):
            return len(out) == len(exp) and all(np.allclose(a, b, rtol, atol) for a, b in zip(out, exp))
        if not all(isinstance(x, (int, float, complex)) for x in (out, exp)):
            return False
        return out == exp or abs(out - exp) <= atol + rtol * abs(exp)
"""


def without_numpy(test: str) -> str:
    """The test with numpy's `allclose` and `ndarray` replaced. Other uses of numpy do not occur (a test says so)."""
    return test.replace("import numpy as np\n", _STAND_IN, 1)
