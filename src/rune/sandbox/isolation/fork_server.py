"""Inside the box: a fork server that never sees a program.

The server warms the standard library, shuts the doors (`layers`, `seccomp`, `landlock`) and forks a child
ahead of each program. The child's end of a socket goes to the judge; the program arrives on it, in the child.
The server only ever hears "next": it kills and reaps what lives, cleans the work folder, says how the last
child ended, and forks again. So no later program finds an earlier one in inherited memory.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from rune.sandbox.isolation import landlock, seccomp
from rune.sandbox.isolation import layers as _layers
from rune.sandbox.protocol import child

try:
    import resource
except ImportError:  # not on this system: no limits there, and the scorer says so
    resource = None  # type: ignore[assignment]

# What programs import most. Not threading, nor what imports it: its fork handlers cost half a millisecond a program.
WARM = (
    "abc bisect collections copy datetime decimal enum fractions functools hashlib heapq itertools",
    "json math operator random re statistics string time typing",
)
CHILD, ENDED = b"C", b"E"  # the server's two messages: a child's socket; how the last one ended
STATUS = struct.Struct("<id")  # how the last child ended: wait status, CPU seconds


def main() -> None:
    """The server: `argv` holds the control socket's number and the options as JSON."""
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # a child turns it on again
    options = json.loads(sys.argv[2])
    for name in " ".join(WARM).split():
        importlib.import_module(name)
    try:
        doors = shut(options)
        child.rehearse()
        random.seed(0)
        gc.collect()
        gc.freeze()
    except BaseException as error:
        control.sendall(_hello({"broken": f"{type(error).__name__}: {error}"}))
        raise SystemExit(1) from None
    control.sendall(_hello({"layers": doors.layers}))
    try:
        _serve(control, doors, options)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the judge is gone
    finally:
        if doors.leave is not None:
            doors.leave()
        os._exit(0)  # its children die with it


