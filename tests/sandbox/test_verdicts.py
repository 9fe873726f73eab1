"""What the sandbox finds about honest programs: the original harness's verdicts, said usefully."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import marshal
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune.errors import SandboxError
from rune.sandbox import fork
from rune.sandbox.isolation import limits as _limits
from rune.sandbox.judging import pool as _pool
from rune.sandbox.judging.pool import Pool
from rune.sandbox.judging.verdict_cache import Cached
from rune.sandbox.protocol import ahead, connection, decode, tests
from rune.sandbox.protocol import child as _child
from rune.types import Execution, FailureKind, Outcome, Program
from tests.sandbox.talk import conversation, say

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork backend is Linux's")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Pool]:
    with fork.build(fork.Config(workers=1, cpu_seconds=1.0, wall_seconds=1.5)) as pool:
        yield pool


def run(sandbox: Pool, code: str, test: str, *, prelude: str = "") -> Execution:
    program = Program(key="k", code=code, test=test, entry_point="f", prelude=prelude)
    (found,) = sandbox.judge([program])
    return found


ALL = [("fork", ()), ("fork", ("namespaces",)), ("bubblewrap", ()), ("subprocess", ())]


@pytest.fixture(scope="module", params=ALL, ids=["fork", "no namespaces", "bubblewrap", "subprocess"])
def everywhere(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """A sandbox of each backend."""
    backend, without = request.param
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    part = importlib.import_module(f"rune.sandbox.{backend}")
    limits = part.Config(workers=1, cpu_seconds=1.0, wall_seconds=1.5, without=without, allow_weak=True)
    with part.build(limits) as pool:
        yield pool


RAISES = "try:\n    candidate(1)\nexcept {caught} as e:\n    assert {proof}\nelse:\n    assert False"


def check(body: str) -> str:
    return "def check(candidate):\n" + "".join(f"    {line}\n" for line in body.splitlines())


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("def f(x): return x + 1", "assert candidate(1) == 2"),
        ("def f(x): return (x, [x], {x: {x}})", "assert candidate(1) == (1, [1], {1: {1}})"),
        ("def f(x): return float('nan')", "assert candidate(1) != candidate(1)"),
        ("def f(x): return -x", "assert candidate(float('inf')) == float('-inf')"),
        ("def f(x): return x ** 100", "assert candidate(10 ** 9) == 10 ** 900"),
        ("def f(x): return x", "assert candidate(b'a\\x00') == b'a\\x00' and candidate('\\ud800') == '\\ud800'"),
        ("def f(x): return x is True", "assert candidate(True) is True and candidate(1) is False"),
        ("def f(x):\n    yield from range(x)", "assert list(candidate(3)) == [0, 1, 2] and candidate(1) != [0]"),
        ("def f(x): return map(str, x)", "assert list(candidate([1, 2])) == ['1', '2']"),
        ("def f(x): return {1: 2}.keys()", "assert candidate(0) == {1} and list(candidate(0)) == [1]"),
        ("from collections import *\ndef f(x): return Counter(x)", "assert candidate('aab') == {'a': 2, 'b': 1}"),
        ("from fractions import Fraction\ndef f(x): return Fraction(1, x)", "assert candidate(2) == 0.5"),
        ("from typing import NamedTuple\nclass P(NamedTuple):\n    a: int\ndef f(x): return P(x)",
         "assert candidate(3) == (3,)"),
        ("import enum\nclass E(enum.IntEnum):\n    A = 3\ndef f(x): return E.A", "assert candidate(0) == 3"),
        ("def f(x, *, y=0): return x - y", "assert candidate(3, y=1) == 2"),
        ("def f(x):\n    x.append(1)", "x = []\ncandidate(x)\nassert x == [1]"),
        ("def f(x): raise KeyError(x)", RAISES.format(caught="LookupError", proof="type(e) is KeyError")),
        ("class Mine(ValueError): pass\ndef f(x): raise Mine('no')",
         RAISES.format(caught="ValueError", proof="str(e) == 'no'")),
        ("def f(x): return isinstance(x, list)", "assert candidate([]) and not candidate(())"),
        ("def f(xs, t): return [x for x in xs if not isinstance(x, t)]", "assert candidate([1, 'a'], int) == ['a']"),
        ("class Node:\n    def __init__(self, v): self.v, self.left = v, None\ndef f(n): return n.v + n.left.v",
         "root = Node(1)\nroot.left = Node(2)\nassert candidate(root) == 3"),
        ("def f(x): return x if x < 2 else f(x - 1) + f(x - 2)", "assert candidate(candidate(7)) == 233"),
        ("import sys\ndef f(x): return __name__", "assert candidate(0) == 'builtins'"),
        ("def f(x): return x \\\n", "assert candidate(1) == 1"),
    ],
)  # fmt: skip
def test_honest_programs_pass(sandbox: Pool, code: str, body: str) -> None:
    found = run(sandbox, code, check(body))
    assert found.outcome is Outcome.PASSED, found
    assert (found.error_kind, found.error) == ("", "")
    # Once more with the calls sent ahead: the same.
    assert run(sandbox, f"{code}\n# again\n", check(body)).outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("code", "body", "kind", "words"),
    [
        ("def f(a, b): return True", "assert candidate([1.0], 0.5) == False", "WrongAnswer",
         "check: f([1.0], 0.5) returned True, expected False"),
        ("def f(x): return 2", "assert candidate(1) + 0.0 < 1, 'too much'", "WrongAnswer", "f(1) returned 2"),
        ("def f(x): return 1", "if candidate(1) != 2: raise AssertionError('two it is')", "WrongAnswer",
         "check: f(1) returned 1 (two it is)"),
        ("def f(x): return None", "assert abs(candidate(1) - 2) < 1", "WrongAnswer",
         "f(1) returned None; the test then raised TypeError"),
        ("def f(x):\n    y = 0\n    return x / y", "candidate(1)", "ZeroDivisionError",
         "line 3, in f\n    return x / y\nZeroDivisionError"),
        ("def f(x): return undefined", "assert candidate(1) == 1", "NameError", "name 'undefined' is not defined"),
        ("def f(x)\n    return 1", "assert candidate(1) == 1", "SyntaxError", "expected ':'"),
        ("def g(x): return 1", "assert candidate(1) == 1", "MissingEntryPoint", "does not define f"),
        ("import nonsense\ndef f(x): pass", "assert candidate(1) == 1", "ModuleNotFoundError", "nonsense"),
        ("def f(x):\n    print('seen', x)\n    raise ValueError('v')", "candidate(7)", "ValueError",
         "printed before: seen 7"),
        ("def f(x): return [0] * 10 ** 12", "candidate(1)", "MemoryLimit", "MemoryError"),
        ("class A: pass\ndef f(x): return A()", "assert candidate(1) == 1", "WrongAnswer", "expected 1"),
    ],
)  # fmt: skip
def test_failures_say_what_a_model_can_use(sandbox: Pool, code: str, body: str, kind: str, words: str) -> None:
    found = run(sandbox, code, check(body))
    assert (found.outcome, found.label) == (Outcome.FAILED, kind), found
    assert words in found.error
    assert len(found.error) <= 1500


def test_a_later_endless_loop_hides_no_earlier_mistake(sandbox: Pool) -> None:
    code = "def f(x):\n    while x == 2: pass\n    return 0\n# {}\n"
    body = check("assert candidate(1) == 1\nassert candidate(2) == 2")
    right_then_loop = "def f(x):\n    while x == 2: pass\n    return x"
    for number in range(3):  # the second and third time the calls are sent ahead
        assert run(sandbox, code.format(number), body).error_kind == "WrongAnswer"
        assert run(sandbox, f"{right_then_loop}\n# {number}", body).outcome is Outcome.TIMED_OUT


def test_a_test_that_asks_otherwise_this_time_is_asked_call_by_call(sandbox: Pool) -> None:
    body = check("n = candidate(0)\nfor i in range(n):\n    assert candidate(i + n) == n")
    for n in (3, 5, 1, 4, 3):
        assert run(sandbox, f"def f(x): return {n}", body).outcome is Outcome.PASSED
    stateful = "calls = []\ndef f(x):\n    calls.append(x)\n    return 2 if x == 0 or len(calls) < 4 else 9"
    assert run(sandbox, stateful, body).outcome is Outcome.PASSED


CATCHES = """
n = candidate(0)
got = []
for i in (1 if n == 1 else 9, 2, 3):
    try:
        got.append(candidate(i))
    except BaseException:
        got.append("lost")
