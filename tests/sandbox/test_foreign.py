"""Numbers, truth values and dates of lent packages leave the box as Python's own; what only pretends gains nothing."""

from __future__ import annotations

import datetime
import math
import numbers
from collections.abc import Iterator
from fractions import Fraction

import mpmath
import numpy as np
import pandas as pd
import pytest
import sympy

from rune.benchmarks import humaneval
from rune.sandbox import fork
from rune.sandbox.judging.pool import Pool
from rune.sandbox.protocol import codec, decode
from rune.sandbox.protocol.codec import Handle
from rune.types import FailureKind, Outcome, Program


def stays(value: object) -> Handle:
    return Handle(0, "object", type(value).__name__)


def there_and_back(value: object) -> object:
    return decode.decode(codec.encode(value, stays), lambda handle: handle)


MOMENT = datetime.datetime(2020, 1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (sympy.gcd(12, 18), 6), (sympy.Integer(10) ** 400, 10**400), (sympy.Rational(1, 3), Fraction(1, 3)),
        (sympy.Float(0.1), 0.1), (sympy.oo, math.inf), (-sympy.oo, -math.inf), (sympy.sqrt(2), math.sqrt(2)),
        (sympy.pi, math.pi), (3 * sympy.I, 3j), (sympy.true, True), (sympy.Integer(2) > 3, False),
        (mpmath.mpf("0.1"), 0.1), (mpmath.mpf(2) ** 100, 2.0**100), (mpmath.mpc(1, 2), 1 + 2j), (mpmath.pi, math.pi),
        (mpmath.inf, math.inf), (mpmath.mpf(10) ** 400, int(mpmath.mpf(10) ** 400)), (mpmath.mpf("1e-400"), 0.0),
        (pd.Timestamp(MOMENT), MOMENT), (pd.Timedelta(hours=1), datetime.timedelta(hours=1)),
        (pd.Timestamp(MOMENT, tz="UTC"), MOMENT.replace(tzinfo=datetime.UTC)),
        (np.datetime64("2020-01-02"), datetime.date(2020, 1, 2)), (np.datetime64(MOMENT), MOMENT),
        (np.timedelta64(3, "s"), datetime.timedelta(seconds=3)),
    ],
    ids=repr,
)  # fmt: skip
def test_what_stands_for_a_plain_value_crosses_as_that_value(value: object, plain: object) -> None:
    back = there_and_back(value)
    assert type(back) is type(plain) and back == plain
    assert there_and_back([{value: (value,)}]) == [{plain: (plain,)}]


def test_integers_that_floats_are_too_short_for_stay_whole() -> None:
    with mpmath.workdps(100):
        back = there_and_back(mpmath.mpf(10) ** 30 + 1)
        third = there_and_back(mpmath.mpf(1) / 3)
    assert type(back) is int and back == 10**30 + 1
    assert third == 1 / 3
    assert math.isnan(there_and_back(sympy.nan))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        sympy.Symbol("x"), sympy.sqrt(2) * 10**400, sympy.FiniteSet(1), mpmath.mpi(1, 2), pd.NaT, pd.NA,
        pd.Timestamp("2020-01-01 00:00:00.000000001"), pd.Timedelta(1, "ns"), pd.Series([1]), np.datetime64("NaT"),
        np.datetime64("2020-01-01T00:00:00.000000001"), np.array([1], dtype=object), np.array(["a"]),
    ],
    ids=repr,
)  # fmt: skip
def test_what_no_plain_value_says_exactly_stays_an_object(value: object) -> None:
    assert type(there_and_back(value)) is Handle


