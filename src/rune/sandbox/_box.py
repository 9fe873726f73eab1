"""Inside the box: a fork server that never sees a program, and the child that runs one.

The server warms the standard library, shuts the doors (`_layers`, `_seccomp`, `_landlock`) and forks a child
ahead of each program. The child's end of a socket goes to the judge; the program arrives on it, in the child.
The server only ever hears "next": it kills everything that lives, reaps it, cleans the work folder, says how
the last child ended, and forks again. So no later program finds an earlier one in inherited memory.

The child answers calls: arguments come in as plain data, what the candidate returns goes out as plain data.
Nothing it can send is a verdict, and nothing it is sent holds an expected value.
"""

from __future__ import annotations

import array
import builtins
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import linecache
import os
import random
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from rune.sandbox import _codec, _landlock, _layers, _seccomp

try:
    import resource
except ImportError:  # not on this system: no limits there, and the scorer says so
    resource = None  # type: ignore[assignment]

# What programs import most. Not threading, nor what imports it: its fork handlers cost half a millisecond a program.
WARM = (
    "abc bisect collections copy datetime decimal enum fractions functools hashlib heapq itertools",
    "json math operator random re statistics string time typing",
)
FILE = "<candidate>"
HEAD = struct.Struct("<IB")  # payload size, kind of message
CHILD, ENDED = b"C", b"E"  # the server's two messages: a child's socket; how the last one ended
STATUS = struct.Struct("<id")  # how the last child ended: wait status, CPU seconds
_SIZE = struct.Struct("<I")
LOAD, CALL, SCRIPT = 1, 2, 3  # to the child
BROKEN, READY, DONE, VALUE, ERROR = 10, 11, 12, 13, 14  # from the child; the first two before any program
ERROR_CHARS = 1200


def main() -> None:
    """The server: `argv` holds the control socket's number and the options as JSON."""
    control = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()  # a child turns it on again
    options = json.loads(sys.argv[2])
    try:
        child = _prepare(options)
    except BaseException as error:
        control.sendall(_hello({"broken": f"{type(error).__name__}: {error}"}))
        raise SystemExit(1) from None
    control.sendall(_hello({"layers": child.layers}))
    try:
        _serve(control, child, options)
    except (BrokenPipeError, ConnectionResetError, EOFError):
        pass  # the judge is gone
    finally:
        os._exit(0)  # its children die with it