assert got == {wanted}
"""


def test_a_test_that_catches_everything_takes_no_answer_for_another(everywhere: Pool) -> None:
    """The second program makes the test ask for something else than was sent ahead."""
    as_asked = check(CATCHES.format(wanted="[1 if n == 1 else 9, 2, 3]"))
    for n in (1, 5, 1, 5, 5):
        code = f"def f(x): return {n} if x == 0 else x"
        assert run(everywhere, code, as_asked).outcome is Outcome.PASSED
    shifted = check(CATCHES.format(wanted="[got[0], 2, 3]"))
    assert run(everywhere, "def f(x): return x or 1", shifted).outcome is Outcome.PASSED
    found = run(everywhere, "def f(x): return x + 1 if x else 5", shifted)
    assert found.error_kind is FailureKind.WRONG_ANSWER


@pytest.mark.parametrize("end", ["import os; os._exit(0)", "while True: pass", "return object"])
def test_a_test_that_catches_everything_swallows_no_finding(everywhere: Pool, end: str) -> None:
    body = check("try:\n    candidate(1)\nexcept BaseException:\n    pass")
    kept = check("try:\n    candidate(1)\nexcept BaseException:\n    pass\nassert candidate(0) == 1")
    code = f"def f(x):\n    if not x: return 1\n    {end}"
    if "object" in end:  # no finding: a class is an answer
        assert run(everywhere, code, kept).outcome is Outcome.PASSED
        return
    for test in (body, kept):
        found = run(everywhere, code, test)
        assert found.outcome is not Outcome.PASSED
        assert found.error_kind in (FailureKind.CRASH, FailureKind.TIMEOUT)


def test_a_finding_is_raised_again_at_every_use() -> None:
    link, child = conversation()
    say(child, 99, b"")
    say(child, _child.VALUE, b"T")
    found = []
    for _ in range(3):
        with pytest.raises(connection.Stop) as caught:
            link.operate("call", "f", 1)
        found.append(caught.value)
    with pytest.raises(connection.Stop) as caught:
        link.finish()
    assert {id(stop) for stop in (*found, caught.value)} == {id(link.finding)}
    assert found[0].kind is FailureKind.PROTOCOL
    child.close()


@pytest.mark.parametrize(
    ("about", "kind"),
    [
        (_child.RAISED, None),
        (_child.UNFIT, FailureKind.BAD_VALUE),
        (_child.MEMORY, FailureKind.MEMORY_LIMIT),
        (_child.MISSING, FailureKind.MISSING_ENTRY_POINT),
    ],
)
def test_a_test_may_catch_what_a_call_raises_and_nothing_else(about: int, kind: FailureKind | None) -> None:
    link, child = conversation()
    say(child, _child.ERROR, json.dumps([about, "ValueError", "ValueError", "no", "trace"]).encode())
    with pytest.raises(ValueError if kind is None else connection.Stop):
        link.operate("call", "f", 1)
    if kind is None:
        assert link.finding is None
    else:
        assert isinstance(link.finding, connection.Stop) and link.finding.kind is kind
    child.close()


def test_an_answer_before_the_call_is_none() -> None:
    link, child = conversation()
    say(child, _child.VALUE, b"T")
    assert link.operate("call", "f", 1) is True
    say(child, _child.VALUE, b"F")
    with pytest.raises(connection.Stop, match="before the call"):
        link.operate("call", "f", 2)
    child.close()


def test_more_answers_than_calls_are_a_finding() -> None:
    for rest in (b"T", b"T" * 70_000):
        link, child = conversation()
        say(child, _child.VALUE, b"T")
        assert link.operate("call", "f", 1) is True
        say(child, _child.VALUE, rest)
        with pytest.raises(connection.Stop, match="more answers than calls"):
            link.finish()
        child.close()
    link, child = conversation()
    link.finish()
    assert link.finding is None
    child.close()


def test_an_answer_cut_off_half_way_is_followed_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory or out of stack while an answer is read: what is left of it would be taken for the next."""
    for error in (MemoryError, RecursionError, KeyError):
        link, child = conversation()
        say(child, _child.VALUE, b"T")
        say(child, _child.VALUE, b"F")

        def fails(*_: object, error: type[Exception] = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(decode, "decode", fails)
            with pytest.raises(connection.Stop):
                link.operate("call", "f", 1)
        with pytest.raises(connection.Stop):
            link.operate("call", "f", 2)
        assert isinstance(link.finding, connection.Stop)
        child.close()


def test_a_test_that_catches_everything_swallows_no_fault_of_the_machinery(sandbox: Pool) -> None:
    body = check("try:\n    candidate(lambda: 1)\nexcept BaseException:\n    pass")
    with pytest.raises(SandboxError, match="a function is no plain data"):
        run(sandbox, "def f(x): return 1", body)


def test_a_test_that_catches_everything_is_ended_when_it_takes_too_long() -> None:
    body = "try:\n    for _ in range(candidate(1)): pass\nexcept BaseException:\n    pass"
    with fork.build(fork.Config(workers=1)) as pool:
        pool._options["test_seconds"] = 0.3
        pool._replace(0)
        found = run(pool, "def f(x): return 10 ** 12", check(body))
        assert (found.outcome, found.error_kind) == (Outcome.TIMED_OUT, FailureKind.TIMEOUT)
        assert "did not finish" in found.error and found.settled
        assert run(pool, "def f(x): return 10", check(body)).outcome is Outcome.PASSED


# Looks for the calls that were sent with it, and answers each with what a later one is given.
READS_AHEAD = """
import sys
def calls():
    frame = sys._getframe()
    while frame is not None:
        data = frame.f_locals.get("data")
        if type(data) is bytes and b"call" in data:
            yield data
        frame = frame.f_back
def f(x):
    import marshal, re
    for data in calls():
        for part in data.split(b"M")[1:]:
            try:
                found = marshal.loads(part)
            except Exception:
                continue
            if found[2][0] != x:
                return found[2][0]
    return None
"""


def test_what_is_sent_ahead_holds_no_answer_of_an_earlier_program(everywhere: Pool) -> None:
    right = "def f(x): return x * 1000 + 88"
    dependent = check("first = candidate(1)\nassert first == 1088\nassert candidate(first) == 1088088")
    for number in range(3):
        assert run(everywhere, f"{right} # {number}", dependent).outcome is Outcome.PASSED
    reads = run(everywhere, READS_AHEAD, dependent)
    assert reads.outcome is Outcome.FAILED
    assert "f(1) returned None" in reads.error  # it found nothing to return
    # It does read what is sent ahead where that hangs on no answer: the attack is a live one.
    plain = check("assert candidate(1) == 99\nassert candidate(88) != 0")
    assert "f(1) returned 88" in run(everywhere, READS_AHEAD, plain).error


def foreseen(body: str) -> list[str]:
    script = ahead.Script()
    with contextlib.suppress(BaseException):
        ahead.foresee(script, tests.prepare(check(body), "f"), None, "f")
    return [marshal.loads(call[1:])[2][0] for call in script.calls]


@pytest.mark.parametrize(
    ("body", "calls"),
    [
        ("assert candidate(1) == 2\nassert not candidate(2)\nassert abs(candidate(3) - 1) < 1", [1, 2, 3]),
        ("import math\nassert math.isclose(candidate(1), 5)\nassert candidate(2) is None", [1, 2]),
        ("for x, y in [(1, 2), (3, 4)]:\n    out = candidate(x)\n    same = out == y\n    assert same", [1, 3]),
        ("assert candidate(candidate(7)) == 233\nassert candidate(8)", [7]),
        ("assert candidate(1)[0] == 2 and len(candidate(2)) == 3", [1, 2]),
        ("x = [1]\nassert candidate(5)\ncandidate(x)\nassert x == [2]\nassert candidate(6)", [5]),
        ("assert candidate(5)\nNode(3)\nassert candidate(6)", [5]),
        ("for _ in range(candidate(4)):\n    candidate(5)", [4]),
        ("try:\n    candidate(candidate(1))\nexcept BaseException:\n    pass\ncandidate(2) == 3", [1]),
    ],
)
def test_calls_are_foreseen_as_far_as_they_hang_on_no_answer(body: str, calls: list[int]) -> None:
    assert foreseen(body) == calls


def test_a_test_s_random_numbers_are_a_secret_of_the_run_and_the_program_has_its_own(sandbox: Pool) -> None:
    body = check("import random\nassert candidate(random.random()) == 'x'")
    code = "import random\nOWN = random.random()\ndef f(x): return (x, OWN)"
    here = [run(sandbox, f"{code} # {number}", body) for number in range(3)]
    with fork.build(fork.Config(workers=1)) as pool:
        there = run(pool, code, body)
    assert len({e.error for e in here}) == 1
    assert here[0].error != there.error
    (own,) = {e.error.rpartition(", ")[0].rpartition(", ")[2].rstrip(")") for e in (*here, there)}
    drawn = here[0].error.partition("f(")[2].partition(")")[0]
    assert 0 < float(own) < 1 and 0 < float(drawn) < 1 and own != drawn
    for e in (*here, there):
        assert float(own) == float(e.error.split("returned (")[1].split(", ")[1].rstrip(")"))


@pytest.mark.parametrize("name", ["CPU time", "Timeout", "no answer after 3 s of CPU time"])
def test_a_timeout_is_settled_by_a_clock_and_by_no_name(sandbox: Pool, name: str) -> None:
    code = f"import time\nclass T: pass\nT.__name__ = {name!r}\ndef f(x):\n    return time.sleep(60) if x else T()"
    found = run(sandbox, code, check("candidate(0)\nassert candidate(1) == 2"))
    assert (found.outcome, found.settled) == (Outcome.TIMED_OUT, False)
    code = f"def f(x):\n    raise type({name!r}, (Exception,), {{}})('no answer after 3 s of CPU time')"
    found = run(sandbox, code, check("candidate(0)"))
    assert (found.outcome, found.error_kind, found.settled) == (Outcome.FAILED, FailureKind.RAISED, True)


def test_two_programs_with_one_key_are_judged_both(sandbox: Pool, tmp_path: Path) -> None:
    test = check("assert candidate(0) == 1")
    twins = [Program(key="k", code=f"def f(x): return {n}", test=test, entry_point="f") for n in (1, 2, 1, 3)]
    for judge in (sandbox.judge, Cached(sandbox, tmp_path, backend="fork", settings=sandbox.limits).judge):
        found = list(judge(twins))
        assert [e.key for e in found] == ["k"] * 4
        assert sorted(e.outcome for e in found) == ["failed", "failed", "passed", "passed"]


def test_what_a_test_cannot_pass_on_is_the_fault_of_who_returned_it(everywhere: Pool) -> None:
    """Data as deep and as large as may just come back, on its way in again."""
    body = check("assert candidate(candidate(1)) == 1\nassert candidate([[[candidate(2)]]]) == 1")
    for value in ("[" * 97 + "]" * 97, "'x' * 40_000_000"):
        found = run(everywhere, f"def f(x): return {value}", body)
        assert found.outcome is not Outcome.PASSED, found  # on a busy machine forty megabytes are slow


def test_a_lane_that_is_stuck_holds_up_no_other(sandbox: Pool) -> None:
    """In one call of C code, with a program waiting for it that no socket's buffer holds."""
    body = check("n = candidate(1)\nassert n <= 5 or 3 ** n == 0")
    with fork.build(fork.Config(workers=2, cpu_seconds=1.0, wall_seconds=1.0)) as pool:
        pool._watch_seconds = 3.0

        def source() -> Iterator[Program]:
            yield Program(key="stuck", code="def f(x): return 10 ** 8", test=body, entry_point="f")
            for i in range(40):
                code = f"def f(x): return {i}\n# {'x' * 2_000_000}"
                yield Program(key=str(i), code=code, test=body, entry_point="f")

        found = {e.key: e for e in pool.judge(source())}
    assert found.pop("stuck").outcome is Outcome.TIMED_OUT
    assert len(found) == 40
    assert {e.outcome for key, e in found.items() if int(key) <= 5} == {Outcome.PASSED}
    assert {e.outcome for key, e in found.items() if int(key) > 5} == {Outcome.FAILED}


def test_an_end_is_final_and_no_iterator_starts_again(everywhere: Pool) -> None:
    code = (
        "class A:\n    n = 0\n    def __iter__(self): return self\n    def __next__(self):\n        self.n += 1\n"
        "        if self.n % 3 == 0: raise StopIteration\n        return self.n\ndef f(x): return A()"
    )
    body = check("it = candidate(1)\nassert list(it) == [1, 2]\nassert list(it) == [] and list(it) == []")
    assert run(everywhere, code, body).outcome is Outcome.PASSED


def test_no_attribute_of_a_result_is_asked_for_and_none_is_set(everywhere: Pool) -> None:
    code = "class A:\n    size = 3\n    def __call__(self): return 3\ndef f(x): return A()"
    for ask in ("candidate(1).size == 3", "candidate(1).count(2) == 1000", "hasattr(candidate(1), 'size')"):
        found = run(everywhere, code, check(f"assert {ask}"))
        assert found.error_kind is FailureKind.WRONG_ANSWER, found
    assert run(everywhere, code, check("candidate(1).size = 4")).error_kind is FailureKind.WRONG_ANSWER
    # What the test builds itself may be asked, and what comes of that.
    built = check("a = A()\na.next = A()\nassert a.size == 3 and a.next.size == 3 and candidate(a) != a")
    assert run(everywhere, code, built).outcome is Outcome.PASSED
    closure = "def f(x): return lambda y: x + y"
    assert run(everywhere, closure, check("assert candidate(1)(2) == 3")).outcome is Outcome.PASSED


def test_only_a_test_that_returned_says_passed(everywhere: Pool) -> None:
    """Whatever a program is called that fails, and whenever it does."""
    for raised in ("type('', (Exception,), {})()", "type('passed', (BaseException,), {})()", "SystemExit(0)"):
        for code in (f"raise {raised}", f"def f(x): raise {raised}"):
            for body in ("assert candidate(1) == 1", "candidate(1)"):
                found = run(everywhere, code, check(body))
                assert (found.outcome, found.error_kind) == (Outcome.FAILED, FailureKind.RAISED), found


def test_a_prelude_exists_before_the_program_and_is_gone_after(sandbox: Pool) -> None:
    prelude = (
        "import sys, types\nm = types.ModuleType('grobnik')\nm.twice = lambda x: 2 * x\nsys.modules['grobnik'] = m\n"
    )
    code = "import grobnik\ndef f(x): return grobnik.twice(x)"
    body = check("assert candidate(2) == 4")
    assert run(sandbox, code, body, prelude=prelude).outcome is Outcome.PASSED
    assert run(sandbox, code, body).raised == "ModuleNotFoundError"


def test_the_same_program_is_judged_once_and_answers_for_every_key(sandbox: Pool) -> None:
    twins = [
        Program(key=str(i), code="import os\ndef f(x): return x", test=check("candidate(1)"), entry_point="f")
        for i in range(50)
    ]
    found = list(sandbox.judge(twins))
    assert {e.key for e in found} == {str(i) for i in range(50)}
    assert len({e.cpu_seconds for e in found}) == 1


def test_programs_are_pulled_only_when_there_is_room(sandbox: Pool) -> None:
    pulled = 0
    (lane,) = sandbox._lanes

    def source() -> Iterator[Program]:
        nonlocal pulled
        for i in range(100):
            assert len(lane.jobs) < 2  # one that is judged and one behind it
            pulled += 1
            yield Program(key=str(i), code=f"def f(x): return {i}", test=check("candidate(1)"), entry_point="f")

    results = sandbox.judge(source())
    next(results)
    assert pulled < 10
    results.close()  # type: ignore[attr-defined]
    assert run(sandbox, "def f(x): return 1", check("assert candidate(0) == 1")).outcome is Outcome.PASSED


def test_a_broken_test_is_the_machinery_s_fault_and_raises(sandbox: Pool) -> None:
    with pytest.raises(SandboxError, match="does not compile"):
        run(sandbox, "def f(x): return 1", "def check(candidate:\n")
    assert run(sandbox, "def f(x): return 1", check("assert candidate(0) == 1")).outcome is Outcome.PASSED


def test_a_lane_that_dies_is_replaced_and_its_program_judged_again(sandbox: Pool) -> None:
    def source() -> Iterator[Program]:
        for i in range(20):
            if i == 10:
                sandbox._lanes[0].process.kill()
            yield Program(key=str(i), code=f"def f(x): return {i}", test=check("candidate(1)"), entry_point="f")

    found = list(sandbox.judge(source()))
    assert sorted(int(e.key) for e in found) == list(range(20))
    assert {e.outcome for e in found} == {Outcome.PASSED}


def test_a_wall_timeout_is_tried_again_alone_before_it_counts(sandbox: Pool) -> None:
    sent: list[str] = []
    send = _pool._Lane.send

    def watch(lane: _pool._Lane, job: _pool._Job) -> None:
        sent.append(job.program.key)
        send(lane, job)

    _pool._Lane.send = watch  # type: ignore[method-assign]
    try:
        sleeper = Program(
            key="sleeper", code="import time\ndef f(x): time.sleep(60)", test=check("candidate(1)"), entry_point="f"
        )
        others = [
            Program(key=str(i), code=f"def f(x): return {-i}", test=check("candidate(1)"), entry_point="f")
            for i in range(9)
        ]
        found = {e.key: e for e in sandbox.judge([sleeper, *others])}
    finally:
        _pool._Lane.send = send  # type: ignore[method-assign]
    assert found["sleeper"].outcome is Outcome.TIMED_OUT
    assert sent.count("sleeper") == 2 and sent[-1] == "sleeper"


def test_a_test_that_never_comes_back_is_a_timeout_and_holds_up_no_other_lane() -> None:
    """One call into C that no signal interrupts, on a number that the program chose."""
    body = check("n = candidate(1)\nassert n < 9 or 3 ** n == 0")
    with fork.build(fork.Config(workers=2, cpu_seconds=1.0, wall_seconds=1.0)) as pool:
        pool._watch_seconds = 1.0

        def source() -> Iterator[Program]:
            yield Program(key="huge", code="def f(x): return 10 ** 8", test=body, entry_point="f")
            for i in range(2000):  # the other lane's answers come all the time
                yield Program(key=str(i), code=f"def f(x): return {i % 9} # {i}", test=body, entry_point="f")

        found = {e.key: e for e in pool.judge(source())}
    assert found.pop("huge").outcome is Outcome.TIMED_OUT
    assert len(found) == 2000 and {e.outcome for e in found.values()} == {Outcome.PASSED}


def test_what_numpy_would_ask_an_object_for_is_not_asked_of_the_program(sandbox: Pool) -> None:
    """An address given as `__array_interface__` would be read in the judge's memory."""
    code = (
        "class A:\n    __array_interface__ = {'data': (4096, False), 'shape': (1,), 'typestr': '<i8', 'version': 3}\n"
        "def f(x): return A()"
    )
    found = run(sandbox, code, "import numpy\n" + check("assert numpy.array(candidate(1)).dtype == object\n1 / 0"))
    assert "ZeroDivisionError" in found.error
    asks = check(
        "try:\n    candidate(1).__array_interface__\nexcept AttributeError:\n    pass\nelse:\n    assert False"
    )
    assert run(sandbox, code, asks).outcome is Outcome.PASSED
    asks = check("try:\n    candidate.__code__\nexcept AttributeError:\n    pass\nelse:\n    assert False")
    assert run(sandbox, code, asks).outcome is Outcome.PASSED


def test_a_program_that_is_never_silent_for_long_has_no_more_time_than_others(sandbox: Pool) -> None:
    code = "import time\ndef f(x):\n    time.sleep(0.05)\n    return x"
    few, many = check("for i in range(5): candidate(i)"), check("for i in range(1000): candidate(i)")
    assert run(sandbox, code, few).outcome is Outcome.PASSED
    found = run(sandbox, code, many)
    assert found.outcome is Outcome.TIMED_OUT and found.wall_seconds < 10
    assert run(sandbox, code, many + "# again: not known, and its calls are sent ahead\n").outcome is Outcome.TIMED_OUT


def test_a_cpu_timeout_on_an_overloaded_machine_is_tried_again_alone_before_it_counts() -> None:
    sent: list[str] = []
    send = _pool._Lane.send

    def watch(lane: _pool._Lane, job: _pool._Job) -> None:
        sent.append(job.program.key)
        send(lane, job)

    loop = Program(key="loop", code="def f(x):\n    while True: pass", test=check("candidate(1)"), entry_point="f")
    others = [
        Program(key=str(i), code=f"def f(x): return {-i}", test=check("candidate(1)"), entry_point="f")
        for i in range(9)
    ]
    # Four on one processor, and at work before the program is: it waits for three quarters of the time. Each in a
    # session of its own, or Linux's autogroups let all that this one runs elsewhere count against them.
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(processors)})
    burn = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    burners = [subprocess.Popen(burn, stdout=subprocess.PIPE, start_new_session=True) for _ in range(3)]
    try:
        for burner in burners:
            assert burner.stdout is not None and burner.stdout.readline()
        _pool._Lane.send = watch  # type: ignore[method-assign]
        with fork.build(fork.Config(workers=1, cpu_seconds=0.5, wall_seconds=1.0)) as pool:
            found = {e.key: e for e in pool.judge([loop, *others])}
    finally:
        _pool._Lane.send = send  # type: ignore[method-assign]
        os.sched_setaffinity(0, processors)
        for burner in burners:
            burner.kill()
            burner.communicate()
    assert found.pop("loop").outcome is Outcome.TIMED_OUT
    assert {e.outcome for e in found.values()} == {Outcome.PASSED}
    assert sent.count("loop") == 2 and sent[-1] == "loop"


