"""Inside the box: the child that runs one program and answers calls.

Arguments come in as plain data, what the candidate returns goes out as plain data. Nothing that a child can send
is a verdict, and nothing it is sent holds an expected value. All of this shares a process with untrusted code
and is written to serve honest programs well; no protection rests on it.
"""

from __future__ import annotations

import builtins
import gc
import json
import linecache
import os
import random
import socket
import struct
import sys
import traceback
from typing import Any

from rune.sandbox.protocol import codec, decode

FILE = "<candidate>"
HEAD = struct.Struct("<IB")  # payload size, kind of message
LOAD, CALL, SCRIPT = 1, 2, 3  # to the child
BROKEN, READY, DONE, VALUE, ERROR = 10, 11, 12, 13, 14  # from the child; the first two before any program
RAISED, UNFIT, MEMORY, MISSING = 0, 1, 2, 3  # what an ERROR is about: only the word for it hangs on that
ERROR_CHARS = 1200
_SIZE = struct.Struct("<I")


def send(sock: socket.socket, kind: int, data: bytes) -> None:
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


class _ObjectTable:
    """Objects that stay in the child and are known outside by number."""

    def __init__(self) -> None:
        self._objects: list[object] = []
        self._walks: dict[int, Any] = {}

    def register(self, value: object) -> codec.Handle:
        if len(self._objects) >= 10_000:
            raise codec.CodecError("too many objects that are no plain data")
        if isinstance(value, type):
            kind = "class"
        elif hasattr(type(value), "__next__"):
            kind = "iterator"
        else:
            kind = "callable" if callable(value) else "object"
        self._objects.append(value)
        return codec.Handle(len(self._objects) - 1, kind, type(value).__name__)

    def resolve(self, handle: codec.Handle) -> object:
        return self._objects[handle.number]

    def walk(self, target: Any) -> Any:
        """What `iter` made of an object when it was first walked: one that starts again is not asked to."""
        if id(target) not in self._walks:
            self._walks[id(target)] = iter(target)
        return self._walks[id(target)]


def run(sock: socket.socket, output_bytes: int) -> None:
    """Load one program, then answer calls until killed. Never returns."""
    gc.enable()
    objects = _ObjectTable()
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
                send(sock, *_reply(CALL, data[at + 4 : at + 4 + size], scope, objects, output))
                at += 4 + size
        else:
            send(sock, *_reply(kind, data, scope, objects, output))


def _reply(kind: int, data: bytes, scope: dict[str, Any], objects: _ObjectTable, output: _Output) -> tuple[int, bytes]:
    try:
        request = decode.decode_trusted(data, objects.resolve)
        if kind == LOAD:
            _load(scope, *request)
            return DONE, b""
        return VALUE, codec.encode(_answer(scope, objects, *request), objects.register)
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


_ABOUT = ((codec.CodecError, UNFIT), (MemoryError, MEMORY), (_MissingEntryPoint, MISSING))
_NAME_OF, _ANCESTORS_OF = type.__dict__["__name__"].__get__, type.__dict__["__mro__"].__get__


def _answer(
    scope: dict[str, Any],
    objects: _ObjectTable,
    operation: str,
    target: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
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
        try:
            return (next(objects.walk(target)),)
        except StopIteration:
            return ()
    raise TypeError(f"unknown operation {operation}")


def _describe(error: BaseException, output: _Output) -> bytes:
    """An exception as data: what it is about, its name, the built-in class it derives from, its text, the candidate's
    own lines."""
    kind = type(error)
    about = next((number for own, number in _ABOUT if kind is own), RAISED)
    name = _NAME_OF(kind)[:100]  # whatever a metaclass would make of it
    # By identity: a program's own classes say that they are from builtins too, as its namespace has no name.
    base = next((_NAME_OF(c) for c in _ANCESTORS_OF(kind) if vars(builtins).get(_NAME_OF(c)) is c), "Exception")
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
    parts = (about, name, base, message[:ERROR_CHARS], trace[:ERROR_CHARS])
    return json.dumps(parts).encode("ascii", "replace")


def _trace(error: BaseException, name: str, message: str) -> str:
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(error)).strip()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE][-3:]
    lines = [f"  line {f.lineno}, in {f.name}\n    {(f.line or '').strip()[:200]}" for f in frames]
    last = f"{name}: {message[:400]}" if message else name
    return "\n".join([*lines, last])


def rehearse() -> None:
    """Run a program of our own a few times: the interpreter adapts its bytecode to what it sees, and what it has
    adapted here need not be written, page by page, in every child."""
    code = (
        "from typing import List\n\ndef f(x: List[int]) -> dict:\n    return {'a': sorted(x), 'b': (1.5, None, True)}\n"
    )
    for _ in range(16):
        scope: dict[str, Any] = {}
        objects, output = _ObjectTable(), _Output(1)
        load = codec.encode_trusted(("", code, "f", 1), objects.register)
        call = codec.encode_trusted(("call", "f", ([3, 1, 2],), {}), objects.register)
        wrong = codec.encode_trusted(("call", "f", ([3, "1"],), {}), objects.register)
        for kind, data in ((LOAD, load), (CALL, call), (CALL, wrong)):
            _reply(kind, data, scope, objects, output)
    linecache.clearcache()