def _hello(message: dict[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("<I", len(data)) + data


class Doors(NamedTuple):
    """What is left for a child to do to itself: all that its server could not do for it beforehand."""

    layers: list[str]
    steps: list[Callable[[], object]]
    clean: Callable[[], object] | None  # what the server does to the work folder after each child
    leave: Callable[[], object] | None  # and when it ends


def shut(options: dict[str, Any]) -> Doors:
    """Shut every door that can be shut for good. A fork is paid for each program, so its child has few left."""
    without = set(options["without"])
    linux = sys.platform == "linux"
    if linux:
        seccomp.die_with_parent()
    found = _layers.paths(options["packages"])
    layers, walls = _walls(options, found)
    os.environ.clear()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    sys.argv[:] = [""]
    folders = [_layers.SITE] if walls else sorted({os.path.dirname(p) for p in options["packages"]})  # noqa: PTH120
    sys.path[:] = [p for p in sys.path if p not in options["hide"]] + folders
    sys.path_importer_cache.clear()
    steps: list[Callable[[], object]] = []
    clean: Callable[[], object] | None = _layers.clean_work if walls else None
    leave: Callable[[], object] | None = None
    if not walls:
        os.setsid()
        steps.append(os.setsid)
        if linux:
            seccomp.adopt_orphans()
            steps.append(seccomp.die_with_parent)
            # Not killed with the judge: it is to read end-of-file, and end what its program has started.
            seccomp.live_without_parent()
    if walls == "namespaces":
        _layers.drop_user()
    elif linux:
        _layers.drop_capabilities()
    if resource is not None and "rlimits" not in without:
        steps.append(_limit(options, bool(walls)))
        layers.append("rlimits")
    if linux:
        seccomp.lock_privileges()
        layers.append("no_new_privs")
    if linux and landlock.abi() and "landlock" not in without:
        landlock.restrict(_rules(found, options, bool(walls)))
        layers.append("landlock" if walls or landlock.holds_alone() else "-landlock: too old to be alone")
    elif not walls:
        work = _layers.Folders()
        clean, leave = work.next, work.remove
    _quiet()
    if seccomp.supported() and "seccomp" not in without:
        # All that is in sight is mounted read-only or made for the program, with one exception: bubblewrap lends the
        # machine's own /dev/null, which root owns.
        modes = walls == "namespaces" or (bool(walls) and os.getuid() != 0)
        seccomp.server_filter(modes=modes).install()
        steps.append(seccomp.child_filter().install)
        layers.append("seccomp")
    return Doors(layers, steps, clean, leave)


def _walls(options: dict[str, Any], found: _layers.Paths) -> tuple[list[str], str]:
    """The layers to report, and who made the walls: "namespaces", a launcher's name, or nobody."""
    inside = str(options.get("inside", ""))  # a launcher such as bubblewrap has made them already
    if inside:
        os.chdir(_layers.WORK)
        return [inside], inside
    if sys.platform == "linux" and "namespaces" not in options["without"]:
        try:
            _layers.enter(found, options["work_mb"])
            return ["namespaces"], "namespaces"
        except OSError as error:
            os.chdir("/")
            return [f"-namespaces: {error}"], ""
    os.chdir("/")
    return [], ""


def _rules(found: _layers.Paths, options: dict[str, Any], walls: bool) -> int:
    if walls:
        return landlock.ruleset(["/"], [_layers.WORK, os.devnull])
    # Importing lists the folder it looks in; names may be seen there, contents may not.
    folders = {os.path.dirname(p) for p in options["packages"]} | set(found.library)  # noqa: PTH120
    # The server reads its list of children there; no program is told a number that helps it.
    return landlock.ruleset(_layers.readable(found), [os.devnull], folders)


def _quiet() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def _limit(options: dict[str, Any], walls: bool) -> Callable[[], object]:
    """Limits that the server can bear are put on it and inherited; the rest is the child's to do."""
    megabyte = 1 << 20
    limits = {
        "RLIMIT_AS": options["memory_mb"] * megabyte,
        "RLIMIT_FSIZE": options["work_mb"] * megabyte,
        "RLIMIT_CORE": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    if walls:  # elsewhere the user's other processes would count
        limits["RLIMIT_NPROC"] = 64
    for name, value in limits.items():
        if hasattr(resource, name):
            with contextlib.suppress(ValueError, OSError):
                _lower(getattr(resource, name), value, value)
    # Linux counts the descriptors that are on their way through sockets per user, over all boxes, and holds a sender to
    # its own limit of open files: at 64, some forty boxes that hand over their children's sockets close each other.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    seconds = int(options["cpu_seconds"]) + 2

    def of_a_child() -> None:
        _lower(resource.RLIMIT_NOFILE, 64, 64)
        _lower(resource.RLIMIT_CPU, seconds, seconds + 1)

    return of_a_child


def _lower(what: int, soft: int, hard: int) -> None:
    """Set a limit, or keep the user's own where that is lower already: a hard limit cannot be raised."""
    _, most = resource.getrlimit(what)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(what, (soft, hard))


def _serve(control: socket.socket, doors: Doors, options: dict[str, Any]) -> None:
    """Children, one for each "next". Where a program can start no process (seccomp), the next child waits already
    while one works; elsewhere it is forked when nothing of the last one lives."""
    ahead = "seccomp" in doors.layers
    # libc's fork, where it can be had: Python's own runs handlers for threads and locks that this process does not
    # have (it has one thread and holds the interpreter's lock), and they copy forty pages in every child.
    linux = sys.platform == "linux"
    fork = ctypes.PyDLL(None).fork if linux else os.fork
    rights = array.array("i", [0])

    def spawn() -> int:
        """A child's process id, 0 if the system has no room for one. The judge gets its socket."""
        ours, theirs = socket.socketpair()
        if linux:  # before the child's first word, so that it tells the judge whose clock to read
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        pid = fork()
        if pid == 0:
            control.close()
            theirs.close()
            _begin(ours, doors, options["output_kb"] << 10)
        ours.close()
        if pid > 0:
            rights[0] = theirs.fileno()
            control.sendmsg([CHILD], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        theirs.close()
        return max(int(pid), 0)

    current, spare = spawn(), 0
    while current:
        if ahead:
            spare = spawn()  # 0 if the program has taken all the room, with threads: then later
        more = control.recv(1) == b"N"
        ended = _end(current) if ahead else end_all(current)
        if not more:
            return
        if doors.clean is not None:
            doors.clean()
        control.sendall(ENDED + ended)
        current = spare or spawn()
    raise OSError("cannot fork")


def _begin(sock: socket.socket, doors: Doors, output_bytes: int) -> None:
    """In the child: shut the last doors, say so, and serve. Never returns."""
    try:
        for step in doors.steps:
            step()
    except BaseException as error:
        child.send(sock, child.BROKEN, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:500])
        os._exit(1)
    child.send(sock, child.READY, b"")
    try:
        child.run(sock, output_bytes)
    finally:
        os._exit(0)


def _end(pid: int) -> bytes:
    """Kill and reap the child; how it ended. It is the only process of its program."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, code, usage = os.wait4(pid, 0)
    return STATUS.pack(code, usage.ru_utime + usage.ru_stime)


def end_all(pid: int) -> bytes:
    """Kill and reap every child and what it left; how `pid` ended. Process 1 of a namespace reaches all in it."""
    alone = os.getpid() != 1
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid if alone else -1, signal.SIGKILL)
        if alone:
            os.killpg(pid, signal.SIGKILL)
    status = STATUS.pack(0, 0.0)
    while True:
        try:
            ended, code, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return status
        if ended == pid:
            status = STATUS.pack(code, usage.ru_utime + usage.ru_stime)
        if alone:
            _kill_orphans()


def _kill_orphans() -> None:
    """Without a pid namespace: grandchildren whose parent is gone are ours by now (`adopt_orphans`)."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:  # noqa: PTH123
        for number in file.read().split():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(number), signal.SIGKILL)