@pytest.mark.check
def test_sixty_four_boxes_at_work_do_not_shut_each_other(sandbox: Pool) -> None:
    """Descriptors that travel between processes are counted per user, over all boxes: on a machine with 64 processors
    every other box closed for want of room. What a program itself may open stays bounded."""
    many = (
        "import os\ndef f(x):\n    try:\n        return len([os.open('/dev/null', os.O_RDONLY) for _ in range(x)])\n"
        "    except OSError as error:\n        return error.errno"
    )
    told = run(sandbox, many, check("assert candidate(20) == 20 and candidate(80) == 24"))
    assert told.outcome is Outcome.PASSED, told
    programs = [
        Program(
            key=str(i), code=f"def f(x): return x + {i}", test=check(f"assert candidate(1) == {1 + i}"), entry_point="f"
        )
        for i in range(256)
    ]
    with fork.build(fork.Config(workers=64)) as pool:
        found = {e.key: e.outcome for e in pool.judge(programs)}
    assert found == {str(i): Outcome.PASSED for i in range(256)}


def test_a_thousand_programs_leave_nothing_open(sandbox: Pool) -> None:
    def descriptors() -> list[int]:
        pids = [os.getpid(), sandbox._lanes[0].process.pid]
        return [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids]

    def programs(first: int, count: int) -> list[Program]:
        return [
            Program(
                key=str(i), code=f"def f(x): return {i}", test=check(f"assert candidate(1) == {i}"), entry_point="f"
            )
            for i in range(first, first + count)
        ]

    assert all(e.outcome is Outcome.PASSED for e in sandbox.judge(programs(0, 20)))
    lane = sandbox._lanes[0].process.pid
    gc.collect()  # what earlier tests left
    before = descriptors()
    assert all(e.outcome is Outcome.PASSED for e in sandbox.judge(programs(20, 1000)))
    assert descriptors() == before
    assert sandbox._lanes[0].process.pid == lane


