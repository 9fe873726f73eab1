"""A lane: one process that runs tests against candidates, one program after another. It never runs their code.

The lane starts its box (a fork server, see `_box`) and speaks with the scorer over a socket in JSON lines. A
program costs it one conversation with one child of the box; the test itself runs here, in a fresh namespace,
compiled once per task. What the lane cannot do (the box is gone, a value of the test cannot cross) it reports
as broken, and the scorer starts another lane; it is never a verdict.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
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
from typing import Any

from rune.sandbox import _box, _tests
from rune.sandbox._link import Broken, Diverged, Link, Stop
from rune.sandbox._remote import short
from rune.types import FailureKind, Outcome

ERROR_CHARS = 1500
_START_SECONDS = 60.0


class _TestTooSlow(BaseException):
    """Our own comparing took too long on what the program returned."""


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
            if tag == _box.CHILD and handles:
                self._children.append(socket.socket(fileno=handles[0]))
            elif tag == _box.ENDED:
                self.last = _box.STATUS.unpack(self._exactly(_box.STATUS.size))
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


class _Lane:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.box = _Box(options["box"])
        self.texts: dict[str, str] = {}
        self.tests: dict[tuple[str, str], _tests.Test] = {}
        self.scripts: dict[tuple[str, str], list[bytes]] = {}  # the calls each test makes, to be sent ahead
        self.modules = set(sys.modules)

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        began = time.monotonic()
        name = (job["test"], job["entry_point"])
        try:
            link, answer = self._converse(job, self.scripts.get(name, []))
        except Diverged:
            self.box.next()
            link, answer = self._converse(job, [])
        if link.asked is not None and len(link.asked) > len(self.scripts.get(name, ())):
            self.scripts[name] = list(itertools.takewhile(bool, link.asked))
        cpu = link.cpu_seconds()
        self.box.next()
        if answer["kind"] == FailureKind.CRASH:
            status, cpu = self.box.ended()
            answer["error"] = _crash(status)
            if status & 0x7F == signal.SIGXCPU:
                text = f"no answer after {self.options['cpu_seconds']:g} s of CPU time"
                answer.update(_failure(FailureKind.TIMEOUT, text))
        answer.update(cpu=round(cpu, 6), wall=round(time.monotonic() - began, 6))
        if len(sys.modules) != len(self.modules):
            self._forget_modules()
        return answer

    def _forget_modules(self) -> None:
        """What a prelude put into sys.modules must not be there for the next task; real modules stay."""
        for name in set(sys.modules) - self.modules:
            if name not in sys.stdlib_module_names and getattr(sys.modules[name], "__file__", None) is None:
                del sys.modules[name]
        self.modules = set(sys.modules)

    def _converse(self, job: dict[str, Any], ahead: list[bytes]) -> tuple[Link, dict[str, Any]]:
        limits = {name: self.options[name] for name in ("cpu_seconds", "wall_seconds")}
        link = Link(self.box.child(), **limits, alone=job.get("alone", False))
        return link, self._finding_of(link, job, ahead)

    def _finding_of(self, link: Link, job: dict[str, Any], ahead: list[bytes]) -> dict[str, Any]:
        prelude = self.texts[job["prelude"]]
        entry_point = job["entry_point"]
        source = self.texts[job["test"]]
        seed = zlib.crc32(source.encode("utf-8", "replace"))
        test = self._test(job["test"], source, entry_point)
        random.seed(seed)
        # Virtual time: only what this process computes counts, not the waiting.
        signal.setitimer(signal.ITIMER_PROF, self.options["test_seconds"])
        try:
            link.load(prelude, job["code"], entry_point, seed, ahead)
            _tests.run(test, link, compile(prelude, "<prelude>", "exec") if prelude else None, entry_point)
            link.finish()
        except Stop as stop:
            return self._finding(link, stop)
        except _TestTooSlow:
            link.finding = Stop(FailureKind.TIMEOUT, "the test did not finish with what the program returned")
            return self._finding(link, link.finding)
        except (Broken, Diverged):
            raise
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            if link.finding is not None:
                return self._finding(link, link.finding)
            if error is link.last_error:
                return _failure(FailureKind.RAISED, _join(link.story(), link.last_trace), raised=link.last_raised)
            if isinstance(error, MemoryError):
                text = "the test ran out of memory with what the program returned"
                return _failure(FailureKind.MEMORY_LIMIT, text)
            return _failure(FailureKind.WRONG_ANSWER, _tests.explain(test, link, error))
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        if link.finding is not None:  # the test swallowed it; it stands
            return self._finding(link, link.finding)
        # The test has returned and nothing was found: the one place from which a pass can come.
        return {"outcome": Outcome.PASSED, "kind": FailureKind.NONE, "raised": "", "error": "", "settled": True}

    def _finding(self, link: Link, stop: Stop) -> dict[str, Any]:
        story = link.story() if link.last_call is not None and not link._loading else ""
        return _failure(stop.kind, _join(story, stop.text), raised=stop.raised, settled=not stop.unsure)

    def _test(self, name: str, source: str, entry_point: str) -> _tests.Test:
        test = self.tests.get((name, entry_point))
        if test is None:
            try:
                test = _tests.prepare(source, entry_point)
            except (SyntaxError, ValueError, RecursionError) as error:
                raise Broken(f"the test for {entry_point} does not compile: {error}") from None
            self.tests[name, entry_point] = test
        return test


def _failure(kind: FailureKind, error: str, *, raised: str = "", settled: bool = True) -> dict[str, Any]:
    """What the scorer is told of a program that did not pass."""
    outcome = Outcome.TIMED_OUT if kind is FailureKind.TIMEOUT else Outcome.FAILED
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
    text = text.encode("utf-8", "replace").decode().translate(_CONTROLS)
    return text if len(text) <= limit else f"{text[: limit // 3]} … {text[-(2 * limit // 3 - 3) :]}"


def main() -> None:
    """The lane's loop: a JSON line in, a JSON line out, in order. Ends with the scorer."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    options = json.loads(sys.argv[2])
    sys.path += options["site"]  # tests may use numpy; `site` itself is not run, it costs more than all the rest
    if options["die_with_parent"] and sys.platform == "linux":
        from rune.sandbox import _seccomp

        _seccomp.die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the scorer decides; it closes the socket
    signal.signal(signal.SIGPROF, _too_slow)
    random.seed(0)
    reader = sock.makefile("r", encoding="utf-8", newline="\n")
    try:
        lane = _Lane(options)
        _limit_memory(options["test_mb"] << 20)
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)  # tests leave little that is cyclic, and a lane's life is long
        _answer(sock, {"layers": lane.box.layers})
        for line in reader:
            job = json.loads(line)
            lane.texts.update(job.get("texts", {}))
            answer = lane.judge(job)
            answer["error"] = clean(answer["error"])
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


def _too_slow(*_: object) -> None:
    raise _TestTooSlow


def _answer(sock: socket.socket, message: dict[str, Any]) -> None:
    sock.sendall(json.dumps(message).encode() + b"\n")
