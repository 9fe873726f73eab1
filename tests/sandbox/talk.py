"""The judge's end of a conversation, with a child whose every word a test writes itself."""

from __future__ import annotations

import contextlib
import socket
import threading

from rune.sandbox.protocol import child, codec, decode
from rune.sandbox.protocol.connection import Link


def conversation() -> tuple[Link, socket.socket]:
    """A program that has loaded; the child's end is the test's."""
    ours, theirs = socket.socketpair()
    link = Link(ours, cpu_seconds=5.0, wall_seconds=5.0)
    link.load("", "", "f", 0, [])
    say(theirs, child.READY, b"")
    say(theirs, child.DONE, b"")
    return link, theirs


def say(sock: socket.socket, kind: int, data: bytes) -> None:
    child.send(sock, kind, data)


class Shelved:
    """A value that a child says is an object of its own: of this kind, under this number."""

    def __init__(self, kind: str, number: int = 0, label: str = "A") -> None:
        self.handle = codec.Handle(number, kind, label)


def answering(*answers: object) -> tuple[Link, list[tuple[object, ...]]]:
    """A child that gives these answers, one to each call; the list grows by each call as it was asked."""
    link, theirs = conversation()
    asked: list[tuple[object, ...]] = []

    def shelve(value: object) -> codec.Handle:
        assert isinstance(value, Shelved), f"no plain data: {value!r}"
        return value.handle

    def speak() -> None:
        with contextlib.suppress(EOFError, OSError):  # the test is over
            hear(theirs)  # the program
            for answer in answers:
                asked.append(decode.decode_trusted(hear(theirs), lambda handle: handle))
                say(theirs, child.VALUE, codec.encode(answer, shelve))

    threading.Thread(target=speak, daemon=True).start()
    return link, asked


def hear(sock: socket.socket) -> bytes:
    """The judge's next message. Not by `child`'s own reader, which ends its process when the judge hangs up."""
    size, _ = child.HEAD.unpack(_exactly(sock, child.HEAD.size))
    return _exactly(sock, size)


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) < size:
        raise EOFError
    return data
