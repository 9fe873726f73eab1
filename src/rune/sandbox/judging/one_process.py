"""Inside the box: one program and its test in one process of their own, as the original harnesses run them.

The second opinion's side of the walls. A fresh interpreter that runs nothing itself copies itself for each program;
the copy shuts the box's walls around itself (`fork_server.shut`). Nothing of the judge's conversation is used: no
encoding of values, no calls from outside. Program and test share a process, so a program could forge this answer; it is
only ever asked about programs that the judge, which shares nothing with them, let pass.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import random
import select
import signal
import struct
import sys
from typing import Any

from rune.sandbox.isolation import fork_server, seccomp

SIZE = struct.Struct("<I")
FILE = "<candidate>"
ERROR_CHARS = 600
# What may be relaxed, one at a time, to find out why the two differ.
NAMES, COPIES, PLAIN = "names", "copies", "plain"
_encode = json.dumps  # bound now: a task may be about a change of the module's own function


def main() -> None:
    """The options as `argv`; on stdin one job after another, on stdout an answer each: JSON, its size before it."""
    options = json.loads(sys.argv[1])
    if sys.platform == "linux":
        seccomp.die_with_parent()
    while head := _exactly(SIZE.size):
        job = json.loads(_exactly(*SIZE.unpack(head)))
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            _one(job, options, theirs)
        os.close(theirs)
        with open(ours, "rb") as file:  # noqa: PTH123
            answer = file.read() or b'{"broken": "it said nothing"}'
        os.waitpid(pid, 0)
        if os.getpid() == 1:  # in namespaces that a launcher made: whatever the program left there
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.wait()
        sys.stdout.buffer.write(SIZE.pack(len(answer)) + answer)
        sys.stdout.buffer.flush()


def _exactly(size: int) -> bytes:
    return sys.stdin.buffer.read(size)


def _one(job: dict[str, Any], options: dict[str, Any], out: int) -> None:
    """In a copy: the walls, then the program in a child. Writes one answer to `out`; never returns."""
    try:
        doors = fork_server.shut(options)
        if sys.platform == "linux":
            seccomp.die_with_parent()
        lost = sorted(set(options["demand"]) - set(doors.layers))
        if lost:
            raise OSError(f"without {', '.join(lost)} this time")
    except BaseException as error:
        _answer(out, {"broken": f"{type(error).__name__}: {error}"[:ERROR_CHARS]})
    _leave_if_unread(out)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out)
        os.close(ours)
        _begin(theirs, job, doors)
    os.close(theirs)
    late = False

    def too_late(*_: object) -> None:
        nonlocal late
        late = True
        os.kill(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, options["wall_seconds"])
    _, status, usage = os.wait4(pid, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    fork_server.end_all(pid)  # whatever it has left
    os.set_blocking(ours, False)
    try:
        said = json.loads(os.read(ours, 1 << 16))
    except (OSError, ValueError):
        said = {}
    for step in (doors.clean, doors.leave):
        if step is not None:
            step()
    cpu = usage.ru_utime + usage.ru_stime
    timed_out = late or (os.WIFSIGNALED(status) and cpu >= options["cpu_seconds"])
    _answer(out, {"layers": doors.layers, "said": said, "status": status, "cpu": cpu, "timed_out": timed_out})


def _answer(out: int, message: dict[str, Any]) -> None:
    os.write(out, json.dumps(message).encode())
    os._exit(0)


def _leave_if_unread(out: int) -> None:
    """End this process if nobody waits for its answer: who asked may have died before it asked to die with them."""
    poll = select.poll()
    poll.register(out, 0)  # an error is reported unasked
    if poll.poll(0):
        os._exit(1)


def _begin(out: int, job: dict[str, Any], doors: fork_server.Doors) -> None:
    """In the child: the last doors, then the program. Never returns."""
    said: dict[str, Any] = {"passed": False, "error": "the test did not begin"}
    try:
        for step in doors.steps:
            step()
        _leave_if_unread(out)
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: PTH123, SIM115
        _run(job)
        said = {"passed": True, "error": ""}
    except BaseException as error:
        said["error"] = _describe(error)
    finally:
        os.write(out, _encode(said).encode())
        os._exit(0)


def _describe(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
        return text[:ERROR_CHARS].encode("ascii", "backslashreplace").decode()[: 2 * ERROR_CHARS]
    except BaseException:
        return "an exception that cannot be shown"


def _run(job: dict[str, Any]) -> None:
    """Prelude, program and test in one namespace, then `check(candidate)`. Raises what they raise."""
    relaxed = set(job["relaxed"])
    random.seed(job["seed"])
    prelude = compile(job["prelude"], "<prelude>", "exec", dont_inherit=True)
    scope: dict[str, Any] = {}
    exec(prelude, scope)
    exec(compile(job["code"] + "\n", FILE, "exec", dont_inherit=True), scope)
    candidate = eval(job["entry_point"], scope)
    tests = scope
    if NAMES in relaxed:
        tests = {name: value for name, value in scope.items() if not hasattr(builtins, name)}
        exec(prelude, tests)
        tests[job["entry_point"]] = candidate
    exec(compile(job["test"], "<test>", "exec", dont_inherit=True), tests)
    tests["check"](_relaxed(candidate, relaxed))


def _relaxed(candidate: Any, relaxed: set[str]) -> Any:
    """The candidate as the judge would let the test see it, in one respect or two."""
    if not relaxed & {COPIES, PLAIN}:
        return candidate
    import copy

    def copied(value: Any) -> Any:
        return value if COPIES not in relaxed or hasattr(value, "__next__") else copy.deepcopy(value)

    def call(*args: Any, **options: Any) -> Any:
        result = copied(candidate(*map(copied, args), **{k: copied(v) for k, v in options.items()}))
        return _plain(result) if PLAIN in relaxed else result

    return call


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's, subclasses of plain containers as what they derive from."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    for container in (list, tuple, set, frozenset):
        if isinstance(value, container):
            return container(_plain(item) for item in value)
    for scalar in (bool, int, float, str):
        if isinstance(value, scalar):
            return scalar(value)
    if hasattr(value, "__index__"):
        return int(value)
    return value
