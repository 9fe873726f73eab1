"""Frames that come in any pieces, at any moment and of any kind: what is an answer, what a finding, what a fault."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from rune.sandbox.protocol import child, codec
from rune.sandbox.protocol.connection import Broken, Link, Stop
from rune.types import FailureKind


def frame(kind: int, data: bytes = b"") -> bytes:
    return child.HEAD.pack(len(data), kind) + data


def value(of: object) -> bytes:
    return frame(child.VALUE, codec.encode(of, lambda _: codec.Handle(0, "object", "A")))


READY, DONE = frame(child.READY), frame(child.DONE)


@pytest.fixture
def talk() -> Iterator[tuple[Link, socket.socket]]:
    """A judge that has asked nothing yet, and the child's end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Link(ours, cpu_seconds=1.0, wall_seconds=1.0), theirs


def says(theirs: socket.socket, pieces: Sequence[bytes], pause: float = 0.0, after: int = 0) -> threading.Thread:
    """Say them one by one, the first once `after` more bytes have been heard."""

    def speak() -> None:
        with contextlib.suppress(OSError):
            theirs.recv(after, socket.MSG_WAITALL)
            for piece in pieces:
                theirs.sendall(piece)
                time.sleep(pause)

    thread = threading.Thread(target=speak, daemon=True)
    thread.start()
    return thread


def load(link: Link, ahead: list[bytes] | None = None) -> None:
    link.load("", "", "f", 0, ahead or [])


def call(of: object) -> bytes:
    return codec.encode_trusted(("call", "f", (of,), {}), lambda _: codec.Handle(0, "object", "A"))


def test_frames_may_be_cut_anywhere(talk: tuple[Link, socket.socket]) -> None:
    link, theirs = talk
    load(link)
    whole = READY + DONE + value([1, "two"])
    speaker = says(theirs, [whole[i : i + 1] for i in range(len(whole))], pause=0.001)
    assert link.operate("call", "f", 1) == [1, "two"]
    speaker.join()
    theirs.recv(1 << 16)
    says(theirs, [value(7)], after=10)
    assert link.operate("call", "f", 2) == 7
    link.finish()
    assert 0 < link.waited < 30


@pytest.mark.parametrize("end", range(0, 24, 3))
def test_a_child_that_is_gone_before_its_answer_is_whole_has_crashed(
    talk: tuple[Link, socket.socket], end: int
) -> None:
    link, theirs = talk
    load(link)
    whole = READY + DONE + value([1, "two"])
    theirs.sendall(whole[: min(end, len(whole) - 1)])
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(Stop) as found:
        link.operate("call", "f", 1)
    assert (found.value.kind, found.value.text) == (
        FailureKind.CRASH, "the program's process ended before it answered",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (frame(child.READY, b"x"), "x"),
        (frame(child.DONE), ""),
        (frame(child.ERROR, b"no numpy \xff" + b"y" * 2000), "no numpy �" + "y" * 990),
    ],
)
def test_a_child_s_first_word_is_the_machinery_s(talk: tuple[Link, socket.socket], first: bytes, said: str) -> None:
    link, theirs = talk
    load(link)
    theirs.sendall(first)
    with pytest.raises(Broken) as found:
        link.operate("call", "f", 1)
    assert str(found.value) == said and link.finding is found.value


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (frame(child.DONE, b"x"), f"a message of kind {child.DONE} after loading"),
        (value(1), f"a message of kind {child.VALUE} after loading"),
        (DONE + DONE, f"a message of kind {child.DONE} in answer to a call"),
        (DONE + frame(99), "a message of kind 99 in answer to a call"),
        (DONE + frame(child.ERROR, b"[]"), "an exception that is none"),
    ],
)
def test_what_is_no_answer_is_a_finding(talk: tuple[Link, socket.socket], after: bytes, said: str) -> None:
    link, theirs = talk
    load(link)
    theirs.sendall(READY + after)
    with pytest.raises(Stop) as found:
        link.operate("call", "f", 1)
    assert (found.value.kind, found.value.text) == (
        FailureKind.PROTOCOL, f"the program sent what is no answer: {said}",
    )  # fmt: skip


def test_an_answer_larger_than_fits_is_refused_by_its_length_alone(talk: tuple[Link, socket.socket]) -> None:
    link, theirs = talk
    load(link)
    theirs.sendall(READY + DONE + child.HEAD.pack(codec.MAX_BYTES + 1, child.VALUE))
    with pytest.raises(Stop) as found:
        link.operate("call", "f", 1)
    said = f"the program returned {codec.MAX_BYTES + 1} bytes; at most 64 MiB fit"
    assert (found.value.kind, found.value.text) == (FailureKind.BAD_VALUE, said)


