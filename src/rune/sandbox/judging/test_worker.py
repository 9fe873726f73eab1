"""A lane: one process that runs tests against candidates, one program after another. It never runs their code.

The lane starts its box (a fork server, see `fork_server`) and speaks with the scorer over a socket in JSON lines. A
program costs it one conversation with one child of the box; the test itself runs here, in a fresh namespace,
compiled once per task. What the lane cannot do (the box is gone, a value of the test cannot cross) it reports
as broken, and the scorer starts another lane; it is never a verdict.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections import deque
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, NamedTuple

from rune.sandbox.isolation import fork_server
from rune.sandbox.protocol import ahead as _ahead
from rune.sandbox.protocol import tests
from rune.sandbox.protocol.connection import Broken, Diverged, Link, Stop
from rune.sandbox.protocol.remote import short
from rune.types import FailureKind, Outcome

ERROR_CHARS = 1500
_START_SECONDS = 60.0
_FORESEE_SECONDS = 1.0  # of CPU time, once a test
_EXPLAIN_SECONDS = 5.0
_GARBAGE = 64 << 20  # bytes of address space that one program may leave to the next


class _Alarm:
    """Ends what this process computes itself. Virtual time: waiting for a program does not count."""

    def __init__(self) -> None:
        self._ring: Callable[[], BaseException] | None = None
        signal.signal(signal.SIGPROF, self._rings)

    def run(
        self, seconds: float, ring: Callable[[], BaseException], step: Callable[[], object]
    ) -> BaseException | None:
        """Do `step`; what it raised, whatever it was, or None. After `seconds` it is raised what `ring` gives, and
        again every second if it is not the end."""
        self._ring = ring
        signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
        try:
            step()
        except BaseException as error:
            return error
        finally:
            self._ring = None
            signal.setitimer(signal.ITIMER_PROF, 0)
        return None

    def _rings(self, _: int, frame: FrameType | None) -> None:
        # Never in `run` itself, which is to return whatever happens.
        if self._ring is not None and frame is not None and frame.f_code is not _Alarm.run.__code__:
            raise self._ring()


class _Task(NamedTuple):
    """All that a lane knows of one test."""

    test: tests.Test
    prelude_text: str
    prelude: CodeType | None
    entry_point: str
    seed: bytes  # of the test's own random numbers: nothing that a program is told or could work out
    program_seed: int  # of the program's
    script: _ahead.Script


class _Box:
    """The fork server's handle: gives one fresh child after another."""

    def __init__(self, command: list[str]) -> None:
        ours, theirs = socket.socketpair()
        number = theirs.fileno()
        line = [part.replace("{control}", str(number)) for part in command]
        # A Python that was moved finds its shared library by that variable; programs do not see it.
        environment = {"PYTHONHASHSEED": "0"} | {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
        self._process = subprocess.Popen(
            line, pass_fds=[number], env=environment, stdin=subprocess.DEVNULL, close_fds=True
        )
        theirs.close()
        self._control = ours
        self._control.settimeout(_START_SECONDS)
        self._children: deque[socket.socket] = deque()
        self._ending = False
        self.last = (0, 0.0)  # wait status and CPU seconds of the child before
        (size,) = struct.unpack("<I", self._exactly(4))
        hello = json.loads(self._exactly(size))
        if "broken" in hello:
            raise Broken(str(hello["broken"]))
        self.layers: list[str] = hello["layers"]

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._control.recv(size - len(data))
            except OSError as error:
                raise Broken(f"the box does not answer: {error}") from None
            if not part:
                raise Broken("the box closed its door")
            data += part
        return data

    def _await(self) -> None:
        """Read until the last child has ended, its folder is clean, and another one is there."""
        while self._ending or not self._children:
            try:
                tag, handles, _, _ = socket.recv_fds(self._control, 1, 1)
            except OSError as error:
                raise Broken(f"the box does not answer: {error}") from None
            if tag == fork_server.CHILD and handles:
                self._children.append(socket.socket(fileno=handles[0]))
            elif tag == fork_server.ENDED:
                self.last = fork_server.STATUS.unpack(self._exactly(fork_server.STATUS.size))
                self._ending = False
            else:
                raise Broken("the box closed its door")

    def child(self) -> socket.socket:
        """The waiting child's socket."""
        self._await()
        return self._children[0]

    def next(self) -> None:
        """The last program dies; another child waits already, or is made while we go on."""
        self._children.popleft().close()
        self._ending = True
        try:
            self._control.send(b"N")
        except OSError as error:
            raise Broken(f"the box is gone: {error}") from None

    def ended(self) -> tuple[int, float]:
        """After `next`: how the last child ended, as a wait status, and its CPU seconds."""
        self._await()
        return self.last

    def close(self) -> None:
        """The server ends its children and itself; waited for, so that their CPU time counts as ours."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)


class _Worker:
    def __init__(self, options: dict[str, Any], key: bytes) -> None:
        self.options = options
        self.key = key
        self.box = _Box(options["box"])
        self.alarm = _Alarm()
        self.texts: dict[str, str] = {}
        self.tasks: dict[tuple[str, str, str], _Task] = {}
        self.modules = set(sys.modules)
        self.size = _address_space()

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        task = self._task(job)
        ahead = task.script.calls
        link, error = self._converse(task, job, ahead)
        if isinstance(link.finding, Diverged):
            task.script.diverged(link.used)
            self.box.next()
            link, error = self._converse(task, job, [])
        elif ahead:
            task.script.held()
        answer = self._verdict(task, link, error)
        del error  # and with it all that the test had in hand
        cpu = link.cpu_seconds()
        self.box.next()
        if answer["kind"] is FailureKind.CRASH:
            status, cpu = self.box.ended()
            answer["error"] = _crash(status)
            # A program can send itself that signal; the time it used is the kernel's word.
            if status & 0x7F == signal.SIGXCPU and cpu >= self.options["cpu_seconds"]:
                text = f"no answer after {self.options['cpu_seconds']:g} s of CPU time"
                answer = _failure(FailureKind.TIMEOUT, text)
        answer.update(cpu=round(cpu, 6), wall=round(time.monotonic() - began, 6))
        if len(sys.modules) != len(self.modules):
            self._forget_modules()
        del link
        self._forget_values()
        return answer

    def _forget_values(self) -> None:
        """What one program returned must not be missing in the memory for the next.

        A test's namespace and a conversation are cycles, with an answer of up to a gigabyte in them; the collector
        counts objects, not bytes, and could leave a dozen such lying until a right answer finds no room.
        """
        size = _address_space()
        if size > self.size + _GARBAGE:
            gc.collect()
            size = _address_space()
        self.size = size

    def _forget_modules(self) -> None:
        """What a prelude put into sys.modules must not be there for the next task; real modules stay."""
        for name in set(sys.modules) - self.modules:
            if name not in sys.stdlib_module_names and getattr(sys.modules[name], "__file__", None) is None:
                del sys.modules[name]
        self.modules = set(sys.modules)

    def _converse(self, task: _Task, job: dict[str, Any], ahead: list[bytes]) -> tuple[Link, BaseException | None]:
        """The test against the program: the conversation and what the test raised, None if it returned."""
        limits = {name: self.options[name] for name in ("cpu_seconds", "wall_seconds")}
        link = Link(self.box.child(), **limits, alone=job.get("alone", False))

        def test() -> None:
            random.seed(task.seed)
            link.load(task.prelude_text, job["code"], task.entry_point, task.program_seed, ahead)
            tests.run(task.test, link, task.prelude, task.entry_point)
            link.finish()

        def too_slow() -> Stop:
            return link.stop(FailureKind.TIMEOUT, "the test did not finish with what the program returned")

        return link, self.alarm.run(self.options["test_seconds"], too_slow, test)

    def _verdict(self, task: _Task, link: Link, error: BaseException | None) -> dict[str, Any]:
        """What is found on the link stands, whatever the test did with it."""
        link.closed = True
        finding = link.finding if link.finding is not None else error
        if isinstance(finding, Broken):
            raise finding
        if isinstance(finding, Stop):
            text = self._explained(lambda: _join(link.story(), finding.text), finding.text)
            return _failure(finding.kind, text, raised=finding.raised, settled=not finding.unsure)
        if finding is None:
            # The one place from which a pass can come: the test has returned, and nothing was found.
            return {"outcome": Outcome.PASSED, "kind": FailureKind.NONE, "raised": "", "error": "", "settled": True}
        assert error is not None
        if error is link.last_error:
            text = self._explained(lambda: _join(link.story(), link.last_trace), link.last_trace)
            return _failure(FailureKind.RAISED, text, raised=link.last_raised)
        if isinstance(error, MemoryError):
            return _failure(FailureKind.MEMORY_LIMIT, "the test ran out of memory with what the program returned")
        plain = f"check: the test raised {type(error).__name__}"
        return _failure(FailureKind.WRONG_ANSWER, self._explained(lambda: tests.explain(task.test, link, error), plain))

    def _explained(self, explain: Callable[[], str], plain: str) -> str:
        """A text about values that a program chose; `plain` if it cannot be made, or not in time."""
        texts: list[str] = []
        self.alarm.run(_EXPLAIN_SECONDS, TimeoutError, lambda: texts.append(clean(explain())))
        return texts[0] if texts else clean(plain)

    def _task(self, job: dict[str, Any]) -> _Task:
        name = (job["test"], job["prelude"], job["entry_point"])
        if name not in self.tasks:
            self.tasks[name] = self._prepared(self.texts[job["test"]], self.texts[job["prelude"]], job["entry_point"])
        return self.tasks[name]

    def _prepared(self, source: str, prelude: str, entry_point: str) -> _Task:
        try:
            test = tests.prepare(source, entry_point)
            before = compile(prelude, "<prelude>", "exec") if prelude else None
        except (SyntaxError, ValueError, RecursionError) as error:
            raise Broken(f"the test for {entry_point} does not compile: {error}") from None
        text = source.encode("utf-8", "replace")
        seed = hashlib.blake2b(text, key=self.key, digest_size=16).digest()
        script = _ahead.Script()

        def foresee() -> None:
            random.seed(seed)
            _ahead.foresee(script, test, before, entry_point)

        self.alarm.run(_FORESEE_SECONDS, _ahead.Enough, foresee)
        return _Task(test, prelude, before, entry_point, seed, zlib.crc32(text), script)


def _address_space() -> int:
    """Bytes of it that this process has; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _failure(kind: FailureKind, error: str, *, raised: str = "", settled: bool = True) -> dict[str, Any]:
    """What the scorer is told of a program that did not pass."""
    outcome = Outcome.TIMED_OUT if kind is FailureKind.TIMEOUT else Outcome.FAILED
    error = error or f"the program did not pass ({kind.value})"  # a child may describe an exception with no text at all
    return {"outcome": outcome, "kind": kind, "raised": raised, "error": error, "settled": settled}


def _join(story: str, text: str) -> str:
    return f"{story}:\n{text}" if story else text


def _crash(status: int) -> str:
    number = status & 0x7F
    if number:
        with contextlib.suppress(ValueError):
            return f"the program's process was killed by {signal.Signals(number).name}"
        return f"the program's process was killed by signal {number}"
    return f"the program ended its process (exit code {status >> 8}) before the test was over"


# A program chooses this text, and a terminal obeys it: it could hide lines, or rename the window.
_CONTROLS = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}