def test_below_the_floor_it_refuses_unless_told() -> None:
    weak = ("namespaces", "seccomp")
    with pytest.raises(SandboxError, match="allow-weak-sandbox"):
        fork.build(fork.Config(workers=1, without=weak))
    with fork.build(fork.Config(workers=1, without=weak, allow_weak=True)) as pool:
        assert run(pool, "def f(x): return 1", check("assert candidate(0) == 1")).outcome is Outcome.PASSED


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="cpu_seconds must be above 0"):
        fork.Config(cpu_seconds=0)
    with pytest.raises(ValueError, match="unknown layer 'selinux'"):
        fork.Config(without=("selinux",))


@pytest.mark.parametrize(("asked", "lanes"), [(3, 3), (0, len(os.sched_getaffinity(0)))])
def test_there_are_as_many_lanes_as_asked_for_or_one_a_processor(asked: int, lanes: int) -> None:
    with fork.build(fork.Config(workers=asked)) as pool:
        assert pool.workers == len(pool._lanes) == lanes
        assert {e.outcome for e in pool.judge([Program(key="k", code="f = abs", test=check("candidate(1)"),
                entry_point="f")])} == {Outcome.PASSED}  # fmt: skip


def test_killing_the_scorer_ends_every_sample(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(_limits.SOURCE)!r})
from rune.sandbox import fork
from rune.types import Program
pool = fork.build(fork.Config(workers=2, cpu_seconds=60, wall_seconds=60))
test = "def check(candidate):\\n    candidate(1)\\n"
print(*(lane.process.pid for lane in pool._lanes), flush=True)
code = "def f(x):\\n    while True: "
list(pool.judge(Program(key=str(i), code=f"{{code}}{{i}}", test=test, entry_point="f") for i in range(4)))
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as scorer:
        assert scorer.stdout is not None
        lanes = [int(pid) for pid in scorer.stdout.readline().split()]
        # two lanes, each with a judge, the parent of its namespace, the server and a program
        family = _until(lambda: found if len(found := _descendants(scorer.pid)) >= 8 else None)
        assert set(lanes) <= set(family)
        scorer.kill()
    _until(lambda: not [pid for pid in family if _alive(pid)] or None)