def test_bytes_that_are_no_value_are_one(talk: tuple[Link, socket.socket]) -> None:
    link, theirs = talk
    load(link)
    theirs.sendall(READY + DONE + frame(child.VALUE, b"?"))
    with pytest.raises(Stop) as found:
        link.operate("call", "f", 1)
    assert found.value.kind is FailureKind.BAD_VALUE
    assert found.value.text == "the program returned something that cannot be read: not an encoding: unknown tag"


@pytest.mark.parametrize(
    ("used", "left", "said"),
    [
        (0, [], None),  # sent ahead and not answered: it may be still at it
        (0, [value(1)], None),
        (0, [value(1), value(2)], None),
        (1, [value(1), value(2)], None),
        (2, [value(1), value(2)], None),
        (2, [value(1), value(2), value(3)], "more answers than calls"),
        (0, [value(1), value(2), value(3)], "more answers than calls"),
        (1, [value(1), DONE], f"a message of kind {child.DONE} in answer to a call"),
        (1, [value(1), frame(child.ERROR, b"anything")], None),
        (1, [value(1), value(2)[:-1]], None),  # not whole yet
        (1, [value(1), value(2)[:3]], None),
    ],
)
def test_after_the_test_only_answers_to_what_was_sent_ahead_may_be_there(
    talk: tuple[Link, socket.socket], used: int, left: list[bytes], said: str | None
) -> None:
    link, theirs = talk
    load(link, [call(1), call(2)])
    theirs.sendall(READY + DONE + b"".join(left))
    for number in range(used):
        assert link.operate("call", "f", number + 1) == number + 1
    assert link.used == used
    if said is None:
        link.finish()
        return
    with pytest.raises(Stop) as found:
        link.finish()
    assert (found.value.kind, found.value.text) == (
        FailureKind.PROTOCOL, f"the program sent what is no answer: {said}",
    )  # fmt: skip


def test_an_answer_that_comes_before_it_is_asked_for_answers_nothing(talk: tuple[Link, socket.socket]) -> None:
    link, theirs = talk
    load(link)
    theirs.sendall(READY + DONE + value(1))
    assert link.operate("call", "f", 1) == 1
    theirs.sendall(value(2))
    with pytest.raises(Stop) as found:
        link.operate("call", "f", 2)
    assert found.value.text == "the program sent what is no answer: an answer before the call"


def test_a_program_that_was_only_loaded_must_have_loaded(talk: tuple[Link, socket.socket]) -> None:
    link, theirs = talk
    load(link)
    theirs.sendall(READY)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(Stop) as found:
        link.finish()
    assert found.value.kind is FailureKind.CRASH


def test_a_silent_child_is_waited_for_as_long_as_the_wall_clock_allows(talk: tuple[Link, socket.socket]) -> None:
    link, theirs = talk
    load(link)
    theirs.sendall(READY + DONE)
    began = time.monotonic()
    with pytest.raises(Stop) as found:
        link.operate("call", "f", 1)
    assert time.monotonic() - began >= 0.99
    assert (found.value.kind, found.value.unsure) == (FailureKind.TIMEOUT, True)
    assert link.waited >= 1.0


def test_a_child_that_says_a_little_now_and_then_has_no_longer_than_a_silent_one(
    talk: tuple[Link, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, theirs = talk
    load(link)
    looked: list[float] = []
    look = link._look

    def noted() -> None:
        looked.append(link._wall())
        look()

    monkeypatch.setattr(link, "_look", noted)
    theirs.sendall(READY + DONE + child.HEAD.pack(1000, child.VALUE))
    says(theirs, [b"x"] * 900, pause=0.01)
    with pytest.raises(Stop) as found:
        link.operate("call", "f", 1)
    assert found.value.kind is FailureKind.TIMEOUT and len(looked) >= 5


def test_what_a_test_may_use_of_an_object_is_what_it_made_itself(talk: tuple[Link, socket.socket]) -> None:
    link, theirs = talk
    load(link)
    theirs.sendall(READY + DONE + value(object()))
    theirs_own: Any = link.operate("call", "f", 1)
    theirs.recv(1 << 16)
    says(theirs, [value(object())], after=10)
    ours: Any = link.construct("call", "A", 1)
    assert (theirs_own._own, ours._own) == (False, True)
