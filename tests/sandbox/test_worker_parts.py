"""The parts of a judge process, each by itself: what it says of an end, how it shortens a text, what it forgets."""

from __future__ import annotations

import contextlib
import hashlib
import resource
import signal
import socket
import sys
import types
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rune.sandbox.isolation import fork_server
from rune.sandbox.judging import test_worker as worker
from rune.sandbox.protocol.connection import Broken, Stop
from rune.types import FailureKind, Outcome


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (9, "the program's process was killed by SIGKILL"),
        (0x80 | 11, "the program's process was killed by SIGSEGV"),  # with a core dump
        (0x7F, "the program's process was killed by signal 127"),
        (0, "the program ended its process (exit code 0) before the test was over"),
        (3 << 8, "the program ended its process (exit code 3) before the test was over"),
        (255 << 8, "the program ended its process (exit code 255) before the test was over"),
    ],
)
def test_how_a_process_ended_is_read_off_its_wait_status(status: int, said: str) -> None:
    assert worker._crash(status) == said


def test_a_text_is_cut_to_its_limit_with_a_third_of_it_from_the_beginning() -> None:
    fits = "".join(chr(97 + i % 26) for i in range(worker.ERROR_CHARS))
    assert worker.ERROR_CHARS == 1500 and worker.clean(fits) == fits
    for more in (1, 1500, 1501, 100_000):
        text = fits + "Z" * more
        assert worker.clean(text) == text[:500] + " … " + text[-997:]
    assert worker.clean("abcdefghijklmnop", 12) == "abcd … lmnop"
    assert len(worker.clean("x" * 13, 12)) == 12


def test_a_text_obeys_no_terminal_and_fits_any_file() -> None:
    text = "a\tb\nc\x00\x1b[2J\x1f \x7f\x80\x9f\xa0é\ud800"
    assert worker.clean(text) == "a\tb\nc\\x00\\x1b[2J\\x1f \\x7f\\x80\\x9f\xa0é?"


def test_a_failure_is_never_without_words_and_only_a_timeout_timed_out() -> None:
    for kind in FailureKind:
        found = worker._failure(kind, "why", raised="R", settled=False)
        expected = Outcome.TIMED_OUT if kind is FailureKind.TIMEOUT else Outcome.FAILED
        assert found == {"outcome": expected, "kind": kind, "raised": "R", "error": "why", "settled": False}
    assert worker._failure(FailureKind.CRASH, "")["error"] == "the program did not pass (Crash)"
    assert worker._failure(FailureKind.CRASH, "")["settled"] is True
    assert (worker._join("f(1)", "no"), worker._join("", "no")) == ("f(1):\nno", "no")


def test_what_a_test_computes_is_ended_in_time_and_what_it_raised_is_told() -> None:
    handler = signal.getsignal(signal.SIGPROF)
    try:
        alarm = worker._Alarm()
        assert alarm.run(5.0, TimeoutError, lambda: None) is None
        error = ValueError("own")

        def fails() -> None:
            raise error

        def endless() -> None:
            while True:
                pass

        def stubborn() -> None:
            for _ in range(2):
                try:
                    endless()
                except TimeoutError:
                    rung.append(1)

        rung: list[int] = []
        assert alarm.run(5.0, TimeoutError, fails) is error
        assert isinstance(alarm.run(0.05, TimeoutError, endless), TimeoutError)
        assert alarm.run(0.05, TimeoutError, stubborn) is None and len(rung) == 2, "it rings again every second"
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0) and alarm._ring is None
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


def _quiet(step: Callable[[], object]) -> None:
    with contextlib.suppress(BaseException):
        step()


def bare() -> Any:
    """A worker without a box."""
    found = worker._Worker.__new__(worker._Worker)
    found.options = {"cpu_seconds": 2.0, "wall_seconds": 20.0, "test_seconds": 5.0}
    found.key, found.texts, found.tasks = b"k" * 32, {}, {}
    found.alarm = types.SimpleNamespace(run=lambda seconds, ring, step: _quiet(step))
    found.modules, found.size = set(sys.modules), 0
    return found


def test_a_module_that_a_prelude_made_is_forgotten_and_a_real_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = bare()
    made, real = types.ModuleType("made_by_a_prelude"), types.ModuleType("from_a_file")
    real.__file__ = "/somewhere/from_a_file.py"
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(sys.modules, real.__name__, real)
    monkeypatch.setattr(sys, "stdlib_module_names", frozenset({*sys.stdlib_module_names, "as_of_the_library"}))
    monkeypatch.setitem(sys.modules, "as_of_the_library", types.ModuleType("as_of_the_library"))
    judge._forget_modules()
    assert made.__name__ not in sys.modules and {real.__name__, "as_of_the_library"} <= set(sys.modules)
    assert judge.modules == set(sys.modules)