def _hello(message: dict[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return struct.pack("<I", len(data)) + data


class _Child(NamedTuple):
    """What is left for a child to do to itself: all that its server could not do for it beforehand."""

    layers: list[str]
    steps: list[Callable[[], object]]
    clean: Callable[[], object] | None  # what the server does to the work folder after each child


def _prepare(options: dict[str, Any]) -> _Child:
    """Shut every door that can be shut for good. A fork is paid for each program, so its child has few left."""
    for name in " ".join(WARM).split():
        importlib.import_module(name)
    without = set(options["without"])
    linux = sys.platform == "linux"
    if linux:
        _seccomp.die_with_parent()
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
    if not walls:
        os.setsid()
        steps.append(os.setsid)
        if linux:
            _seccomp.adopt_orphans()
            steps.append(_seccomp.die_with_parent)
    if walls == "namespaces":
        _layers.drop_user()
    elif linux:
        _layers.drop_capabilities()
    if resource is not None and "rlimits" not in without:
        steps.append(_limit(options, bool(walls)))
        layers.append("rlimits")
    if linux:
        _seccomp.lock_privileges()
        layers.append("no_new_privs")
    if linux and _landlock.abi() and "landlock" not in without:
        _landlock.restrict(_rules(found, options, bool(walls)))
        layers.append("landlock")
    elif not walls:
        _layers.next_work(options["work"])
        clean = functools.partial(_layers.next_work, options["work"])
    _quiet()
    if _seccomp.supported() and "seccomp" not in without:
        _seccomp.server_filter().install()
        steps.append(_seccomp.child_filter().install)
        layers.append("seccomp")
    _rehearse()
    random.seed(0)
    gc.collect()
    gc.freeze()
    return _Child(layers, steps, clean)


def _rehearse() -> None:
    """Run a program of our own a few times: the interpreter adapts its bytecode to what it sees, and what it has
    adapted here need not be written, page by page, in every child."""
    code = (
        "from typing import List\n\ndef f(x: List[int]) -> dict:\n    return {'a': sorted(x), 'b': (1.5, None, True)}\n"
    )
    for _ in range(16):
        scope: dict[str, Any] = {}
        shelf, output = _Shelf(), _Output(1)
        load = _codec.encode_trusted(("", code, "f", 1), shelf.register)
        call = _codec.encode_trusted(("call", "f", ([3, 1, 2],), {}), shelf.register)
        wrong = _codec.encode_trusted(("call", "f", ([3, "1"],), {}), shelf.register)
        for kind, data in ((LOAD, load), (CALL, call), (CALL, wrong)):
            _reply(kind, data, scope, shelf, output)
    linecache.clearcache()


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
        return _landlock.ruleset(["/"], [_layers.WORK, os.devnull])
    # Importing lists the folder it looks in; names may be seen there, contents may not.
    folders = {os.path.dirname(p) for p in options["packages"]} | set(found.library)  # noqa: PTH120
    # The server reads its list of children there; no program is told a number that helps it.
    return _landlock.ruleset(_layers.readable(found), [os.devnull], folders)


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
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_MEMLOCK": 0,
    }
    if walls:  # elsewhere the user's other processes would count
        limits["RLIMIT_NPROC"] = 64
    for name, value in limits.items():
        if hasattr(resource, name):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(getattr(resource, name), (value, value))
    seconds = int(options["cpu_seconds"]) + 2
    return functools.partial(resource.setrlimit, resource.RLIMIT_CPU, (seconds, seconds + 1))


def _serve(control: socket.socket, child: _Child, options: dict[str, Any]) -> None:
    """Children, one for each "next". Where a program can start no process (seccomp), the next child waits already
    while one works; elsewhere it is forked when nothing of the last one lives."""
    ahead = "seccomp" in child.layers
    # libc's fork, where it can be had: Python's own runs handlers for threads and locks that this process does not
    # have (it has one thread and holds the interpreter's lock), and they copy forty pages in every child.
    fork = ctypes.PyDLL(None).fork if sys.platform == "linux" else os.fork
    rights = array.array("i", [0])

    def spawn() -> int:
        """A child's process id, 0 if the system has no room for one. The judge gets its socket."""
        ours, theirs = socket.socketpair()
        pid = fork()
        if pid == 0:
            control.close()
            theirs.close()
            _begin(ours, child, options["output_kb"] << 10)
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
        ended = _end(current) if ahead else _end_all(current)
        if not more:
            return
        if child.clean is not None:
            child.clean()
        control.sendall(ENDED + ended)
        current = spare or spawn()
    raise OSError("cannot fork")


def _begin(sock: socket.socket, child: _Child, output_bytes: int) -> None:
    """In the child: shut the last doors, say so, and serve. Never returns."""
    try:
        for step in child.steps:
            step()
    except BaseException as error:
        _send(sock, BROKEN, f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:500])
        os._exit(1)
    _send(sock, READY, b"")
    try:
        _run_child(sock, output_bytes)
    finally:
        os._exit(0)


def _end(pid: int) -> bytes:
    """Kill and reap the child; how it ended. It is the only process of its program."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _, code, usage = os.wait4(pid, 0)
    return STATUS.pack(code, usage.ru_utime + usage.ru_stime)


def _end_all(pid: int) -> bytes:
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
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123
        for number in file.read().split():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(int(number), signal.SIGKILL)


# --------------------------------------------------------------------------- the child


def _send(sock: socket.socket, kind: int, data: bytes) -> None:
    sock.sendall(HEAD.pack(len(data), kind) + data)


class _Inbox:
    """Whole messages from a socket. The first call travels right behind the program, so bytes may be left over."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._left = b""

    def receive(self) -> tuple[int, bytes]:
        parts = [self._left]
        have = len(self._left)
        want = HEAD.size
        while True:
            if have >= want:
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                parts = [data]
                size, kind = HEAD.unpack_from(data)
                want = HEAD.size + size
                if have >= want:
                    self._left = data[want:]
                    return kind, data[HEAD.size : want]
            part = self._sock.recv(1 << 16 if want - have < 1 << 16 else 1 << 20)
            if not part:
                os._exit(0)
            parts.append(part)
            have += len(part)


class _Output:
    """What a program prints: the first characters are kept, the rest is counted and dropped."""

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[str] = []

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._limit > 0:
            self._parts.append(text[: self._limit])
            self._limit -= len(text) + 1
        return len(text)

    def text(self) -> str:
        return "".join(self._parts)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def isatty(self) -> bool:
        return False

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def fileno(self) -> int:
        return 1


