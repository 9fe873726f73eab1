"""The judge's end of the wall: one conversation with one child, under clocks that a candidate cannot reach.

CPU time is read from the kernel by process id; wall time is charged without the time the candidate spent waiting
for a processor. A candidate that is too slow, dies, or breaks the protocol ends the test at once; that finding
stands whatever the test does with the exception.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import socket
import struct
import time
from typing import Any

from rune.sandbox import _child, _codec, _decode
from rune.sandbox._remote import NOTHING, Remote, short
from rune.types import FailureKind

_TICK = 0.1  # seconds between looks at the clocks while a candidate computes
_CREDENTIALS = struct.Struct("3i")
_LENGTH = struct.Struct("<I")
_NAME = 60  # characters of an exception's name
_AHEAD_BYTES = 1 << 17  # of calls that are sent with a program


class Stop(BaseException):
    """The conversation is over. `kind` and `text` are the finding."""

    def __init__(self, kind: FailureKind, text: str, *, raised: str = "", unsure: bool = False) -> None:
        super().__init__(kind, text)
        self.kind = kind
        self.text = text
        self.raised = raised  # the program's name for its exception, as `plain_name` leaves it
        self.unsure = unsure  # a timeout that may be the machine's: to be run again, alone


class Broken(Exception):
    """The machinery failed, not the program."""


class Diverged(BaseException):
    """This test asked for something else than was sent ahead; the program starts again, call by call."""


def _frame(kind: int, data: bytes) -> bytes:
    return _child.HEAD.pack(len(data), kind) + data


class Link:
    """One conversation with one child. All limits are for the whole of it."""

    def __init__(self, sock: socket.socket, *, cpu_seconds: float, wall_seconds: float, alone: bool = False) -> None:
        self._sock = sock
        self._alone = alone  # nothing else of ours runs: CPU time that is used up now is used up for good
        self._cpu_limit = cpu_seconds
        self._wall_limit = wall_seconds
        self._waited = 0.0
        self._began = 0.0
        self._next_look = _TICK
        self._pid = 0
        self._ready = False
        self._loading = False
        self.finding: Stop | None = None
        self.last_call: tuple[str, tuple[object, ...], dict[str, object]] | None = None
        self.last_result: object = NOTHING
        self._inbox = b""
        self._ahead: list[bytes] = []  # calls that were sent with the program, in order
        self.asked: list[bytes] | None = []  # calls made so far; None once one was no plain call
        self._asked_bytes = 0
        self.last_error: BaseException | None = None
        self.last_trace = ""
        self.last_raised = ""  # `last_error`'s name, as the program says it
        seconds = struct.pack("@ll", 0, int(_TICK * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    # -- what the judge does

    def story(self) -> str:
        """The last call and what came of it: `candidate([1.0], 0.5) returned True`; empty if there was none."""
        if self.last_call is None:
            return ""
        name, args, options = self.last_call
        parts = [short(a) for a in args] + [f"{k}={short(v)}" for k, v in options.items()]
        call = f"{name}({', '.join(parts)})"
        return call if self.last_result is NOTHING else f"{call} returned {short(self.last_result)}"

    def load(self, prelude: str, code: str, entry_point: str, seed: int, ahead: list[bytes]) -> None:
        """Send the program, and behind it the calls that this test made last time.

        A test makes the same calls whoever answers (its randomness is seeded), so most of the conversation needs
        no waiting. The candidate learns inputs earlier than it would, never an expected value. Each answer is
        used only if the call that the test really makes is byte for byte the one that was sent.
        """
        data = _codec.encode_trusted((prelude, code, entry_point, seed), self._hold)
        message = _frame(_child.LOAD, data)
        if ahead:
            self._ahead = ahead
            message += _frame(_child.SCRIPT, b"".join(_LENGTH.pack(len(call)) + call for call in ahead))
        self._send(message)
        self._loading = True

    def finish(self) -> None:
        """The program must at least have loaded. Raises Stop or the program's own exception."""
        if self._loading:
            self._loaded()

    def operate(self, operation: str, target: object, *args: object, **options: object) -> Any:
        """One operation on the candidate's side. Raises Stop, or what the candidate raised."""
        if self.finding is not None:
            raise self.finding
        where: object = target if isinstance(target, str) else (target,)
        return self._ask(self._encode((operation, where, args, options)), plain=operation == "call")

    def cpu_seconds(self) -> float:
        """CPU time of the child so far, of all its threads; 0 where the kernel does not say."""
        if not self._pid:
            return 0.0
        try:
            return time.clock_gettime((~self._pid << 3) | 2)
        except OSError:
            return 0.0

    @property
    def waited(self) -> float:
        """Wall seconds spent waiting for the child."""
        return self._waited

    # -- frames

    def _ask(self, request: bytes, *, plain: bool) -> Any:
        self._remember(request, plain)
        number = len(self.asked) - 1 if self.asked is not None else len(self._ahead)
        if number < len(self._ahead):
            if self._ahead[number] != request:
                raise Diverged
        elif self.asked is None and self._ahead:
            raise Diverged
        else:
            self._send(_frame(_child.CALL, request))
        if self._loading:
            self._loaded()
        answer, data = self._receive()
        if answer == _child.ERROR:
            raise self._error(data)
        if answer != _child.VALUE:
            raise self._stop(FailureKind.PROTOCOL, "the program answered something that is no answer")
        return self._decode(data)

    def _remember(self, request: bytes, plain: bool) -> None:
        if self.asked is not None and plain:
            self._asked_bytes += len(request)
            if self._asked_bytes <= _AHEAD_BYTES or len(self.asked) < len(self._ahead):
                self.asked.append(request)
            else:
                self.asked.append(b"")
        else:
            self.asked = None

    def _loaded(self) -> None:
        self._loading = False
        answer, data = self._receive()
        if answer == _child.ERROR:
            error = self._error(data, loading=True)
            assert self.finding is not None
            raise self.finding from error
        if answer != _child.DONE:
            raise self._stop(FailureKind.PROTOCOL, "the program answered something that is no answer")

    def _encode(self, request: object) -> bytes:
        try:
            return _codec.encode_trusted(request, self._hold)
        except _codec.CodecError as error:
            raise Broken(f"the test passes a value that cannot cross: {error}") from None

    def _decode(self, data: bytes) -> Any:
        try:
            return _decode.decode(data, lambda handle: Remote(self, handle))
        except _codec.CodecError as error:
            raise self._stop(
                FailureKind.BAD_VALUE, f"the program returned something that cannot be read: {error}"
            ) from None

    def _hold(self, value: object) -> _codec.Handle:
        if isinstance(value, Remote):
            self.asked = None
            return value._handle
        raise _codec.CodecError(f"a {type(value).__name__} is no plain data")

    def _send(self, message: bytes) -> None:
        view = memoryview(message)
        self._began = time.monotonic()
        try:
            while view:
                try:
                    view = view[self._sock.send(view) :]
                except BlockingIOError:
                    self._meet()
                    self._look()
                except OSError:
                    raise self._died() from None
        finally:
            self._pause()

    def _meet(self) -> None:
        """Whose clock to read: the child's first word tells, and one that does not listen may have said it already."""
        if not self._pid:
            with contextlib.suppress(BlockingIOError):
                self._inbox += self._recv(1 << 16, socket.MSG_DONTWAIT)

    def _receive(self) -> tuple[int, bytes]:
        want = _child.HEAD.size
        kind = size = -1
        while True:
            have = len(self._inbox)
            if have >= want:
                if size < 0:
                    size, kind = _child.HEAD.unpack_from(self._inbox)
                    if size > _codec.MAX_BYTES:
                        raise self._stop(
                            FailureKind.BAD_VALUE, f"the program returned {size} bytes; at most 64 MiB fit"
                        )
                    want += size
                    continue
                data = self._inbox[_child.HEAD.size : want]
                self._inbox = self._inbox[want:]
                break
            self._fill(want - have)
        if not self._ready:
            # The child speaks first, before it has read any program: only then can the machinery be at fault.
            if kind != _child.READY:
                raise Broken(data.decode("utf-8", "replace"))
            self._ready = True
            return self._receive()
        return kind, data

    def _fill(self, size: int) -> None:
        """At least `size` more bytes into the inbox, and whatever else has come."""
        parts = [self._inbox]
        self._began = time.monotonic()
        try:
            while size > 0:
                try:
                    part = self._recv(max(1 << 16, min(size, 1 << 20)))
                except BlockingIOError:
                    self._look()
                    continue
                except OSError:
                    raise self._died() from None
                if not part:
                    raise self._died()
                parts.append(part)
                size -= len(part)
                # One who says a little now and then is not waited for any longer than one who is silent.
                if self._wall() >= self._next_look:
                    self._look()
        finally:
            self._pause()
        self._inbox = b"".join(parts)

    def _pause(self) -> None:
        self._waited = self._wall()
        self._began = 0.0

    def _wall(self) -> float:
        """Seconds spent waiting for the child, now included."""
        return self._waited + (time.monotonic() - self._began if self._began else 0.0)

    def _recv(self, size: int, flags: int = 0) -> bytes:
        if self._pid or not hasattr(socket, "SCM_CREDENTIALS"):
            return self._sock.recv(size, flags)
        # The first bytes carry the child's process id as the kernel knows it. The buffer has room for nothing
        # else, so no descriptor can be slipped in.
        data, extra, _, _ = self._sock.recvmsg(size, socket.CMSG_SPACE(_CREDENTIALS.size), flags)
        for level, kind, content in extra:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                self._pid = _CREDENTIALS.unpack(content)[0]
        return data

    # -- findings

    def _look(self) -> None:
        """Called each tick while the child keeps us waiting."""
        wall = self._wall()
        self._next_look = wall + _TICK
        cpu = self.cpu_seconds()
        if cpu >= self._cpu_limit:
            text = f"no answer after {self._cpu_limit:g} s of CPU time"
            raise self._stop(FailureKind.TIMEOUT, text, unsure=not self._alone and self._disturbed(cpu))
        if wall >= 10 * max(self._wall_limit, self._cpu_limit):
            raise self._stop(FailureKind.TIMEOUT, f"no answer after {wall:.0f} s", unsure=True)
        if wall >= self._wall_limit and wall - self._queued() >= self._wall_limit:
            raise self._stop(
                FailureKind.TIMEOUT, f"no answer after {self._wall_limit:g} s ({cpu:.1f} s computing)", unsure=True
            )

    def _disturbed(self, cpu: float) -> bool:
        """Whether CPU time may be the machine's: a processor shared with others, or memory that a host had to find."""
        return self._queued() > cpu / 4 or self._in_kernel() > cpu / 2

    def _in_kernel(self) -> float:
        """CPU seconds that the kernel spent for the child."""
        try:
            with open(f"/proc/{self._pid}/stat", "rb") as file:  # noqa: PTH123
                return int(file.read().rpartition(b")")[2].split()[12]) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError, ValueError):
            return 0.0

    def _queued(self) -> float:
        """Seconds the child was ready and had no processor."""
        try:
            with open(f"/proc/{self._pid}/schedstat", "rb") as file:  # noqa: PTH123
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def _stop(self, kind: FailureKind, text: str, *, raised: str = "", unsure: bool = False) -> Stop:
        self.finding = Stop(kind, text, raised=raised, unsure=unsure)
        return self.finding

    def _died(self) -> Stop:
        return self._stop(FailureKind.CRASH, "the program's process ended before it answered")

    def _error(self, data: bytes, *, loading: bool = False) -> BaseException:
        """The exception that the candidate raised, as one that the test can catch."""
        try:
            about, name, base, message, trace = json.loads(data)
            kind = _ABOUT[about]
            if type(about) is not int or not all(isinstance(part, str) for part in (name, base, message, trace)):
                raise ValueError
        except (ValueError, TypeError, LookupError, RecursionError):
            return self._stop(FailureKind.PROTOCOL, "the program answered something that is no answer")
        if kind is FailureKind.BAD_VALUE:
            return self._stop(kind, f"the program returned something that cannot be read: {message}")
        name = plain_name(name)
        if loading or kind is not FailureKind.RAISED:
            return self._stop(kind, trace, raised=name if kind is FailureKind.RAISED else "")
        error = _exception(name, base, message)
        self.last_error, self.last_trace, self.last_raised = error, trace, name
        return error


# What the child says an exception is about → our word.
_ABOUT = (FailureKind.RAISED, FailureKind.BAD_VALUE, FailureKind.MEMORY_LIMIT, FailureKind.MISSING_ENTRY_POINT)


def plain_name(name: str) -> str:
    """A name that a program chose, if it is a short plain identifier; else ""."""
    return name if len(name) <= _NAME and name.isascii() and name.isidentifier() else ""


# An end of iteration raised inside a candidate would end a loop of the test without a failure.
_ENDS = (StopIteration, StopAsyncIteration, GeneratorExit)


def _exception(name: str, base: str, message: str) -> BaseException:
    kind = getattr(builtins, base, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        kind = Exception
    if issubclass(kind, _ENDS):
        kind = RuntimeError
    if kind.__name__ != name:
        kind = type(name or "Exception", (kind,), {})
    try:
        return kind(message)
    except TypeError:  # UnicodeDecodeError and its like want more arguments
        return type(kind.__name__, (Exception,), {})(message)