class Pretender:
    """Says that it is a number, and equal to everything."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0

    def __abs__(self) -> object:
        return self

    def say(self) -> object:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    __index__ = __int__ = __float__ = __complex__ = say  # type: ignore[assignment]
    numerator = denominator = property(say)


class Always(float):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = float.__hash__


class AlwaysDate(datetime.datetime):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = datetime.datetime.__hash__


@pytest.mark.parametrize("kind", [numbers.Integral, numbers.Rational, numbers.Real, numbers.Complex, numbers.Number])
@pytest.mark.parametrize("answer", [3, 3.5, "3", None, Always(2.0), True, ValueError("no"), RecursionError()], ids=repr)
def test_a_class_that_pretends_is_one_plain_value_or_an_object(kind: type, answer: object) -> None:
    liar = type("Liar", (Pretender,), {})
    kind.register(liar)  # type: ignore[attr-defined]
    back = there_and_back(liar(answer))
    if isinstance(back, Handle):
        return
    assert type(back) in (int, float, complex, Fraction, bool)
    assert back != 7 and back != math.inf  # none of the answers is
    assert [back == n for n in range(100)].count(True) <= 1


def test_a_date_that_equals_everything_is_the_date_that_it_is() -> None:
    back = there_and_back(AlwaysDate(2020, 1, 2))
    assert type(back) is datetime.datetime and back == datetime.datetime(2020, 1, 2)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Pool]:
    with fork.build(fork.Config(workers=1, cpu_seconds=30.0, wall_seconds=60.0)) as pool:
        yield pool


def test_programs_that_answer_in_numbers_of_lent_packages_pass(sandbox: Pool) -> None:
    """HumanEval/13 asks for a greatest common divisor, 53 for a sum, 31 for a truth value, 45 for an area."""
    answers = {
        "HumanEval/13": ("greatest_common_divisor(a, b)", "import sympy", "sympy.gcd(a, b)"),
        "HumanEval/53": ("add(x, y)", "import mpmath", "mpmath.mpf(x) + y"),
        "HumanEval/31": ("is_prime(n)", "import sympy", "sympy.Integer(sympy.totient(n)) >= n - 1 + (n < 2) * 9"),
        "HumanEval/45": ("triangle_area(a, h)", "import sympy", "sympy.Rational(a * h, 2)"),
    }
    wrong = {"HumanEval/13": "sympy.gcd(a, b) + 1", "HumanEval/53": "mpmath.mpf(x)", "HumanEval/45": "sympy.oo"}
    programs = []
    for problem in humaneval.build(humaneval.Config()).problems():
        for name, known in (("right", answers), ("wrong", wrong)):
            if problem.task_id in known:
                signature, imports, right = answers[problem.task_id]
                body = right if name == "right" else wrong[problem.task_id]
                code = f"{imports}\ndef {signature}:\n    return {body}\n"
                programs.append(
                    Program(
                        key=f"{problem.task_id} {name}", code=code, test=problem.test, entry_point=problem.entry_point
                    )
                )
    found = {e.key: e for e in sandbox.judge(programs)}
    assert len(found) == len(answers) + len(wrong)
    for key, execution in found.items():
        assert execution.outcome is (Outcome.PASSED if key.endswith("right") else Outcome.FAILED), execution


def test_a_timestamp_of_pandas_is_the_moment_that_it_says(sandbox: Pool) -> None:
    code = "import pandas as pd\ndef f(x): return pd.Timestamp(x)\n"
    test = (
        "import datetime\ndef check(candidate):\n    assert candidate('2020-01-02') == datetime.datetime(2020, 1, {})\n"
    )
    programs = [Program(key=str(day), code=code, test=test.format(day), entry_point="f") for day in (2, 3)]
    assert {e.key: e.outcome for e in sandbox.judge(programs)} == {"2": Outcome.PASSED, "3": Outcome.FAILED}


@pytest.mark.parametrize(
    ("code", "expected", "kind"),
    [
        ("import numpy\ndef f(x): return numpy.float16('inf')", "70000", FailureKind.WRONG_ANSWER),
        ("import numpy\ndef f(x): return numpy.array([numpy.float16('inf')])", "[70000]", FailureKind.WRONG_ANSWER),
        ("from fractions import Fraction\ndef f(x): return Fraction(3 ** 5000000, 2)", "1", FailureKind.BAD_VALUE),
        ("def f(x): return 1 << 8000000", "1", FailureKind.BAD_VALUE),
        ("def f(x): return range(10 ** 12)", "[0]", FailureKind.BAD_VALUE),
        ("from decimal import Decimal\ndef f(x): return Decimal('1e999999')", "1", FailureKind.BAD_VALUE),
    ],
)  # fmt: skip
def test_numbers_that_are_rounder_or_longer_than_honest_ones_do_not_pass(
    sandbox: Pool, code: str, expected: str, kind: FailureKind
) -> None:
    test = f"def check(candidate):\n    assert candidate(1) == {expected}\n"
    (found,) = sandbox.judge([Program(key="k", code=code, test=test, entry_point="f")])
    assert (found.outcome, found.error_kind) == (Outcome.FAILED, kind), found
