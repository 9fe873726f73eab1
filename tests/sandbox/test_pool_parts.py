"""The pool with judges of straw: who is asked again, who alone, what is remembered, and how lines are told apart."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import socket
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rune.errors import SandboxError
from rune.sandbox.judging import pool
from rune.types import Execution, FailureKind, Outcome, Program

PASSED = {
    "outcome": "passed", "kind": "", "raised": "", "error": "", "settled": True, "cpu": 0.5, "wall": 1.5,
}  # fmt: skip
LATE = {
    "outcome": "timed_out", "kind": "Timeout", "raised": "", "error": "late", "settled": False, "cpu": 2.0, "wall": 3.0,
}  # fmt: skip


def program(code: str, key: str = "", **more: str) -> Program:
    return Program(key=key or code, code=code, test="t", entry_point="f", **more)


class Straw:
    """A lane that answers by a rule, at once."""

    def __init__(self, rule: Callable[[pool._Job], dict[str, Any] | None], log: list[str], number: int) -> None:
        self.rule, self.log, self.number = rule, log, number
        self.socket, self._far = socket.socketpair()
        self.jobs: deque[pool._Job] = deque()
        self.unsent = bytearray()
        self.since = 0.0
        self.stuck = False
        self._answers: list[dict[str, Any]] = []

    def send(self, job: pool._Job) -> None:
        self.jobs.append(job)
        self.log.append(f"{job.program.code}{' alone' if job.alone else ''}")
        answer = self.rule(job)
        self.stuck |= answer is None
        if not self.stuck:
            self._answers.append(answer)  # type: ignore[arg-type]
        self._far.send(b".")

    def receive(self) -> list[dict[str, Any]]:
        self.socket.recv(1 << 10)
        found, self._answers = self._answers, []
        return found

    def close(self, **_: float) -> None:
        self.socket.close()
        self._far.close()


def straw_pool(rule: Callable[[pool._Job], dict[str, Any] | None], lanes: int = 1) -> tuple[Any, list[str]]:
    log: list[str] = []
    numbers = itertools.count()
    found: Any = types.SimpleNamespace(_watch_seconds=1e9)
    found._lanes = [Straw(rule, log, next(numbers)) for _ in range(lanes)]

    def replace(number: int) -> Straw:
        log.append("replaced")
        found._lanes[number].close()
        found._lanes[number] = Straw(rule, log, next(numbers))
        return found._lanes[number]  # type: ignore[no-any-return]

    found._replace = replace
    return found, log


def judged(found: Any, programs: list[Program]) -> list[Execution]:
    return list(pool._Round(found, iter(programs)).run())


def test_an_answer_is_the_execution_that_it_says_under_each_key() -> None:
    found, log = straw_pool(lambda _: PASSED)
    executions = judged(found, [program("a", "1"), program("a", "2"), program("b", "3"), program("a", "4")])
    assert log == ["a", "b"]
    assert {e.key: dataclasses.replace(e, key="") for e in executions} == dict.fromkeys(
        "1234",
        Execution(
            key="", outcome=Outcome.PASSED, error_kind=FailureKind.NONE, raised="", error="", settled=True,
            cpu_seconds=0.5, wall_seconds=1.5,
        ),
    )  # fmt: skip


@pytest.mark.parametrize("field", ["code", "test", "entry_point", "prelude"])
def test_programs_that_differ_in_anything_are_judged_each(field: str) -> None:
    found, log = straw_pool(lambda _: PASSED)
    one = Program(key="1", code="c", test="t", entry_point="e", prelude="p")
    assert len(judged(found, [one, dataclasses.replace(one, key="2", **{field: "x"})])) == 2
    assert len(log) == 2


def test_what_was_judged_last_is_remembered_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_REMEMBERED", 3)
    found, log = straw_pool(lambda _: PASSED)
    names = ["a", "b", "w", "x", "w", "y", "w", "z", "w", "a"]
    assert len(judged(found, [program(n, str(i)) for i, n in enumerate(names)])) == 10
    assert log == ["a", "b", "w", "x", "y", "z", "a"], "one that is asked for again and again is never judged anew"


def test_what_may_be_the_machine_s_fault_is_asked_once_more_alone_and_after_all_others() -> None:
    found, log = straw_pool(lambda job: LATE if job.program.code == "slow" else PASSED, lanes=2)
    executions = judged(found, [program("slow"), *(program(str(i)) for i in range(5))])
    assert log[-1] == "slow alone" and log.count("slow") == 1 and len(log) == 7
    assert executions[-1].key == "slow" and executions[-1].outcome is Outcome.TIMED_OUT and len(executions) == 6
    assert executions[-1].settled is False


def test_a_second_try_that_passes_is_a_pass() -> None:
    found, log = straw_pool(lambda job: PASSED if job.alone else LATE)
    (execution,) = judged(found, [program("a")])
    assert execution.outcome is Outcome.PASSED and log == ["a", "a alone"]


@pytest.mark.parametrize("odd", [{"outcome": "failed"}, {"kind": "Timeout"}])
def test_a_judge_that_contradicts_itself_is_not_believed(odd: dict[str, str]) -> None:
    found, _ = straw_pool(lambda _: {**PASSED, **odd})
    with pytest.raises(SandboxError, match="a judge contradicts itself"):
        judged(found, [program("a")])


def test_a_lane_that_breaks_is_replaced_and_its_programs_asked_again_in_their_order() -> None:
    breaks = iter([True, True])
    found, log = straw_pool(lambda job: {"broken": "why"} if job.program.code == "a" and next(breaks, None) else PASSED)
    executions = judged(found, [program("a"), program("b"), program("c")])
    assert {e.key for e in executions} == {"a", "b", "c"} and all(e.outcome is Outcome.PASSED for e in executions)
    assert log.count("replaced") == 2 and log.count("a") == 3
    assert [name for name in log if name in "bc"][-2:] == ["b", "c"]


def test_a_program_on_which_three_lanes_break_ends_it_with_its_name() -> None:
    found, log = straw_pool(lambda _: {"broken": "why"})
    with pytest.raises(SandboxError, match="the key: could not be judged in 3 tries: why") as told:
        judged(found, [program("a", "the key")])
    assert (told.value.key, told.value.reason) == ("the key", "why")  # type: ignore[attr-defined]
    assert log == ["a", "replaced", "a", "replaced", "a", "replaced"]


def test_a_lane_that_hangs_twice_on_a_program_makes_it_a_timeout() -> None:
    found, log = straw_pool(lambda job: None if job.program.code == "a" else PASSED)
    found._watch_seconds = -1.0
    executions = judged(found, [program("a"), program("b")])
    by_key = {e.key: e for e in executions}
    assert by_key["a"] == Execution(
        key="a", outcome=Outcome.TIMED_OUT, error_kind=FailureKind.TIMEOUT, settled=False, wall_seconds=-1.0,
        error="the test could not be brought to an end with what the program returned",
    )  # fmt: skip
    assert log.count("a") == 2 and set(by_key) == {"a", "b"}


def test_programs_are_pulled_as_far_as_lanes_have_room() -> None:
    pulled: list[int] = []

    def programs() -> Iterator[Program]:
        for number in range(20):
            pulled.append(number)
            yield program(str(number))

    found, _ = straw_pool(lambda _: PASSED, lanes=2)
    each = pool._Round(found, programs()).run()
    next(each)
    assert len(pulled) == 8, "two lanes of two, and as many in the place of the first"
    assert len(list(each)) == 19


def test_known_verdicts_are_handed_on_before_more_than_64_have_gathered() -> None:
    pulled: list[int] = []

    def programs() -> Iterator[Program]:
        yield program("a", "first")
        yield program("b", "second")
        for number in range(1000):
            pulled.append(number)
            yield program("a", str(number))

    found, log = straw_pool(lambda _: PASSED)
    each = pool._Round(found, programs()).run()
    most = 0
    for count, _ in enumerate(each):
        most = max(most, len(pulled) - count)
    assert most == 62, most
    assert count == 1001 and log == ["a", "b"]


# -- a lane's own end


def lane() -> tuple[Any, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    found = pool._Lane.__new__(pool._Lane)
    found.socket, found.unsent, found.jobs, found._sent, found._buffer = ours, bytearray(), deque(), set(), bytearray()
    found.since = 0.0
    return found, theirs


def test_a_test_is_told_once_and_named_from_then_on() -> None:
    found, theirs = lane()
    for code in "ab":
        job = pool._Job(program(code, prelude="p"), b"")
        job.alone = code == "b"
        found.send(job)
    one, two = (json.loads(line) for line in theirs.recv(1 << 16).splitlines())
    test, prelude = (hashlib.sha256(text).hexdigest()[:24] for text in (b"t", b"p"))
    named = {"entry_point": "f", "test": test, "prelude": prelude}
    assert one == {"code": "a", **named, "texts": {test: "t", prelude: "p"}, "alone": False}
    assert two == {"code": "b", **named, "texts": {}, "alone": True}
    assert [job.program.code for job in found.jobs] == ["a", "b"] and found.since > 0


def test_its_clock_starts_with_the_first_of_its_programs() -> None:
    found, _ = lane()
    found.send(pool._Job(program("a"), b""))
    found.since = 7.0
    found.send(pool._Job(program("b"), b""))
    assert found.since == 7.0


def test_answers_are_whole_lines_however_they_come() -> None:
    found, theirs = lane()
    assert found.receive() == []
    theirs.send(b'{"a": 1}\n{"b"')
    assert found.receive() == [{"a": 1}]
    theirs.send(b": 2}")
    assert found.receive() == []
    theirs.send(b'\n{"c": 3}\n')
    assert found.receive() == [{"b": 2}, {"c": 3}]
    theirs.close()
    with pytest.raises(SandboxError, match="a judge process ended unexpectedly"):
        found.receive()


def test_a_lane_that_does_not_listen_holds_up_nobody_and_hears_all_of_it_later() -> None:
    found, theirs = lane()
    found.say({"text": "x" * 3_000_000})
    assert found.unsent
    heard = bytearray()
    while found.unsent:
        heard += theirs.recv(1 << 20)
        found.flush()
    theirs.setblocking(False)
    try:
        while True:
            heard += theirs.recv(1 << 20)
    except BlockingIOError:
        pass
    assert json.loads(heard) == {"text": "x" * 3_000_000} and heard.endswith(b"\n")
    theirs.close()
    found.say({})
    assert not found.unsent, "one that died is noticed when it is read"


# -- the pool itself


def bare_pool(**more: object) -> Any:
    found = pool.Pool.__new__(pool.Pool)
    found._closed, found._busy, found._lanes, found.name, found.workers = False, False, [], "fork", 2
    for name, value in more.items():
        setattr(found, name, value)
    return found


def test_a_pool_judges_one_thing_at_a_time_and_nothing_once_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "run_commands", lambda commands, workers: iter([(list(commands), workers)]))
    found = bare_pool()
    straw, _ = straw_pool(lambda _: PASSED)
    found._lanes, found._watch_seconds = straw._lanes, 1e9
    first = found.judge([program("a"), program("b")])
    next(first)
    with pytest.raises(SandboxError, match="judging already"):
        list(found.judge([program("c")]))
    assert len(list(first)) == 1 and not found._busy
    assert len(list(found.judge([program("c")]))) == 1
    assert list(found.run(["x"])) == [(["x"], 2)]
    with pytest.raises(SandboxError, match="no walls to run a repository's tests behind"):
        found.name = "subprocess"
        list(found.run(["x"]))
    found._closed, found.name = True, "fork"
    for ask in (lambda: list(found.judge([])), lambda: list(found.run([]))):
        with pytest.raises(SandboxError, match="the sandbox is closed"):
            ask()


def test_a_caller_who_leaves_early_leaves_no_program_running() -> None:
    straw, log = straw_pool(lambda job: PASSED if job.program.code == "a" else None)
    found = bare_pool(_lanes=straw._lanes, _watch_seconds=1e9, _replace=straw._replace)
    each = found.judge([program("a"), program("b"), program("c")])
    next(each)
    each.close()
    assert log[-1] == "replaced" and log.count("replaced") == 1 and not found._busy
    assert not any(lane.jobs for lane in straw._lanes)


def test_idle_judges_are_waited_for_and_busy_ones_are_not() -> None:
    waits: list[float] = []
    lanes = [types.SimpleNamespace(jobs=jobs, close=lambda wait: waits.append(wait)) for jobs in ([], [1])]
    found = bare_pool(_lanes=lanes)
    found.close()
    assert waits == [5.0, 0.0] and found._closed and found._lanes == []


@pytest.mark.parametrize(
    ("hello", "allow_weak", "words"),
    [
        ({"layers": ["memory", "walls"]}, False, ""),
        ({"broken": "no such file"}, False, "the fork sandbox does not start: no such file"),
        ({"layers": []}, True, ""),
        ({"layers": []}, False, "cannot hold untrusted code with the fork sandbox: nothing; see `rune doctor`"),
    ],
)
def test_a_lane_is_ready_once_it_says_what_holds_it(
    monkeypatch: pytest.MonkeyPatch, hello: dict[str, Any], allow_weak: bool, words: str
) -> None:
    monkeypatch.setattr(pool, "below_floor", lambda layers: "" if layers else "nothing")
    found = bare_pool(limits=types.SimpleNamespace(allow_weak=allow_weak))
    one, theirs = lane()
    theirs.send(json.dumps(hello).encode() + b"\n")
    if words:
        with pytest.raises(SandboxError, match=words):
            found._ready(one)
    else:
        found._ready(one)
        assert one.layers == hello["layers"] and found.layers == tuple(hello["layers"])
        assert one.socket.getblocking() is False