def _until(ready):  # type: ignore[no-untyped-def]
    import time

    for _ in range(400):
        found = ready()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("did not happen within 20 seconds")


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return found
    for child in map(int, children):
        found += [child, *_descendants(child)]
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_what_programs_returned_takes_no_room_from_the_next() -> None:
    """What a test makes of an answer lies in a cycle; kept in the judge, eight of them would leave no memory."""
    test = check("global made\nmade = bytes(candidate())\nassert len(made) == 150_000_000")
    with fork.build(fork.Config(workers=1, memory_mb=256)) as small:
        outcomes = [run(small, f"def f():\n    return 150_000_000  # {n}\n", test).outcome for n in range(12)]
    assert outcomes == [Outcome.PASSED] * 12


def test_an_argument_may_have_any_name(sandbox: Pool) -> None:
    """Also those that the scorer's own functions have."""
    names = ("self", "operation", "target", "args", "options", "own", "link", "name")
    code = f"def f({', '.join(names)}):\n    return [{', '.join(names)}]\n"
    asked = f"candidate({', '.join(f'{name}={n}' for n, name in enumerate(names))})"
    for body in (f"assert {asked} == list(range({len(names)}))", asked, f"x = candidate\nx(*{list(range(8))})"):
        assert run(sandbox, code, check(body)).outcome is Outcome.PASSED
    node = (
        f"def f():\n    pass\n\nclass Node:\n    def __init__(this, {', '.join(names)}):\n        this.sum = target\n"
    )
    made = asked.replace("candidate", "Node")
    assert run(sandbox, node, check(f"n = {made}\nassert n.sum == 2")).outcome is Outcome.PASSED


def test_calls_sent_ahead_are_cut_when_two_programs_running_diverge_and_not_for_one() -> None:
    """Once may be the program's doing, twice running is the test's; a program that held begins the count again."""
    script = ahead.Script()
    script.calls = [b"a", b"b", b"c"]
    for _ in range(3):
        script.diverged(1)
        assert script.calls == [b"a", b"b", b"c"]
        script.held()
    script.diverged(1)
    script.diverged(1)
    assert script.calls == [b"a"]
    script.calls = [b"a", b"b", b"c"]
    script.diverged(2)
    assert script.calls == [b"a", b"b", b"c"]  # counted from the start after a cut
    script.diverged(2)
    assert script.calls == [b"a", b"b"]
