"""What ends a conversation, at each limit and on both of its sides; and what a description of an exception may be."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator

import pytest

from rune.sandbox.protocol import ahead, child, codec, connection, decode
from rune.sandbox.protocol.connection import Link, Stop
from rune.types import FailureKind


@pytest.fixture
def link() -> Iterator[Link]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Link(ours, cpu_seconds=4.0, wall_seconds=10.0)


BUSY = "no answer after 4 s of CPU time"


@pytest.mark.parametrize(
    ("cpu", "wall", "queued", "kernel", "alone", "said"),
    [
        (3.99, 5.0, 0.0, 0.0, False, None),
        (4.0, 5.0, 0.0, 0.0, False, (BUSY, False)),
        (4.0, 5.0, 1.0, 2.0, False, (BUSY, False)),  # a quarter in the queue, half in the kernel: its own doing
        (4.0, 5.0, 1.01, 0.0, False, (BUSY, True)),
        (4.0, 5.0, 0.0, 2.01, False, (BUSY, True)),
        (4.0, 5.0, 3.0, 3.0, True, (BUSY, False)),  # nothing else of ours runs
        (0.0, 9.99, 0.0, 0.0, False, None),
        (0.04, 10.0, 0.0, 0.0, False, ("no answer after 10 s (0.0 s computing)", True)),
        (0.06, 12.0, 2.0, 0.0, True, ("no answer after 10 s (0.1 s computing)", True)),
        (0.0, 12.0, 2.01, 0.0, False, None),  # it waited for a processor
        (0.0, 99.0, 98.0, 0.0, False, None),
        (0.0, 100.0, 100.0, 0.0, False, ("no answer after 100 s", True)),
    ],
)
def test_a_clock_ends_it_at_its_limit_and_a_doubt_is_said(
    link: Link, monkeypatch: pytest.MonkeyPatch, cpu: float, wall: float, queued: float, kernel: float, alone: bool,
    said: tuple[str, bool] | None,
) -> None:  # fmt: skip
    monkeypatch.setattr(link, "cpu_seconds", lambda: cpu)
    monkeypatch.setattr(link, "_queued", lambda: queued)
    monkeypatch.setattr(link, "_in_kernel", lambda: kernel)
    link._waited, link._alone = wall, alone
    if said is None:
        link._look()
        assert link.finding is None
        assert link._next_look == wall + connection._TICK
        return
    with pytest.raises(Stop) as found:
        link._look()
    assert (found.value.text, found.value.unsure, found.value.kind) == (*said, FailureKind.TIMEOUT)
    assert link.finding is found.value and found.value.raised == ""


def test_the_longest_wait_is_ten_times_the_longer_of_the_two_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        patient = Link(ours, cpu_seconds=30.0, wall_seconds=10.0)
        monkeypatch.setattr(patient, "_queued", lambda: patient._waited)
        patient._waited = 299.0
        patient._look()
        patient._waited = 300.0
        with pytest.raises(Stop, match="no answer after 300 s"):
            patient._look()


def test_the_first_finding_stands_and_nothing_is_asked_after_it(link: Link) -> None:
    first = link.stop(FailureKind.CRASH, "one", raised="R", unsure=True)
    assert (first.kind, first.text, first.raised, first.unsure) == (FailureKind.CRASH, "one", "R", True)
    link.stop(FailureKind.TIMEOUT, "two")
    link.broken("three")
    link.protocol("four")
    assert link.finding is first
    for ask in (link.operate, link.construct):
        with pytest.raises(Stop) as found:
            ask("call", "f")
        assert found.value is first
    link.closed = True
    with pytest.raises(RuntimeError, match="the test is over"):
        link.operate("call", "f")


def test_a_child_that_was_never_heard_has_no_clock(link: Link) -> None:
    assert (link.cpu_seconds(), link._queued(), link._in_kernel(), link.waited) == (0.0, 0.0, 0.0, 0.0)
    link._pid = 2**22 + 1  # beyond any process
    assert (link.cpu_seconds(), link._queued(), link._in_kernel()) == (0.0, 0.0, 0.0)


def test_the_clocks_of_a_child_are_those_of_its_process(link: Link) -> None:
    link._pid = os.getpid()
    before = time.process_time()
    sum(i * i for i in range(20_000))
    assert before <= link.cpu_seconds() <= time.process_time()
    assert 0 <= link._in_kernel() <= link.cpu_seconds() + 0.05
    assert 0 <= link._queued() < 1e6


GOOD = [0, "KeyError", "KeyError", "no", "trace"]


def test_a_description_has_its_five_parts_and_nothing_else() -> None:
    assert connection._described(json.dumps(GOOD).encode()) == tuple(GOOD)
    assert connection._described(json.dumps([3, *GOOD[1:]]).encode()) == (3, *GOOD[1:])
    long = json.dumps([0, "a", "b", "c", "x" * (connection._ERROR_BYTES - 22)])
    assert len(long) == connection._ERROR_BYTES
    assert connection._described(long.encode()) is not None and connection._described(long.encode() + b" ") is None
    for odd in (
        [*GOOD, "more"], GOOD[:4], [True, *GOOD[1:]], [0.0, *GOOD[1:]], ["0", *GOOD[1:]], [-1, *GOOD[1:]],
        [4, *GOOD[1:]],
        [0, None, "b", "c", "d"], [0, "a", 1, "c", "d"], {"0": 1}, None, 7, "abcde", [],
    ):  # fmt: skip
        assert connection._described(json.dumps(odd).encode()) is None, odd
    for data in (b"", b"\xff", b"[0", b"[" * 100_000):
        assert connection._described(data) is None


def test_a_name_of_a_program_is_a_short_plain_identifier_or_none() -> None:
    longest = "N" * connection._NAME
    assert connection.plain_name(longest) == longest and connection.plain_name(longest + "N") == ""
    assert [connection.plain_name(name) for name in ("", " ", "a b", "Größe", "1a", "_a1")] == [""] * 5 + ["_a1"]


@pytest.mark.parametrize(
    ("name", "base", "kinds"),
    [
        ("KeyError", "KeyError", (KeyError,)),
        ("Own", "KeyError", (KeyError,)),
        ("Own", "nothing", (Exception,)),
        ("Own", "print", (Exception,)),
        ("Own", "int", (Exception,)),
        ("StopIteration", "StopIteration", (RuntimeError,)),
        ("StopAsyncIteration", "StopAsyncIteration", (RuntimeError,)),
        ("GeneratorExit", "GeneratorExit", (RuntimeError,)),
        ("", "KeyboardInterrupt", (KeyboardInterrupt,)),
        ("UnicodeDecodeError", "UnicodeDecodeError", (Exception,)),
    ],
)
def test_a_test_catches_what_was_raised_by_its_kind_but_no_end_of_iteration(
    name: str, base: str, kinds: tuple[type[BaseException], ...]
) -> None:
    error = connection._exception(name, base, "why")
    assert isinstance(error, kinds) and type(error).__name__ == (name or "Exception") and error.args == ("why",)
    assert not isinstance(error, (StopIteration, StopAsyncIteration, GeneratorExit))
    if base == "UnicodeDecodeError":
        assert not isinstance(error, UnicodeError)


def test_a_program_and_the_calls_sent_ahead_are_two_messages_in_that_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        link = Link(ours, cpu_seconds=5.0, wall_seconds=5.0)
        link.load("import math\n", "x = 1\n", "f", 7, [b"abc", b"", b"de"])
        data = theirs.recv(1 << 16)
    size, kind = child.HEAD.unpack_from(data)
    program = data[child.HEAD.size : child.HEAD.size + size]
    assert kind == child.LOAD
    assert decode.decode_trusted(program, lambda handle: handle) == ("import math\n", "x = 1\n", "f", 7)
    rest = data[child.HEAD.size + size :]
    size, kind = child.HEAD.unpack_from(rest)
    assert kind == child.SCRIPT and len(rest) == child.HEAD.size + size
    assert rest[child.HEAD.size :] == b"".join(connection._LENGTH.pack(len(c)) + c for c in (b"abc", b"", b"de"))


# -- calls sent ahead


def test_calls_are_foreseen_up_to_a_size_and_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    one = len(codec.encode_trusted(("call", "f", ("x" * 100,), {}), ahead._refuse))
    for most_bytes, most_calls, noted in ((3 * one, 99, 3), (3 * one - 1, 99, 2), (99 * one, 2, 2), (0, 99, 0)):
        monkeypatch.setattr(ahead, "_MOST_BYTES", most_bytes)
        monkeypatch.setattr(ahead, "_MOST_CALLS", most_calls)
        calls: list[bytes] = []
        recorder = ahead._Recorder(calls)
        for _ in range(noted):
            recorder.operate("call", "f", "x" * 100)
        for _ in range(2):  # and none after it, whatever it is
            with pytest.raises(ahead.Enough):
                recorder.operate("call", "f", "x" * 100)
        assert len(calls) == noted


@pytest.mark.parametrize("ask", [("observe", "f"), ("call", object()), ("call", "f", object())])
def test_only_a_call_of_a_name_with_plain_data_is_foreseen(ask: tuple[object, ...]) -> None:
    recorder = ahead._Recorder([])
    with pytest.raises(ahead.Enough):
        recorder.operate(*ask)  # type: ignore[arg-type]
    with pytest.raises(ahead.Enough):
        recorder.operate("call", "f", 1)
    assert recorder.calls == []


def test_a_path_that_two_programs_running_leave_is_cut_where_the_second_left_it() -> None:
    script = ahead.Script()
    script.calls = [b"a", b"b", b"c", b"d"]
    script.diverged(1)
    assert len(script.calls) == 4
    script.held()
    script.diverged(1)
    assert len(script.calls) == 4
    script.diverged(3)
    assert script.calls == [b"a", b"b", b"c"]
    script.diverged(0)
    assert len(script.calls) == 3, "the strikes begin anew"
    script.diverged(0)
    assert script.calls == []


def test_a_blank_agrees_with_whatever_is_asked_of_it_and_holds_nothing() -> None:
    blank = ahead._Blank()
    for agreed in (
        blank == 1, blank != 1, blank < 1, blank <= 1, blank > 1, blank >= 1, 1 in blank, bool(blank),
    ):  # fmt: skip
        assert agreed is True
    for same in (
        blank + 1, 1 + blank, blank - 1, 1 - blank, blank * 2, 2 * blank, blank / 2, 2 / blank, blank // 2, 2 // blank,
        blank % 2, 2 % blank, blank**2, 2**blank, -blank, abs(blank), round(blank, 2), blank[0], blank["a"],
        blank(1, a=2),
        blank.count, blank.a.b,
    ):  # fmt: skip
        assert same is blank
    assert (hash(blank), len(blank), list(blank), float(blank), int(blank)) == (0, 0, [], 0.0, 0)
    with pytest.raises(AttributeError):
        blank.__array__  # noqa: B018
