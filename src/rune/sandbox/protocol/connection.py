"""The judge's end of the wall: one conversation with one child, under clocks that a candidate cannot reach.

CPU time is read from the kernel by process id; wall time is charged without the time the candidate spent waiting
for a processor. Whatever ends a conversation is kept as its `finding`: raised again at every later use, and looked at
when the test is over, so a test that catches everything can neither swallow it nor go on with another call's answer.
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

from rune.sandbox.protocol import child, codec, decode
from rune.sandbox.protocol.remote import NOTHING, Remote, short
from rune.types import FailureKind

_TICK = 0.1  # seconds between looks at the clocks while a candidate computes
_CREDENTIALS = struct.Struct("3i")
_LENGTH = struct.Struct("<I")
_NAME = 60  # characters of an exception's name
_LABEL = 60  # characters of a type's name in messages
_ERROR_BYTES = 1 << 16  # of a description of an exception; an honest one is half as long at most
_SHELF = 10_000  # objects that may stay in a child
_KINDS = ("iterator", "callable", "class", "object")


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
    return child.HEAD.pack(len(data), kind) + data


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
        self._inbox = b""
        self._ready = False  # the child has said its first word
        self._loading = False  # the answer to the program itself is still to come
        self._ahead: list[bytes] = []  # calls that were sent with the program, in order
        self.used = 0  # of those, how many the test has made so far
        self._answers = 0  # values that the program has given
        self._own = False  # whether what is decoded now belongs to an object that the test itself made
        self._walked: set[int] = set()  # iterators that have come to their end
        self.finding: Stop | Broken | Diverged | None = None
        self.closed = False  # the test is over: what explains its end asks nothing more
        self.last_call: tuple[str, tuple[object, ...], dict[str, object]] | None = None
        self.last_result: object = NOTHING
        self.last_error: BaseException | None = None
        self.last_trace = ""
        self.last_raised = ""  # `last_error`'s name, as the program says it
        seconds = struct.pack("@ll", 0, int(_TICK * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    # -- what the judge does

    def story(self) -> str:
        """The last call and what came of it: `candidate([1.0], 0.5) returned True`; empty if there was none."""
        if self.last_call is None or self._loading:
            return ""
        name, args, options = self.last_call
        parts = [short(a) for a in args] + [f"{k}={short(v)}" for k, v in options.items()]
        call = f"{name}({', '.join(parts)})"
        return call if self.last_result is NOTHING else f"{call} returned {short(self.last_result)}"

    def load(self, prelude: str, code: str, entry_point: str, seed: int, ahead: list[bytes]) -> None:
        """Send the program, and behind it the calls that this test makes whatever the answers (see `ahead`).

        So most of the conversation needs no waiting. The candidate learns inputs earlier than it would, never an
        expected value. Each answer is used only if the call that the test really makes is byte for byte the one that
        was sent.
        """
        data = codec.encode_trusted((prelude, code, entry_point, seed), _no_object)
        message = _frame(child.LOAD, data)
        if ahead:
            self._ahead = ahead
            message += _frame(child.SCRIPT, b"".join(_LENGTH.pack(len(call)) + call for call in ahead))
        self._loading = True
        self._send(message)

    def finish(self) -> None:
        """The end of the test: the program has at least loaded, and has said nothing that it was not asked for.

        Raises the finding, if there is one.
        """
        if self.finding is None and self._loading:
            self._guarded(self._loaded)
        if self.finding is None:
            self._guarded(self._nothing_left)
        if self.finding is not None:
            raise self.finding

    def operate(self, operation: str, target: object, /, *args: object, **options: object) -> Any:
        """One operation on the candidate's side. Raises the finding that ends it, or what the candidate raised."""
        return self._guarded(self._operate, False, operation, target, args, options)

    def construct(self, operation: str, target: object, /, *args: object, **options: object) -> Any:
        """The same on an object that the test makes of the program's own classes; what comes back may be used too."""
        return self._guarded(self._operate, True, operation, target, args, options)

    def walk(self, remote: Remote) -> Any:
        """The next element of an iterator. Raises StopIteration at its end, and from then on without asking."""
        number = remote._handle.number
        if number in self._walked:
            if self.finding is not None:
                raise self.finding
            raise StopIteration
        item = self._guarded(self._operate, remote._own, "next", remote, (), {})
        if item == () and type(item) is tuple:
            self._walked.add(number)
            raise StopIteration
        if type(item) is not tuple or len(item) != 1:
            raise self.protocol("an element that is none")
        return item[0]

    def protocol(self, what: str) -> Stop:
        """The finding that the program did not answer as programs do."""
        return self.stop(FailureKind.PROTOCOL, f"the program sent what is no answer: {what}")

    def stop(self, kind: FailureKind, text: str, *, raised: str = "", unsure: bool = False) -> Stop:
        """Ends the conversation with this finding, unless there is one already: the first stands."""
        found = Stop(kind, text, raised=raised, unsure=unsure)
        if self.finding is None:
            self.finding = found
        return found

    def broken(self, text: str) -> Broken:
        """Ends the conversation: not the program's fault."""
        found = Broken(text)
        if self.finding is None:
            self.finding = found
        return found

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

    # -- requests and answers

    def _guarded(self, step: Any, *args: Any) -> Any:
        """`step`, after which nothing more is said if it was cut off half-way: answers would be taken for others."""
        if self.closed:
            raise RuntimeError("the test is over")
        if self.finding is not None:
            raise self.finding
        try:
            return step(*args)
        except MemoryError as error:
            if error is self.last_error:
                raise
            text = "the test ran out of memory with what the program returned"
            raise self.stop(FailureKind.MEMORY_LIMIT, text) from None
        except BaseException as error:
            if error is self.last_error or self.finding is not None:
                raise
            text = f"what the program returned could not be read: {type(error).__name__}"
            raise self.stop(FailureKind.BAD_VALUE, text) from None

    def _operate(
        self, own: bool, operation: str, target: object, args: tuple[object, ...], options: dict[str, object]
    ) -> Any:
        where: object = target if isinstance(target, str) else (target,)
        request = self._encode((operation, where, args, options))
        if self.used < len(self._ahead):
            if self._ahead[self.used] != request:
                self.finding = Diverged()
                raise self.finding
            self.used += 1
        else:
            if not self._loading:
                self._silent()
            self._send(_frame(child.CALL, request))
        if self._loading:
            self._loaded()
        kind, data = self._receive()
        if kind == child.ERROR:
            raise self._error(data)
        if kind != child.VALUE:
            raise self.protocol(f"a message of kind {kind} in answer to a call")
        self._own = own
        try:
            value = decode.decode(data, self._remote)
        except codec.CodecError as error:
            text = f"the program returned something that cannot be read: {error}"
            raise self.stop(FailureKind.BAD_VALUE, text) from None
        self._answers += 1
        return value

    def _loaded(self) -> None:
        kind, data = self._receive()
        if kind == child.ERROR:
            raise self._error(data)
        if kind != child.DONE or data:
            raise self.protocol(f"a message of kind {kind} after loading")
        self._loading = False

    def _silent(self) -> None:
        """Before a question: an answer that is there already answers nothing."""
        if self._inbox or self._arrived():
            raise self.protocol("an answer before the call")

    def _nothing_left(self) -> None:
        """After the test: what is there may only be answers to calls that were sent ahead and not made.

        One call is the last that a program hears of, so its word after that comes when nobody waits for it; what has
        come by now is looked at.
        """
        self._arrived()
        for _ in range(len(self._ahead) - self.used):
            size, kind = child.HEAD.unpack_from(self._inbox) if len(self._inbox) >= child.HEAD.size else (-1, 0)
            if size < 0 or len(self._inbox) < child.HEAD.size + size:
                return
            if kind not in (child.VALUE, child.ERROR):
                raise self.protocol(f"a message of kind {kind} in answer to a call")
            self._inbox = self._inbox[child.HEAD.size + size :]
        if self._inbox:
            raise self.protocol("more answers than calls")

    def _encode(self, request: object) -> bytes:
        try:
            return codec.encode_trusted(request, self._hold)
        except codec.CodecError as error:
            # The test's own data would not fit with any program: a limit is only met with what this one returned.
            if not self._answers:
                raise self.broken(f"the test passes a value that cannot cross: {error}") from None
            text = f"the program returned something that cannot be passed on: {error}"
            raise self.stop(FailureKind.BAD_VALUE, text) from None

    def _hold(self, value: object) -> codec.Handle:
        if isinstance(value, Remote) and value._link is self:
            return value._handle
        raise self.broken(f"the test passes a value that cannot cross: a {type(value).__name__} is no plain data")

    def _remote(self, handle: codec.Handle) -> Remote:
        if handle.kind not in _KINDS or not 0 <= handle.number < _SHELF:
            raise self.protocol("an object of no known kind")
        return Remote(self, handle._replace(label=handle.label[:_LABEL]), own=self._own)

    # -- frames

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
            with contextlib.suppress(OSError):  # nothing there yet, or nobody: the next attempt to send says which
                self._inbox += self._recv(1 << 16, socket.MSG_DONTWAIT)

    def _arrived(self) -> bool:
        """Whether anything is there that nobody has read; it is in the inbox then."""
        try:
            part = self._recv(1 << 16, socket.MSG_DONTWAIT)
        except OSError:
            return False
        self._inbox += part
        return bool(part)

    def _receive(self) -> tuple[int, bytes]:
        want = child.HEAD.size
        kind = size = -1
        while True:
            have = len(self._inbox)
            if have >= want:
                if size < 0:
                    size, kind = child.HEAD.unpack_from(self._inbox)
                    if size > codec.MAX_BYTES:
                        text = f"the program returned {size} bytes; at most 64 MiB fit"
                        raise self.stop(FailureKind.BAD_VALUE, text)
                    want += size
                    continue
                data = self._inbox[child.HEAD.size : want]
                self._inbox = self._inbox[want:]
                break
            self._fill(want - have)
        if not self._ready:
            # The child speaks first, before it has read any program: only then can the machinery be at fault.
            if kind != child.READY or data:
                raise self.broken(data[:1000].decode("utf-8", "replace"))
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

    # -- clocks

    def _look(self) -> None:
        """Called each tick while the child keeps us waiting."""
        wall = self._wall()
        self._next_look = wall + _TICK
        cpu = self.cpu_seconds()
        if cpu >= self._cpu_limit:
            text = f"no answer after {self._cpu_limit:g} s of CPU time"
            raise self.stop(FailureKind.TIMEOUT, text, unsure=not self._alone and self._disturbed(cpu))
        if wall >= 10 * max(self._wall_limit, self._cpu_limit):
            raise self.stop(FailureKind.TIMEOUT, f"no answer after {wall:.0f} s", unsure=True)
        if wall >= self._wall_limit and wall - self._queued() >= self._wall_limit:
            text = f"no answer after {self._wall_limit:g} s ({cpu:.1f} s computing)"
            raise self.stop(FailureKind.TIMEOUT, text, unsure=True)

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

    def _died(self) -> Stop:
        return self.stop(FailureKind.CRASH, "the program's process ended before it answered")

    # -- exceptions of the candidate

    def _error(self, data: bytes) -> BaseException:
        """The exception that the candidate raised, as one that the test can catch; or the finding that ends it."""
        description = _described(data)
        if description is None:
            return self.protocol("an exception that is none")
        about, name, base, message, trace = description
        kind = _ABOUT[about]
        if kind is FailureKind.BAD_VALUE:
            return self.stop(kind, f"the program returned something that cannot be read: {message}")
        name = plain_name(name)
        if self._loading or kind is not FailureKind.RAISED:
            return self.stop(kind, trace, raised=name if kind is FailureKind.RAISED else "")
        error = _exception(name, base, message)
        self.last_error, self.last_trace, self.last_raised = error, trace, name
        return error


def _no_object(value: object) -> codec.Handle:
    raise Broken(f"a {type(value).__name__} is no part of a program")


# What the child says an exception is about → our word.
_ABOUT = (FailureKind.RAISED, FailureKind.BAD_VALUE, FailureKind.MEMORY_LIMIT, FailureKind.MISSING_ENTRY_POINT)


def _described(data: bytes) -> tuple[int, str, str, str, str] | None:
    """The five parts of an ERROR (see `child._describe`), or None if it has not exactly those."""
    if len(data) > _ERROR_BYTES:
        return None
    try:
        parts = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if type(parts) is not list or [type(part) for part in parts] != [int, str, str, str, str]:
        return None
    return tuple(parts) if 0 <= parts[0] < len(_ABOUT) else None


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