def test_garbage_is_looked_for_once_a_program_left_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = bare()
    looked: list[int] = []
    monkeypatch.setattr(worker.gc, "collect", lambda: looked.append(1))
    sizes = iter([10, 10 + worker._GARBAGE, 11 + 2 * worker._GARBAGE, 20])
    monkeypatch.setattr(worker, "_address_space", lambda: next(sizes))
    judge.size = 10
    for collected, size in ((0, 10), (0, 10 + worker._GARBAGE), (1, 20)):
        judge._forget_values()
        assert (len(looked), judge.size) == (collected, size)
    assert worker._GARBAGE == 64 << 20


def test_the_address_space_is_the_kernel_s_word() -> None:
    told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    assert worker._address_space() == pytest.approx(int(told["VmSize"].split()[0]) * 1024, rel=0.05)


def test_a_task_is_prepared_once_with_numbers_of_its_own_that_no_program_can_know() -> None:
    judge = bare()
    test = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"
    judge.texts = {"t": test, "p": "import math\n", "": ""}
    job = {"test": "t", "prelude": "p", "entry_point": "f"}
    task = judge._task(job)
    assert judge._task(dict(job)) is task
    assert judge._task({**job, "entry_point": "g"}) is not task and judge._task({**job, "prelude": ""}).prelude is None
    assert task.seed == hashlib.blake2b(test.encode(), key=judge.key, digest_size=16).digest()
    assert task.program_seed == zlib.crc32(test.encode())
    assert (task.prelude_text, task.entry_point, len(task.script.calls)) == ("import math\n", "f", 2)
    with pytest.raises(Broken, match="the test for f does not compile"):
        judge._prepared("def check(:\n", "", "f")
    with pytest.raises(Broken, match="the test for f does not compile"):
        judge._prepared(test, "x = = 1", "f")


def verdict(finding: BaseException | None, error: BaseException | None, **link: object) -> dict[str, Any]:
    judge = bare()
    said = {"finding": finding, "closed": False, "story": lambda: "f(1)", "last_error": None, "last_trace": "trace"}
    found: dict[str, Any] = judge._verdict(None, types.SimpleNamespace(**said, last_raised="Own", **link), error)
    return found


def test_a_pass_comes_from_a_test_that_returned_with_nothing_found_and_from_nowhere_else() -> None:
    assert verdict(None, None)["outcome"] is Outcome.PASSED
    for finding in (Stop(FailureKind.PROTOCOL, "odd"), Stop(FailureKind.TIMEOUT, "late", unsure=True)):
        for error in (None, finding, ValueError()):
            found = verdict(finding, error)
            assert (found["kind"], found["settled"]) == (finding.kind, not finding.unsure)
            assert found["outcome"] is not Outcome.PASSED and found["error"] == f"f(1):\n{finding.text}"
    for error in (Stop(FailureKind.CRASH, "gone"), MemoryError()):
        assert verdict(None, error)["outcome"] is Outcome.FAILED
    assert verdict(None, MemoryError())["kind"] is FailureKind.MEMORY_LIMIT
    for broken in (Broken("box"), None):
        with pytest.raises(Broken):
            verdict(broken, None if broken else Broken("box"))


def test_what_a_program_raised_itself_is_told_apart_from_what_the_test_raised() -> None:
    judge, error = bare(), KeyError("x")
    link: Any = types.SimpleNamespace(
        finding=None, closed=False, story=lambda: "f(1)", last_error=error, last_trace="trace"
    )
    link.last_raised = "Own"
    assert judge._verdict(None, link, error) == {
        "outcome": Outcome.FAILED, "kind": FailureKind.RAISED, "raised": "Own", "error": "f(1):\ntrace",
        "settled": True,
    }  # fmt: skip
    assert link.closed
    found = judge._verdict(None, link, ValueError())  # no test: it cannot be explained
    assert (found["kind"], found["error"]) == (FailureKind.WRONG_ANSWER, "check: the test raised ValueError")


def test_a_text_that_cannot_be_made_gives_way_to_a_plain_one() -> None:
    judge = bare()
    assert judge._explained(lambda: "a\x00", "plain") == "a\\x00"
    assert judge._explained(lambda: 1 / 0, "pl\x00ain") == "pl\\x00ain"  # type: ignore[arg-type, return-value]


def test_memory_is_limited_softly_and_never_above_the_hard_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for hard, expected in ((-1, 100), (1000, 100), (60, 60)):
        limits: list[tuple[int, tuple[int, int]]] = []
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (7, hard))
        monkeypatch.setattr(resource, "setrlimit", lambda what, pair, limits=limits: limits.append((what, pair)))
        worker._limit_memory(100)
        assert limits == [(resource.RLIMIT_AS, (expected, hard))]


# -- the box


def box() -> tuple[Any, socket.socket]:
    """The lane's end of a box, and the box's own."""
    ours, theirs = socket.socketpair()
    found = worker._Box.__new__(worker._Box)
    found._control, found._children, found._ending, found.last = ours, deque(), False, (0, 0.0)
    return found, theirs