def clean(text: str, limit: int = ERROR_CHARS) -> str:
    """Printable in any file and terminal: no lone surrogates, no control characters, at most `limit` characters."""
    if len(text) > 2 * limit:  # before anything is made of it: a text may be as large as an answer
        text = text[:limit] + text[-limit:]
    text = text.encode("utf-8", "replace").decode().translate(_CONTROLS)
    return text if len(text) <= limit else f"{text[: limit // 3]} … {text[-(2 * limit // 3 - 3) :]}"


def main() -> None:
    """The lane's loop: a JSON line in, a JSON line out, in order. Ends with the scorer."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    sys.path += options["site"]  # tests may use numpy; `site` itself is not run, it costs more than all the rest
    if options["die_with_parent"] and sys.platform == "linux":
        from rune.sandbox.isolation import seccomp

        seccomp.die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the scorer decides; it closes the socket
    reader = sock.makefile("r", encoding="utf-8", newline="\n")
    try:
        lane = _Worker(options, bytes.fromhex(json.loads(reader.readline())["key"]))
        _limit_memory(options["test_mb"] << 20)
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)  # tests leave little that is cyclic, and a lane's life is long
        _answer(sock, {"layers": lane.box.layers})
        for line in reader:
            job = json.loads(line)
            lane.texts.update(job.get("texts", {}))
            answer = lane.judge(job)
            _answer(sock, answer)
        lane.box.close()
    except (Broken, OSError) as error:
        with contextlib.suppress(OSError):
            _answer(sock, {"broken": clean(short(str(error), 500))})
    os._exit(0)


def _limit_memory(size: int) -> None:
    """What a program returns is small; what a test makes of it (`list(range(10**9))`) must not be the machine's end.

    The soft limit alone, and after the box has started: the box has limits of its own.
    """
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (size if hard < 0 else min(size, hard), hard))


def _answer(sock: socket.socket, message: dict[str, Any]) -> None:
    sock.sendall(json.dumps(message).encode() + b"\n")
