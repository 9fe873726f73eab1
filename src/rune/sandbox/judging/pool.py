"""The scorer's side: lanes fed from an iterable, watched, and replaced when they break.

No thread and no helper process per sample: one selector over as many sockets as there are lanes. A lane holds
one program and has the next one waiting, so it never idles. The pool pulls from the iterable only when a lane
has room. Identical programs are judged once. A timeout that may be the machine's (see `connection`) is
run again alone, after all others, and only then counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rune.errors import SandboxError
from rune.sandbox.isolation.limits import Limits, below_floor, box_options, environment, python_command
from rune.sandbox.judging.commands import run as run_commands
from rune.types import Command, Execution, FailureKind, Finished, Outcome, Program

_TRIES = 3
_PIECE = 1 << 18  # bytes handed to the system at a time
_REMEMBERED = 4096  # verdicts kept for identical programs


class _Job:
    __slots__ = ("alone", "digest", "keys", "program", "tries")

    def __init__(self, program: Program, digest: bytes) -> None:
        self.program = program
        self.digest = digest
        self.keys = [program.key]
        self.tries = 0
        self.alone = False


class _Lane:
    """One judge process with its box, and the programs that it was given."""

    def __init__(self, options: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        command = [
            *python_command(module="judging.test_worker", isolated=False),
            str(theirs.fileno()),
            json.dumps(options),
        ]
        self.process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            env=environment("PATH"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        self.socket = ours
        self.socket.setblocking(False)
        self.unsent = bytearray()
        self.jobs: deque[_Job] = deque()
        self.layers: list[str] | None = None  # known once it is ready
        self._sent: set[str] = set()
        self._buffer = bytearray()
        self.since = time.monotonic()

    def send(self, job: _Job) -> None:
        program = job.program
        texts = {}
        names = []
        for text in (program.test, program.prelude):
            name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:24]
            names.append(name)
            if name not in self._sent:
                texts[name] = text
                self._sent.add(name)
        message: dict[str, Any] = {"code": program.code, "entry_point": program.entry_point}
        message |= {"test": names[0], "prelude": names[1], "texts": texts, "alone": job.alone}
        if not self.jobs:
            self.since = time.monotonic()
        self.jobs.append(job)
        self.say(message)

    def say(self, message: dict[str, Any]) -> None:
        """Send it, or as much as there is room for: a lane that is at work listens to nobody, and holds up none."""
        self.unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        try:
            while self.unsent:
                del self.unsent[: self.socket.send(memoryview(self.unsent)[:_PIECE])]
        except BlockingIOError:
            pass
        except OSError:  # a lane that died is noticed when it is read
            self.unsent.clear()

    def receive(self) -> list[dict[str, Any]]:
        """Whole answers that have come. Raises SandboxError when the lane is gone."""
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            raise SandboxError("a judge process ended unexpectedly")
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = bytearray(rest)
        return [json.loads(line) for line in lines]

    def close(self, *, wait: float = 0.0) -> None:
        """End it and all it started: at once, or with up to `wait` seconds to do so by itself."""
        self.socket.close()
        if wait:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=wait)
        self.process.kill()
        self.process.wait()


class Pool:
    """A `types.Sandbox`. `launch` makes the command line that starts a box, from its options."""

    def __init__(self, limits: Limits, launch: Callable[[dict[str, Any]], list[str]], *, name: str) -> None:
        self.limits = limits
        self.name = name
        self.workers = limits.processes
        self._options = {
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds,
            "test_seconds": limits.test_seconds,
            "test_mb": limits.test_mb,
            "site": [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))],
            "die_with_parent": threading.current_thread() is threading.main_thread(),
        }
        self._key = secrets.token_hex(32)  # of the tests' random numbers
        self._launch = launch
        self._watch_seconds = 30.0 + 25.0 * max(limits.cpu_seconds, limits.wall_seconds)
        self._lanes: list[_Lane] = []
        self._closed = False
        self._busy = False
        self.layers: tuple[str, ...] = ()
        try:
            for _ in range(self.workers):
                self._lanes.append(self._start())
            for lane in self._lanes:
                self._ready(lane)
        except BaseException:
            self.close()
            raise

    # -- protocol

    def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
        """Yield one execution per program, in any order. Pulls programs only as lanes have room for them.

        Raises SandboxError when the machinery fails on one program three times.
        """
        if self._closed:
            raise SandboxError("the sandbox is closed; build another")
        if self._busy:
            raise SandboxError("this sandbox is judging already; finish that iteration or build another sandbox")
        self._busy = True
        try:
            yield from _Round(self, iter(programs)).run()
        finally:
            self._busy = False
            for number, lane in enumerate(self._lanes):
                if lane.jobs and not self._closed:  # the caller left early: what is still running must not linger
                    self._replace(number)

    def run(self, commands: Iterable[Command]) -> Iterator[Finished]:
        """Commands over files, each in a box of its own, as many at a time as there are workers.

        Raises SandboxError.
        """
        if self._closed:
            raise SandboxError("the sandbox is closed; build another")
        if self.name == "subprocess":
            raise SandboxError(
                "the subprocess backend has no walls to run a repository's tests behind; use --set score.backend=fork"
            )
        return run_commands(commands, workers=self.workers)

    def close(self) -> None:
        self._closed = True
        for lane in self._lanes:
            lane.close(wait=0.0 if lane.jobs else 5.0)
        self._lanes.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    # -- lanes

    def _start(self) -> _Lane:
        lane = _Lane({**self._options, "box": self._launch(box_options(self.limits))})
        # Not among the options: a command line can be read by others.
        lane.say({"key": self._key})
        return lane

    def _ready(self, lane: _Lane) -> None:
        lane.socket.setblocking(True)
        lane.socket.settimeout(90.0)
        answers: list[dict[str, Any]] = []
        while not answers:
            answers = lane.receive()
        lane.socket.setblocking(False)
        if "broken" in answers[0]:
            raise SandboxError(f"the {self.name} sandbox does not start: {answers[0]['broken']}")
        lane.layers = list(answers[0]["layers"])
        self.layers = tuple(lane.layers)
        lacking = below_floor(lane.layers)
        if lacking and not self.limits.allow_weak:
            raise SandboxError(
                f"this machine cannot hold untrusted code with the {self.name} sandbox: {lacking}; see `rune doctor`, "
                "or pass --allow-weak-sandbox to run it all the same"
            )

    def _replace(self, number: int) -> _Lane:
        self._lanes[number].close()
        lane = self._lanes[number] = self._start()
        self._ready(lane)
        return lane


class _Round:
    """One run of `judge`."""

    def __init__(self, pool: Pool, programs: Iterator[Program]) -> None:
        self.pool = pool
        self.programs = programs
        self.selector = selectors.DefaultSelector()
        self.known: OrderedDict[bytes, Execution] = OrderedDict()
        self.waiting: dict[bytes, _Job] = {}
        self.again: deque[_Job] = deque()  # the machine's fault: as soon as possible
        self.alone: deque[_Job] = deque()  # perhaps the machine's fault: after all others, one at a time
        self.ready: deque[Execution] = deque()
        self.exhausted = False

    def run(self) -> Iterator[Execution]:
        try:
            for number, lane in enumerate(self.pool._lanes):
                self.selector.register(lane.socket, selectors.EVENT_READ, number)
            while True:
                self._feed(depth=2)
                while self.ready:
                    yield self.ready.popleft()
                if any(lane.jobs for lane in self.pool._lanes):
                    self._collect()
                elif self.alone and self.exhausted and not self.again:
                    self._send(0, self.alone.popleft())
                    while self.pool._lanes[0].jobs:
                        self._collect()
                elif self.exhausted and not self.again and not self.ready:
                    return
        finally:
            self.selector.close()

    def _feed(self, depth: int) -> None:
        for level in range(1, depth + 1):
            for number, lane in enumerate(self.pool._lanes):
                while len(lane.jobs) < level:
                    job = self.again.popleft() if self.again else self._pull()
                    if job is None:
                        return
                    self._send(number, job)

    def _send(self, number: int, job: _Job) -> None:
        self.pool._lanes[number].send(job)
        self._listen(number)

    def _listen(self, number: int) -> None:
        """Wait for what the lane says, and for room where there is more to tell it."""
        lane = self.pool._lanes[number]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if lane.unsent else 0)
        if self.selector.get_key(lane.socket).events != wanted:
            self.selector.modify(lane.socket, wanted, number)

    def _pull(self) -> _Job | None:
        while not self.exhausted:
            program = next(self.programs, None)
            if program is None:
                self.exhausted = True
                break
            digest = _digest(program)
            if digest in self.known:
                self.known.move_to_end(digest)
                self.ready.append(dataclasses.replace(self.known[digest], key=program.key))
            elif digest in self.waiting:
                self.waiting[digest].keys.append(program.key)
            else:
                job = self.waiting[digest] = _Job(program, digest)
                return job
            if len(self.ready) >= 64:
                break
        return None

    def _collect(self) -> None:
        events = self.selector.select(timeout=5.0)
        for key, ready in events:
            number = key.data
            lane = self.pool._lanes[number]
            if ready & selectors.EVENT_WRITE:
                lane.flush()
                self._listen(number)
            if not ready & selectors.EVENT_READ:
                continue
            try:
                answers = lane.receive()
            except SandboxError as error:
                self._lost(number, str(error))
                continue
            for answer in answers:
                if "broken" in answer:
                    self._lost(number, str(answer["broken"]))
                    break
                job = lane.jobs.popleft()
                lane.since = time.monotonic()
                self._answer(job, answer)
        for number, lane in enumerate(self.pool._lanes):  # each time: other lanes' answers must not hide one that hangs
            if lane.jobs and time.monotonic() - lane.since > self.pool._watch_seconds:
                self._lost(number, "", hung=True)

    def _answer(self, job: _Job, answer: dict[str, Any]) -> None:
        found = Execution(
            key="",
            outcome=Outcome(answer["outcome"]),
            error_kind=FailureKind(answer["kind"]),
            raised=answer["raised"],
            error=answer["error"],
            settled=answer["settled"],
            cpu_seconds=answer["cpu"],
            wall_seconds=answer["wall"],
        )
        if (found.outcome is Outcome.PASSED) is not (found.error_kind is FailureKind.NONE):
            raise SandboxError(f"a judge contradicts itself: {found.outcome}, {found.error_kind}")
        if not found.settled and not job.tries:
            job.tries += 1
            job.alone = True
            self.alone.append(job)
        else:
            self._done(job, found)

    def _done(self, job: _Job, execution: Execution) -> None:
        del self.waiting[job.digest]
        self.known[job.digest] = execution
        if len(self.known) > _REMEMBERED:
            self.known.popitem(last=False)
        self.ready.extend(dataclasses.replace(execution, key=key) for key in job.keys)

    def _lost(self, number: int, reason: str, *, hung: bool = False) -> None:
        """A lane broke or hangs: another takes its place, and its programs are judged again."""
        lane = self.pool._lanes[number]
        jobs = list(lane.jobs)
        lane.jobs.clear()
        self.selector.unregister(lane.socket)
        fresh = self.pool._replace(number)
        self.selector.register(fresh.socket, selectors.EVENT_READ, number)
        if not jobs:
            return
        head, *rest = jobs
        self.again.extendleft(reversed(rest))
        head.tries += 1
        if hung and head.tries > 1:
            text = "the test could not be brought to an end with what the program returned"
            found = Execution(
                key="",
                outcome=Outcome.TIMED_OUT,
                error_kind=FailureKind.TIMEOUT,
                error=text,
                settled=False,
                wall_seconds=self.pool._watch_seconds,
            )
            self._done(head, found)
        elif head.tries >= _TRIES:
            key = head.program.key
            raise SandboxError(f"{key}: could not be judged in {_TRIES} tries: {reason}", key=key, reason=reason)
        else:
            self.again.append(head)


def _digest(program: Program) -> bytes:
    parts = (program.code, program.test, program.entry_point, program.prelude)
    return hashlib.sha256(json.dumps(parts).encode()).digest()