def test_a_child_is_handed_over_and_its_end_waited_for_before_the_next() -> None:
    lane, theirs = box()
    held = []
    for name in (b"one", b"two"):
        near, far = socket.socketpair()
        socket.send_fds(theirs, [fork_server.CHILD], [far.fileno()])
        near.send(name)
        held.append((near, far))
    assert lane.child().recv(9) == b"one" and len(lane._children) == 1
    lane.next()
    assert theirs.recv(9) == b"N"
    theirs.sendall(fork_server.ENDED + fork_server.STATUS.pack(9, 1.5))
    assert lane.ended() == (9, 1.5) and lane.child().recv(9) == b"two"


@pytest.mark.parametrize("words", [b"", b"?", None])
def test_a_box_that_says_anything_else_or_nothing_is_broken(words: bytes | None) -> None:
    lane, theirs = box()
    if words is None:
        lane._control.settimeout(0.01)
    elif words:
        theirs.sendall(words)
    else:
        theirs.close()
    with pytest.raises(Broken, match="closed its door" if words is not None else "does not answer"):
        lane.child()


def test_bytes_come_in_parts_and_a_door_may_close_between() -> None:
    lane, theirs = box()
    theirs.sendall(b"abc")
    assert lane._exactly(2) == b"ab"
    theirs.close()
    with pytest.raises(Broken, match="the box closed its door"):
        lane._exactly(2)


# -- a program from its job to its answer


class StrawBox:
    """A box that notes when it is told to go on, and says how the last child ended."""

    def __init__(self, status: int = 0, cpu: float = 0.0) -> None:
        self.said: list[str] = []
        self.status, self.cpu = status, cpu

    def next(self) -> None:
        self.said.append("next")

    def ended(self) -> tuple[int, float]:
        self.said.append("ended")
        return self.status, self.cpu


def judge_of(box: StrawBox, talks: list[tuple[BaseException | None, int]]) -> tuple[Any, list[list[bytes]]]:
    """A worker whose conversations end with these findings, after so many calls of those sent ahead were used."""
    found, sent = bare(), []
    found.box, found.script = box, worker._ahead.Script()
    found.script.calls = [b"a", b"b"]

    def converse(task: object, job: object, ahead: list[bytes]) -> tuple[Any, BaseException | None]:
        sent.append(list(ahead))
        finding, used = talks.pop(0)
        link = types.SimpleNamespace(finding=finding, used=used, cpu_seconds=lambda: 0.1234567, closed=False)
        link.story, link.last_error = lambda: "", None
        return link, None

    found._converse = converse
    found._task = lambda job: types.SimpleNamespace(script=found.script, test=None)
    found._forget_values = lambda: None
    return found, sent


def test_a_program_that_passes_takes_one_conversation_and_the_box_goes_on_once() -> None:
    box = StrawBox()
    judge, sent = judge_of(box, [(None, 2)])
    judge.script._strikes = 1
    answer = judge.judge({})
    assert (answer["outcome"], answer["kind"], answer["cpu"]) == (Outcome.PASSED, FailureKind.NONE, 0.123457)
    assert 0 <= answer["wall"] < 60 and round(answer["wall"], 6) == answer["wall"]
    assert box.said == ["next"] and sent == [[b"a", b"b"]] and judge.script._strikes == 0


def test_a_test_that_asked_otherwise_is_asked_again_with_a_fresh_program_and_nothing_ahead() -> None:
    box = StrawBox()
    judge, sent = judge_of(box, [(worker.Diverged(), 1), (None, 0)])
    assert judge.judge({})["outcome"] is Outcome.PASSED
    assert box.said == ["next", "next"] and sent == [[b"a", b"b"], []] and judge.script._strikes == 1


@pytest.mark.parametrize(
    ("status", "cpu", "kind", "words"),
    [
        (signal.SIGXCPU, 2.0, FailureKind.TIMEOUT, "no answer after 2 s of CPU time"),
        (0x80 | signal.SIGXCPU, 2.5, FailureKind.TIMEOUT, "no answer after 2 s of CPU time"),
        (signal.SIGXCPU, 1.99, FailureKind.CRASH, "the program's process was killed by SIGXCPU"),  # it did so itself
        (signal.SIGKILL, 2.0, FailureKind.CRASH, "the program's process was killed by SIGKILL"),
        (3 << 8, 2.5, FailureKind.CRASH, "the program ended its process (exit code 3) before the test was over"),
    ],
)
def test_a_program_that_died_did_so_of_its_time_only_by_the_kernel_s_word(
    status: int, cpu: float, kind: FailureKind, words: str
) -> None:
    box = StrawBox(status, cpu)
    judge, _ = judge_of(box, [(Stop(FailureKind.CRASH, "gone"), 0)])
    answer = judge.judge({})
    assert (answer["kind"], answer["error"], answer["cpu"]) == (kind, words, cpu)
    assert answer["outcome"] is (Outcome.TIMED_OUT if kind is FailureKind.TIMEOUT else Outcome.FAILED)
    assert box.said == ["next", "ended"]
    other = Stop(FailureKind.PROTOCOL, "odd")
    box = StrawBox(status, cpu)
    judge, _ = judge_of(box, [(other, 0)])
    assert judge.judge({})["error"] == "odd" and box.said == ["next"], "only a crash is asked after"
