"""What the sandbox finds about honest programs: the original harness's verdicts, said usefully."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune.errors import SandboxError
from rune.sandbox import _limits, _pool, fork
from rune.sandbox._pool import Pool
from rune.types import Execution, Outcome, Program

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork backend is Linux's")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Pool]:
    with fork.build(fork.Config(workers=1, cpu_seconds=1.0, wall_seconds=1.5)) as pool:
        yield pool


def run(sandbox: Pool, code: str, test: str, *, prelude: str = "") -> Execution:
    program = Program(key="k", code=code, test=test, entry_point="f", prelude=prelude)
    (found,) = sandbox.judge([program])
    return found


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

    def source() -> Iterator[Program]:
        nonlocal pulled
        for i in range(100):
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
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return found
    for child in map(int, children):
        found += [child, *_descendants(child)]
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
