"""A second opinion on programs that passed: each with its test in a process of its own, behind the same walls.

It shares the walls with the judge and nothing else: no encoding of values, no proxies, no calls sent ahead. What it
cannot do is what the judge is for: a program that shares a process with its test can forge this answer. So it never
makes a pass; it only doubts one.
"""

from __future__ import annotations

import json
import struct
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rune.errors import SandboxError
from rune.sandbox.isolation.limits import Limits, below_floor, box_options, environment, python_command
from rune.sandbox.judging import one_process
from rune.types import Outcome, Program

_TRIES = 3
_HARMLESS = Program(key="probe", code="def f():\n    return 1\n", test="def check(f):\n    f()\n", entry_point="f")


class Opinion(NamedTuple):
    """What a program's own process said of it."""

    outcome: Outcome
    why: str  # in the program's words: for a reader
    cpu_seconds: float  # program and test together


class SecondOpinion:
    """Judges one program at a time, from as many threads as one likes. `launch` makes a process's command line."""

    def __init__(self, limits: Limits, launch: Callable[[dict[str, Any]], list[str]]) -> None:
        """Raises SandboxError where untrusted code cannot be held and `allow_weak` is off."""
        self.workers = limits.processes
        self._servers: set[_Server] = set()
        self._mine = threading.local()
        self._lock = threading.Lock()
        self._closed = False
        # The judge gives the test a clock and memory of its own; here both draw on one.
        self.cpu_seconds = limits.cpu_seconds + limits.test_seconds
        self._options = {
            **box_options(limits),
            "cpu_seconds": self.cpu_seconds,
            "memory_mb": limits.test_mb,
            "wall_seconds": 30.0 + 10.0 * max(self.cpu_seconds, limits.wall_seconds),
            "demand": [],
        }
        self._launch = launch
        layers = [name for name in self._ask(_HARMLESS, (), 0)["layers"] if not name.startswith("-")]
        lacking = below_floor(layers)
        if lacking and not limits.allow_weak:
            raise SandboxError(
                f"this machine cannot hold untrusted code: {lacking}; see `rune doctor`, or pass --allow-weak-sandbox "
                "to run it all the same"
            )
        self._options["demand"] = layers  # no program runs with less than the probe had

    def judge(self, program: Program, *, relaxed: Iterable[str] = (), seed: int = 0) -> Opinion:
        """One program; `relaxed` names what is made as the judge has it (see `one_process`), `seed` is of `random`.

        Raises SandboxError when the machinery fails three times, or was closed meanwhile.
        """
        answer = self._ask(program, tuple(relaxed), seed)
        said = answer["said"] if isinstance(answer["said"], dict) else {}
        why = str(said.get("error", ""))
        if answer["timed_out"]:
            why = f"no end after {self.cpu_seconds:g} s of CPU time for program and test together"
            return Opinion(Outcome.TIMED_OUT, why, answer["cpu"])
        if answer["status"] != 0 or said.get("passed") is not True:
            why = why or f"its process ended before the test did (wait status {answer['status']})"
            return Opinion(Outcome.FAILED, why, answer["cpu"])
        return Opinion(Outcome.PASSED, "", answer["cpu"])

    def close(self) -> None:
        """End what still runs; whoever waits for it gets a SandboxError."""
        with self._lock:
            self._closed = True
            for server in self._servers:
                server.close()
            self._servers.clear()

    def __enter__(self) -> SecondOpinion:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, program: Program, relaxed: Sequence[str], seed: int) -> dict[str, Any]:
        job = {
            "code": program.code,
            "test": program.test,
            "entry_point": program.entry_point,
            "prelude": program.prelude,
            "relaxed": list(relaxed),
            "seed": seed,
        }
        reason = ""
        for _ in range(_TRIES):
            answer = self._server().ask(json.dumps(job).encode(), self._options["wall_seconds"] + 60.0)
            if "broken" not in answer:
                return answer
            reason = answer["broken"]
            if self._closed:
                break
        raise SandboxError(f"{program.key}: no second opinion in {_TRIES} tries: {reason}")

    def _server(self) -> _Server:
        """This thread's own, started if it has none that works with today's options."""
        command = self._launch(self._options)
        server: _Server | None = getattr(self._mine, "server", None)
        if server is None or server.gone or server.command != command:
            with self._lock:
                if self._closed:
                    raise SandboxError("the second opinion is closed")
                if server is not None:
                    self._servers.discard(server)
                    server.close()
                server = self._mine.server = _Server(command)
                self._servers.add(server)
        return server


class _Server:
    """A fresh interpreter that copies itself for each program (see `one_process`)."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.gone = False
        self._process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ask(self, job: bytes, seconds: float) -> dict[str, Any]:
        """Its answer, or {"broken": why}; then it is gone."""
        assert self._process.stdin is not None and self._process.stdout is not None
        late = threading.Timer(seconds, self._process.kill)
        late.daemon = True
        late.start()
        try:
            self._process.stdin.write(one_process.SIZE.pack(len(job)) + job)
            self._process.stdin.flush()
            (size,) = one_process.SIZE.unpack(self._process.stdout.read(one_process.SIZE.size))
            answer = json.loads(self._process.stdout.read(size))
        except (OSError, ValueError, struct.error):
            self.close()
            return {"broken": f"its process ended ({self._process.returncode})"}
        finally:
            late.cancel()
        return answer if isinstance(answer, dict) else {"broken": "its process said something odd"}

    def close(self) -> None:
        self.gone = True
        self._process.kill()
        self._process.wait()


def of_server(options: dict[str, Any]) -> list[str]:
    """The command line of a process that makes its own walls."""
    return [*python_command(module="judging.one_process", isolated=True), json.dumps(options)]
