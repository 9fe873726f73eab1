"""The stand-in for numpy's allclose in EvalPlus' tests, held against numpy's own."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rune.benchmarks import _evalplus, mbpp_plus
from rune.sandbox import fork
from rune.types import Outcome, Program

INF, NAN = math.inf, math.nan


def stand_in() -> Callable[..., bool]:
    scope: dict[str, object] = {}
    exec(_evalplus.without_numpy("import numpy as np\n"), scope)
    return scope["np"].allclose  # type: ignore[attr-defined, no-any-return]


ALLCLOSE = stand_in()
edges = st.sampled_from(
    [
        INF, -INF, NAN, 0.0, -0.0, 1e-6, 1.7e308, -1.7e308, 5e-324, True, False, 0, 1, 2**53 + 1, 2**62, -(2**63),
        complex(INF, 0), complex(0, NAN), complex(NAN, INF), 1j, complex(1, 1e-7), "1.0", None,
    ]
)  # fmt: skip
numbers = edges | st.floats() | st.floats(-2, 2) | st.integers(-(2**63), 2**63 - 1) | st.booleans()
nested = st.recursive(numbers, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple))


def near(value: object, by: float) -> object:
    """`value` with each real number moved by about the tolerance, as an answer that is nearly right would be."""
    if isinstance(value, (list, tuple)):
        return [near(v, by) for v in value]
    if isinstance(value, (int, float)):
        with contextlib.suppress(OverflowError):
            return value + by * (1e-6 + 1e-7 * abs(value))
    return value


def shape(value: object) -> object:
    """Lengths, level by level: where two differ, numpy would broadcast or refuse."""
    return tuple(shape(v) for v in value) if isinstance(value, (list, tuple)) else None


def theirs(out: object, exp: object) -> bool | None:
    """numpy's answer; None where it has none."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(np.allclose(out, exp, rtol=1e-7, atol=1e-6))  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


@settings(max_examples=1500, deadline=None)
@given(nested, nested | st.sampled_from([-3.0, -1.01, -0.99, 0.0, 0.5, 0.99, 1.01, 3.0]).map(lambda by: ("near", by)))
def test_the_stand_in_for_allclose_says_what_numpy_says(exp: object, other: object) -> None:
    moved = isinstance(other, tuple) and other[:1] == ("near",)
    out = near(exp, other[1]) if moved else other  # type: ignore[index]
    ours = ALLCLOSE(out, exp, rtol=1e-7, atol=1e-6)
    numpy_s = theirs(out, exp)
    if shape(out) != shape(exp):
        assert not ours
    elif numpy_s is not None:
        assert bool(ours) is numpy_s
    elif ours:  # ragged lists, or None and text, which are equal to nothing here
        assert all(theirs(a, b) for a, b in zip(leaves(out), leaves(exp), strict=True))


def leaves(value: object) -> list[object]:
    return [leaf for v in value for leaf in leaves(v)] if isinstance(value, (list, tuple)) else [value]


@pytest.mark.parametrize(
    ("out", "exp", "close"),
    [
        (7.0, INF, False), ([1.0, 2.0], [1.0, INF], False), (-INF, INF, False), (INF, INF, True),
        ([-INF], [-INF], True),
        (INF, 7.0, False), (NAN, INF, False), (1.7e308, INF, False), (-1.7e308, 1.7e308, False), (True, 1.0, True),
        (10**400, INF, False), (INF, 10**400, False), (10**400, 10**400, True), (10**400, 1.0, False),
        ([10**400, 1.0 + 1e-9], [10**400, 1.0], True), ([], [5.0], False), ([5.0], [], False), (5.0, [], False),
        ([1.0, 1.0], 1.0, False), ([[1.0], [2.0, 3.0 + 1e-9]], [[1.0], [2.0, 3.0]], True), ({1.0}, [1.0], False),
    ],
)  # fmt: skip
def test_infinite_huge_and_shapeless_answers_are_close_to_nothing_else(out: object, exp: object, close: bool) -> None:
    assert bool(ALLCLOSE(out, exp, rtol=1e-7, atol=1e-6)) is close


@pytest.mark.parametrize("number", [137, 300, 404])
def test_no_finite_number_passes_where_mbpp_plus_expects_infinity(data_dir: Path, number: int) -> None:
    """The three tasks that expect ±inf somewhere: the reference passes, and it does not with infinity cut short."""
    (problem,) = (
        p for p in mbpp_plus.build(mbpp_plus.Config(path=str(data_dir))).problems() if p.task_id == f"Mbpp/{number}"
    )
    cut = (
        f"{problem.reference}\ndef finite(f):\n    def g(*args):\n        out = f(*args)\n"
        "        return max(-1e300, min(1e300, out)) if abs(out) == float('inf') else out\n    return g\n"
        f"{problem.entry_point} = finite({problem.entry_point})\n"
    )
    with fork.build(fork.Config(workers=1, cpu_seconds=8.0, wall_seconds=30.0)) as box:
        found = {
            e.key: e.outcome
            for e in box.judge(
                Program(key=key, code=code, test=problem.test, entry_point=problem.entry_point)
                for key, code in (("right", problem.reference), ("cut", cut))
            )
        }
    assert found == {"right": Outcome.PASSED, "cut": Outcome.FAILED}