class _Shelf:
    """Objects that stay in the child and are known outside by number."""

    def __init__(self) -> None:
        self._objects: list[object] = []

    def register(self, value: object) -> _codec.Handle:
        if len(self._objects) >= 10_000:
            raise _codec.CodecError("too many objects that are no plain data")
        if isinstance(value, type):
            kind = "class"
        elif hasattr(type(value), "__next__"):
            kind = "iterator"
        else:
            kind = "callable" if callable(value) else "object"
        self._objects.append(value)
        return _codec.Handle(len(self._objects) - 1, kind, type(value).__name__)

    def resolve(self, handle: _codec.Handle) -> object:
        return self._objects[handle.number]


def _run_child(sock: socket.socket, output_bytes: int) -> None:
    """Load one program, then answer calls until killed. Never returns."""
    gc.enable()
    shelf = _Shelf()
    output = _Output(output_bytes)
    sys.stdout = sys.stderr = output
    scope: dict[str, Any] = {}
    inbox = _Inbox(sock)
    while True:
        kind, data = inbox.receive()
        if kind == SCRIPT:
            at = 0
            while at < len(data):
                (size,) = _SIZE.unpack_from(data, at)
                # Each answer leaves before the next call begins: a later endless loop must not hide an earlier mistake.
                _send(sock, *_reply(CALL, data[at + 4 : at + 4 + size], scope, shelf, output))
                at += 4 + size
        else:
            _send(sock, *_reply(kind, data, scope, shelf, output))


def _reply(kind: int, data: bytes, scope: dict[str, Any], shelf: _Shelf, output: _Output) -> tuple[int, bytes]:
    try:
        request = _codec.decode_trusted(data, shelf.resolve)
        if kind == LOAD:
            _load(scope, *request)
            return DONE, b""
        return VALUE, _codec.encode(_answer(scope, *request), shelf.register)
    except BaseException as error:
        return ERROR, _describe(error, output)


def _load(scope: dict[str, Any], prelude: str, code: str, entry_point: str, seed: int) -> None:
    random.seed(seed)
    if prelude:
        exec(compile(prelude, "<prelude>", "exec"), scope)
    lines = code.splitlines(keepends=True)
    linecache.cache[FILE] = (len(code), None, lines, FILE)
    try:
        program = compile(code + "\n\n", FILE, "exec", dont_inherit=True)
    except ValueError as error:  # a NUL or a lone surrogate: a SyntaxError in some versions of Python
        raise SyntaxError(str(error)) from None
    exec(program, scope)
    if entry_point and entry_point not in scope:
        raise _MissingEntryPoint(f"the program does not define {entry_point}")


class _MissingEntryPoint(Exception):
    pass


def _answer(scope: dict[str, Any], operation: str, target: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """One operation on the candidate's side: `target` is a name of the program or an object of the shelf."""
    if isinstance(target, str):
        target = scope[target] if target in scope else getattr(builtins, target)
    else:
        (target,) = target
    if operation == "call":
        return target(*args, **options)
    if operation == "observe":  # the test looks at what the call did to its arguments
        return target(*args, **options), args, options
    if operation == "value":
        return target
    if operation == "getattr":
        return getattr(target, *args)
    if operation == "setattr":
        return setattr(target, *args)
    if operation == "next":
        # An end is a value of its own: StopIteration from inside a program must not end a loop of the test.
        for item in target:
            return (item,)
        return ()
    raise TypeError(f"unknown operation {operation}")


def _describe(error: BaseException, output: _Output) -> bytes:
    """An exception as data: its name, the built-in class it derives from, its text, the candidate's own lines."""
    kind = type(error)
    name = kind.__name__ if kind is not _MissingEntryPoint else "MissingEntryPoint"
    # By identity: a program's own classes say that they are from builtins too, as its namespace has no name.
    base = next((c.__name__ for c in kind.__mro__ if vars(builtins).get(c.__name__) is c), "Exception")
    try:
        message = str(error)
    except BaseException:
        message = ""
    try:
        trace = _trace(error, name, message)
        printed = output.text()[-200:].strip()
        trace += f"\nprinted before: {printed}" if printed else ""
    except BaseException:
        trace = name
    parts = (name[:100], base, message[:ERROR_CHARS], trace[:ERROR_CHARS], isinstance(error, _codec.CodecError))
    return json.dumps(parts).encode("ascii", "replace")


def _trace(error: BaseException, name: str, message: str) -> str:
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(error)).strip()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE][-3:]
    lines = [f"  line {f.lineno}, in {f.name}\n    {(f.line or '').strip()[:200]}" for f in frames]
    last = f"{name}: {message[:400]}" if message else name
    return "\n".join([*lines, last])
