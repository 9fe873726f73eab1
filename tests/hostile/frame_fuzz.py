"""A child that speaks arbitrary frames at every moment, against the real judge: a wrong program must never pass.

Both ends are the code that scores: `test_worker._Worker` with its `Link` over a socketpair on one side, on the other a
thread that answers as `child` does, with the frames of a program that is right but for one secret number, and changes
them before they leave: kinds, lengths, each field of an exception, values, handles, order, number, timing, and the end.
The secret is drawn anew for each run and known to the tests alone, so no change can make an answer right, and whatever
passes is a find. A third of the sequences take a program that is right, and change only which of its frames is said
when: lost, twice, later, for another call, as another kind. That one may pass only if it said what an honest one says.
A right speaker, on every task and between the others, must pass; or nothing would be shown.

    python tests/hostile/frame_fuzz.py --sequences 200000 --jobs 2 --out results/frame-fuzz.json
    python tests/hostile/frame_fuzz.py --only 4711 --seed 1          one sequence again
    python tests/hostile/frame_fuzz.py --plant nameless              a judge with an old flaw: it must be found
Exit codes: 0 nothing found · 1 a find.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import faulthandler
import json
import multiprocessing
import os
import platform
import queue
import random
import signal
import socket
import struct
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "src"))

from rune.benchmarks import _evalplus
from rune.sandbox.judging import test_worker
from rune.sandbox.protocol import child, codec, connection
from rune.types import FailureKind, Outcome

OPTIONS = {"cpu_seconds": 0.5, "wall_seconds": 0.3, "test_seconds": 10.0}
LINGERS = 0.01  # seconds that a speaker waits for the judge once it has changed something, unless it is a patient one
LINGERS_AGAIN = 2.0  # the same for a sequence that is looked at again, so that a busy machine does not end it early
HANGS = 30.0  # wall seconds for one sequence, on a machine with much else to do
CHUNK = 1000  # sequences that share a lane
HUGE = 10 << 20  # bytes of one that is large
RIGHT_EVERY = 500  # after so many sequences the lane must still let a right program pass
KINDS = (child.BROKEN, child.READY, child.DONE, child.VALUE, child.ERROR)
Frame = tuple[int, bytes]


class Task(NamedTuple):
    """A test that passes for `program` if {secret} is the test's own, and fails if it is another number."""

    name: str
    test: str
    program: str
    loose: bool = False  # whether there are answers that the test does not look at, so that it would pass with others


def _check(body: str) -> str:
    return "def check(candidate):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n"


_FLOATS = """
import numpy as np

def assertion(out, exp, atol):
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"

"""
TASKS = (
    Task(
        "secret last",
        _check("""
            assert candidate(1) == 2
            assert candidate(2) == [3, 'a']
            assert candidate(3) == {secret}
        """),
        "def f(x): return {1: 2, 2: [3, 'a'], 3: {secret}}[x]",
    ),
    Task(
        "secret first",
        _check("""
            assert candidate(3) == {secret}, 'no'
            assert candidate(1) == 2
            candidate(2)
        """),
        "def f(x): return {1: 2, 2: 0, 3: {secret}}[x]",
    ),
    Task(
        "one by one",
        _check("""
            n = candidate(0)
            assert isinstance(n, int) and n < 5
            for i in range(n):
                assert candidate(i + n) == i
            assert candidate(candidate(candidate(9))) == {secret}
        """),
        "def f(x): return 3 if x == 0 else x - 3 if x < 6 else {9: 80, 80: 81, 81: {secret}}[x]",
    ),
    Task(
        "iterators",
        _check("""
            assert list(candidate(3)) == [0, 1, 2]
            total = 0
            for x in candidate(4):
                total = 10 * total + x + 1
            assert total == 1234
            it = iter(candidate(9))
            assert [next(it), next(it, None), next(it, None)] == [9, {secret}, None]
        """),
        "def f(x):\n    yield from range(x) if x < 9 else [9, {secret}]",
    ),
    Task(
        "catches everything",
        _check("""
            got = []
            for i in range(4):
                try:
                    got.append(candidate(i))
                except BaseException:
                    got.append(None)
            assert got == [0, 1, None, {secret}]
        """),
        "def f(x):\n    if x == 2: raise ValueError(x)\n    return x if x < 3 else {secret}",
    ),
    Task(
        "loops over calls",
        _check("""
            for i, x in enumerate(map(candidate, [1, 2]), 1):
                assert x == {secret} + i
        """),
        "def f(x): return {secret} + x",
    ),
    Task(
        "arguments after the call",
        _check("""
            x = [1]
            candidate(x)
            assert x[0] == 1
            y = [[2], {'a': 3}]
            candidate(y)
            assert (x, y) == ([1, {secret}], [[2], {'a': 3}, {secret}])
        """),
        "def f(x): x.append({secret})",
    ),
    Task(
        "objects of the program",
        _check("""
            root = Node(1)
            root.left = Node(2)
            assert root.v == 1 and root.left.v == 2
            assert candidate(root) == {secret}
        """),
        "class Node:\n    def __init__(self, v): self.v, self.left = v, None\n"
        "def f(n): return {secret} if n.left else 0",
        loose=True,
    ),
    Task(
        "exceptions",
        _check("""
            for bad, kind in ((-1, ValueError), (-2, KeyError)):
                try:
                    candidate(bad)
                except kind as error:
                    assert str(bad) in str(error)
                else:
                    assert False
            assert candidate(1) == {secret}
        """),
        "def f(x):\n    if x == -1: raise ValueError('-1')\n    if x == -2: raise KeyError('-2')\n    return {secret}",
    ),
    Task(
        "floats",
        _FLOATS
        + _check("""
            assertion(candidate(1), [0.5, [1.5, 2.5]], 1e-6)
            assertion(candidate(2), {secret}.0, 1e-6)
            assert abs(candidate(3) / 2 - {secret}.0) < 1e-6
        """),
        "def f(x): return [0.5, [1.5, 2.50000001]] if x == 1 else (x - 1) * {secret}.0",
    ),
    Task(
        "containers",
        _check("""
            assert candidate(1) == {'k': {secret}, 'l': (1, {2})}
            assert sorted(candidate(2)) == [1, 2, {secret}]
            assert set(candidate(4)) == {4, {secret}} and sum(candidate(5)) == {secret} + 9
            assert not candidate(3) != '{secret}'
        """),
        "def f(x):\n    if x == 1: return {'k': {secret}, 'l': (1, {2})}\n"
        "    return [2, {secret}, 1] if x == 2 else '{secret}' if x == 3 else ({secret}, x, 4)",
    ),
    Task(
        "random",
        "import random\n"
        + _check("""
            for _ in range(3):
                x = random.randint(0, 10**9)
                assert candidate(x) == x + {secret}
        """),
        "def f(x): return x + {secret}",
    ),
)


def filled(text: str, secret: int) -> str:
    return text.replace("{secret}", str(secret))


# --------------------------------------------------------------------------- what a speaker can say

WORDS = [
    "", " ", "\t", "\u200b", "\u00a0", "\x00", "\ud800", "é", "passed", "PASSED", "NONE", "none", "None", "True",
    "Timeout", "timed_out", "Crash", "MemoryLimit", "MemoryError", "MissingEntryPoint", "Protocol", "BadValue",
    "WrongAnswer", "Stop", "Broken", "Diverged", "Enough", "CPU time", "StopIteration", "StopAsyncIteration",
    "GeneratorExit", "SystemExit", "KeyboardInterrupt", "AssertionError", "BaseException", "BaseExceptionGroup",
    "ExceptionGroup", "Exception", "OSError", "UnicodeDecodeError", "ImportError", "object", "type", "int", "str",
    "print", "__build_class__", "a" * 61, "A" * 5000, *(kind.value for kind in FailureKind),
    *(outcome.value for outcome in Outcome),
]  # fmt: skip
BASES = [
    "StopIteration", "StopIteration", "StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit",
    "KeyboardInterrupt", "BaseException", "MemoryError", "AssertionError", "BaseExceptionGroup", "UnicodeDecodeError",
    "RecursionError", "Warning", "SyntaxError", "KeyError",
]  # fmt: skip
ODD: list[object] = [None, True, False, 0, 1, 2, 3, 4, -1, 10**30, 1.0, [], ["ValueError"], {}, {"a": 1}]
OBJECTS = ("iterator", "callable", "class", "object", "", "nonsense")


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[object] = [
    None, True, False, 0, 1, 2, 3, -1, 2**63, -(2**200), 0.0, -0.0, 0.5, 1e308, float("inf"), float("-inf"),
    float("nan"), 1j, complex(float("nan"), float("inf")), "", "passed", "\ud800", "a" * 2000, b"", b"ab",
    bytearray(b"x"), [], [1], [0] * 20, [[]], (), (1,), (1, 2), ((), {}), (None, (), {}), (None, ([1],), {}),
    (0, ([[1], 2],), {"x": 1}), {}, {1: 2}, set(), {1}, frozenset({2}), ..., int, type, object, range(0), range(9),
    range(7_000_000), Decimal("NaN"), Decimal("sNaN"), Decimal(1), Fraction(1, 3), Counter(), Counter("ab"),
    {1: 2}.keys(), {1: 2}.values(), {1: 2}.items(), nested(30), nested(90),
]  # fmt: skip
with contextlib.suppress(ImportError):
    import numpy as np

    VALUES += [np.array([]), np.array([True]), np.array(5), np.arange(4.0), np.zeros((0, 3)), np.float16("inf")]


class Things:
    """Stands for an object of the program: encoded as a handle that says anything."""


def _octets(frames: list[Frame]) -> bytes:
    return b"".join(child.HEAD.pack(len(data), kind) + data for kind, data in frames)


class Mutator:
    """Changes frames, one field at a time. All chance comes from `rng`."""

    def __init__(self, rng: random.Random, operations: tuple[str, ...]) -> None:
        self.rng = rng
        self.operations = operations
        self.used: Counter[str] = Counter()
        self.held: list[Frame] = []  # to be said at the next moment

    def value(self, depth: int = 0) -> object:
        rng = self.rng
        if depth < 3 and rng.random() < 0.3:
            inner = [self.value(depth + 1) for _ in range(rng.randint(0, 4))]
            shape = rng.randrange(4)
            if shape == 2:
                return {str(n): v for n, v in enumerate(inner)}
            return inner if shape == 0 else tuple(inner) if shape == 1 else {"k": inner}
        return Things() if rng.random() < 0.15 else rng.choice(VALUES)

    def handle(self, _: object) -> codec.Handle:
        rng = self.rng
        number = rng.choice([0, 0, 1, 2, 3, -1, 9_999, 10_000, 2**63 - 1, -(2**63)])
        return codec.Handle(number, rng.choice(OBJECTS), rng.choice(WORDS)[:190])

    def encoded(self) -> bytes:
        try:
            return codec.encode(self.value(), self.handle)
        except (codec.CodecError, struct.error):
            return b"N"

    def scrambled(self, data: bytes) -> bytes:
        """Bytes of an encoding changed: a tag, a byte, a length, a piece lost, doubled or foreign."""
        rng = self.rng
        out = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(out) + 1)
            what = rng.randrange(7)
            if what == 0 and out:
                out[at % len(out)] = rng.randrange(256)
            elif what == 1 and out:
                out[at % len(out)] = rng.choice(b"NTFisfltdQqWwISZbycEXHkn")
            elif what == 2:
                out[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2, 7, 255, 1 << 24, (1 << 32) - 1]))
            elif what == 3:
                del out[at : at + rng.randint(1, 9)]
            elif what == 4:
                out[at:at] = out[at : at + rng.randint(1, 20)]
            elif what == 5:
                out[at:at] = self.encoded()
            else:
                out[:0] = rng.choice([b"t", b"l", b"S"]) + struct.pack("<I", 1)
        return bytes(out)

    def error(self, data: bytes = b"") -> bytes:
        """An exception's description with one to five of its fields changed; without one, a new one."""
        rng = self.rng
        try:
            parts = json.loads(data)
        except (ValueError, RecursionError):
            parts = []
        if type(parts) is not list or not parts:
            about = rng.choice([0, 0, 0, 0, 0, 0, 1, 2, 3])
            parts = [about, rng.choice(WORDS), rng.choice(BASES), rng.choice(WORDS), rng.choice(WORDS)]
            if rng.random() < 0.6:  # as it is: well-formed, and what it says is anything
                return json.dumps(parts).encode()
        for _ in range(rng.randint(1, 5)):
            at = rng.randrange(len(parts)) if parts else 0
            what = rng.randrange(10)
            if not parts or what == 0:
                parts.insert(at, rng.choice(ODD))
            elif what == 1:
                del parts[at]
            elif what == 2:
                parts[at] = rng.choice(ODD)
            elif at == 0:
                parts[0] = rng.choice([0, 0, 1, 2, 3, 4, -1])
            elif at == 2 and what < 7:
                parts[2] = rng.choice(BASES)
            else:
                parts[at] = rng.choice(WORDS)
        text = json.dumps(parts)
        what = rng.randrange(40)
        if what == 0:
            text = rng.choice(
                ["", "null", "{}", "[" * 5000, "NaN", text[:-2], text + text, f"[{text}]", '"' + "a" * 70_000 + '"']
            )
        return text.encode("utf-8", "surrogatepass")

    def payload(self, kind: int, data: bytes) -> bytes:
        what = self.rng.randrange(10)
        if self.rng.random() < 0.001:
            return b"s" + struct.pack("<I", HUGE) + b"a" * HUGE
        if what == 0:
            return self.scrambled(data)
        if what == 1:
            return self.rng.choice([b"", b"N", b"T", b"\x00" * 100, self.encoded(), self.error()])
        if kind == child.ERROR:
            return self.error(data)
        if kind == child.VALUE:
            return self.encoded() if what < 7 else self.scrambled(data)
        return self.encoded()

    def frame(self) -> Frame:
        kind = self.rng.choice([*KINDS, child.ERROR, child.VALUE, self.rng.randrange(256)])
        return kind, self.rng.choice([b"", self.error(), self.encoded()]) if self.rng.random() < 0.8 else self.payload(
            kind, b""
        )

    def changed(self, frames: list[Frame], said: list[Frame]) -> list[Frame]:
        """What is said instead of `frames`; `said` is all that was said before."""
        rng = self.rng
        frames = list(frames)
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            at = rng.randrange(len(frames) + 1)
            what = rng.choice(self.operations)
            self.used[what] += 1
            if what == "insert":
                frames.insert(at, self.frame())
            elif what == "replay" and said:
                frames.insert(at, rng.choice(said))
            elif what == "instead" and said and frames:
                frames[at % len(frames)] = rng.choice(said)
            elif not frames:
                continue
            elif what == "kind":
                kind = rng.choice([*KINDS, rng.randrange(256)])
                frames[at % len(frames)] = (kind, frames[at % len(frames)][1])
            elif what == "payload":
                kind, data = frames[at % len(frames)]
                frames[at % len(frames)] = (kind, self.payload(kind, data))
            elif what == "error":
                frames[at % len(frames)] = (child.ERROR, self.error())
            elif what == "value":
                frames[at % len(frames)] = (child.VALUE, self.encoded())
            elif what == "twice":
                frames.insert(at, frames[at % len(frames)])
            elif what == "drop":
                del frames[at % len(frames)]
            elif what == "later":
                self.held.append(frames.pop(at % len(frames)))
        return frames

    def octets(self, frames: list[Frame]) -> bytes:
        """The frames as they travel; now and then with a length that lies, or cut."""
        rng = self.rng
        data = _octets(frames)
        if data and rng.random() < 0.1:
            self.used["octets"] += 1
            what = rng.randrange(4)
            if what == 0:
                size = rng.choice([0, 1, 4, 1000, 64 << 20, (64 << 20) + 1, (1 << 32) - 1])
                return struct.pack("<I", size) + data[4:]
            if what == 1:
                return data[: rng.randrange(len(data))]
            if what == 2:
                return data + bytes(rng.randrange(256) for _ in range(rng.randint(1, 20)))
            return self.scrambled(data)
        return data


ORDER = ("replay", "instead", "kind", "twice", "drop", "later")
OPERATIONS = (*ORDER, "insert", "value", "payload", "payload", "payload", "error", "error", "error")


# --------------------------------------------------------------------------- the two ends


class Script(NamedTuple):
    """One sequence: a program's namespace and what becomes of the frames that it would send."""

    program: str
    scope: dict[str, Any]
    mutator: Mutator | None  # None: all that is said is what an honest child says
    rate: float  # how often a moment is changed
    patient: bool  # at the end of what it has to say: stays and is silent; else it goes
    lingers: float  # seconds, as LINGERS
    honest: bytearray  # what an honest child would have said in the last conversation
    said: bytearray  # and what was said


class _Over(Exception):
    """The speaker ends the conversation."""


class Speaker(threading.Thread):
    """The child's end: reads what the judge sends, and says what its script makes of the honest answer."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.todo: queue.SimpleQueue[tuple[socket.socket, Script] | None] = queue.SimpleQueue()
        self.ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(self) -> None:
        while (job := self.todo.get()) is not None:
            sock, script = job
            found = None
            try:
                with sock:
                    self._converse(sock, script)
            except (_Over, OSError):
                pass
            except BaseException as error:
                found = error
            self.ended.put(found)

    def _converse(self, sock: socket.socket, script: Script) -> None:
        objects, output = child._ObjectTable(), child._Output(1000)
        script.honest.clear()
        script.said.clear()
        said: list[Frame] = []

        def say(frames: list[Frame]) -> None:
            mutator = script.mutator
            script.honest.extend(_octets(frames))
            changes = mutator is not None and mutator.rng.random() < script.rate
            late = mutator.held[:] if mutator is not None else []
            if changes:
                frames = mutator.changed(frames, said)
                if not script.patient:
                    sock.settimeout(script.lingers)
            frames = [*frames, *late]
            said.extend(frames)
            whole = not changes or mutator.operations is ORDER
            data = _octets(frames) if whole else mutator.octets(frames)
            if mutator is not None:
                del mutator.held[: len(late)]
            script.said.extend(data)
            if data:
                sock.sendall(data)
            elif not script.patient and not mutator.held:
                raise _Over

        inbox = _inbox(sock)
        # The machinery speaks first, before any program: a program has no say in that.
        sock.sendall(child.HEAD.pack(0, child.READY))
        said.append((child.READY, b""))
        if script.mutator is not None and script.mutator.rng.random() < script.rate / 3:
            frames = script.mutator.changed([], said)
            said.extend(frames)
            script.said.extend(_octets(frames))
            sock.sendall(_octets(frames))
        for kind, data in inbox:
            if kind == child.LOAD:
                say([(child.DONE, b"")])
            elif kind == child.SCRIPT:
                at = 0
                while at < len(data):
                    (size,) = struct.unpack_from("<I", data, at)
                    call = data[at + 4 : at + 4 + size]
                    say([child._reply(child.CALL, call, script.scope, objects, output)])
                    at += 4 + size
            else:
                say([child._reply(kind, data, script.scope, objects, output)])


def _inbox(sock: socket.socket) -> Iterator[Frame]:
    """Whole messages, until the judge closes."""
    have = b""
    while True:
        while len(have) >= child.HEAD.size:
            size, kind = child.HEAD.unpack_from(have)
            if len(have) < child.HEAD.size + size:
                break
            yield kind, have[child.HEAD.size : child.HEAD.size + size]
            have = have[child.HEAD.size + size :]
        part = sock.recv(1 << 16)
        if not part:
            return
        have += part


class Box:
    """What a lane asks of its fork server: here each child is a conversation of the speaker."""

    layers: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.script: Script | None = None
        self._speaker = Speaker()
        self._speaker.start()
        self._ours: socket.socket | None = None

    def child(self) -> socket.socket:
        assert self.script is not None and self._ours is None
        self._ours, theirs = socket.socketpair()
        self._speaker.todo.put((theirs, self.script))
        return self._ours

    def next(self) -> None:
        assert self._ours is not None
        self._ours.close()
        self._ours = None
        if (error := self._speaker.ended.get()) is not None:
            raise error

    def ended(self) -> tuple[int, float]:
        return 0, 0.0

    def close(self) -> None:
        self._speaker.todo.put(None)
        self._speaker.join()


class Lane(test_worker._Worker):
    """The real judge, at whose box the speaker sits."""

    def __init__(self) -> None:
        self.options = OPTIONS
        self.key = b"k" * 16
        self.box = Box()  # type: ignore[assignment]
        self.alarm = test_worker._Alarm()
        self.texts, self.tasks, self.modules = {}, {}, set(sys.modules)
        self.size = test_worker._address_space()


class Nameless(Lane):
    """An old flaw: the finding was the exception's name, and an empty one meant passed."""

    def _verdict(self, task: Any, link: connection.Link, error: BaseException | None) -> dict[str, Any]:
        answer = super()._verdict(task, link, error)
        if answer["kind"] is FailureKind.RAISED and not answer["raised"]:
            answer.update(outcome=Outcome.PASSED, kind=FailureKind.NONE, error="")
        return answer


class Ending(Lane):
    """An old flaw: an end of iteration raised inside a program ended a loop of the test."""

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        kept, connection._ENDS = connection._ENDS, ()  # type: ignore[assignment]
        try:
            return super().judge(job)
        finally:
            connection._ENDS = kept


class Unasked(Lane):
    """A flaw that might have been: what nobody asked for is not looked at."""

    def judge(self, job: dict[str, Any]) -> dict[str, Any]:
        kept = connection.Link._silent, connection.Link._nothing_left
        connection.Link._silent = connection.Link._nothing_left = lambda link: None  # type: ignore[method-assign]
        try:
            return super().judge(job)
        finally:
            connection.Link._silent, connection.Link._nothing_left = kept  # type: ignore[method-assign]


PLANTS = {"": Lane, "nameless": Nameless, "ending": Ending, "unasked": Unasked}


# --------------------------------------------------------------------------- sequences


class Fuzz:
    """One lane and the sequences that it is put through. Sequence `number` of a seed is always the same."""

    def __init__(self, seed: int, *, plant: str = "", only: str = "") -> None:
        self.seed = seed
        self.chosen = [task for task in TASKS if only in ("", task.name)]
        self._signal = signal.getsignal(signal.SIGPROF)
        self.lane = PLANTS[plant]()
        self.tally: Counter[str] = Counter()
        self.used: Counter[str] = Counter()
        self.finds: list[dict[str, Any]] = []
        rng = random.Random(f"{seed} secrets")
        self._right, decoy = rng.getrandbits(62) | 1 << 61, rng.getrandbits(60) | 1 << 59
        self._scopes: dict[tuple[str, bool], tuple[str, dict[str, Any]]] = {}
        for number, task in enumerate(TASKS):
            self.lane.texts[task.name] = filled(task.test, self._right)
            if task.name == "floats":
                # A float has 53 bits.
                self.lane.texts[task.name] = _evalplus.without_numpy(self.lane.texts[task.name])
            for right in (True, False):
                program = filled(task.program, self._right if right else decoy + number)
                scope: dict[str, Any] = {}
                exec(compile(program, child.FILE, "exec", dont_inherit=True), scope)
                self._scopes[task.name, right] = program, scope
        self.lane.texts[""] = ""

    def close(self) -> None:
        self.lane.box.close()
        signal.signal(signal.SIGPROF, self._signal)

    def right(self, number: int) -> None:
        """A right program, honestly spoken for, must pass."""
        for task in TASKS:
            program, scope = self._scopes[task.name, True]
            for _ in range(5):  # a timeout that may be the machine's is judged again, as the scorer does
                answer = self._judged(
                    task, Script(program, scope, None, 0.0, True, LINGERS, bytearray(), bytearray()), number
                )
                if answer is None or answer["settled"]:
                    break
            if answer is not None and answer["outcome"] is not Outcome.PASSED:
                self._find(number, task, f"a right program does not pass: {answer['kind']}: {answer['error'][:300]}")
            self.tally["right programs passed"] += answer is not None and answer["outcome"] is Outcome.PASSED

    def wrong(self, number: int, lingers: float = LINGERS) -> None:
        """Sequence `number`: a program that does not know the secret, and a child that says anything; or one that
        knows it, and a child that says its frames in another order."""
        rng = random.Random(f"{self.seed} {number}")
        task = rng.choice(self.chosen)
        order = rng.random() < 1 / 3 and not task.loose
        program, scope = self._scopes[task.name, order]
        rate = rng.choice([0.05, 0.1, 0.25, 0.25, 0.5, 0.5, 1.0])
        mutator = Mutator(rng, ORDER if order else OPERATIONS)
        script = Script(program, scope, mutator, rate, rng.random() < 0.005, lingers, bytearray(), bytearray())
        answer = self._judged(task, script, number)
        self.used.update(mutator.used)
        if answer is None:
            return
        if answer["outcome"] is Outcome.PASSED and order and script.said == script.honest:
            self.tally["honest"] += 1
            return
        self.tally[str(answer["kind"].value)] += 1
        if answer["outcome"] is Outcome.PASSED:
            self._find(number, task, "a right program passed with other answers" if order else "a wrong program passed")
        elif odd := _odd(answer):
            self._find(number, task, f"an odd verdict: {odd}")

    def _judged(self, task: Task, script: Script, number: int) -> dict[str, Any] | None:
        self.lane.box.script = script  # type: ignore[attr-defined]
        job = {"code": script.program, "entry_point": "f", "test": task.name, "prelude": ""}
        began = time.monotonic()
        faulthandler.dump_traceback_later(4 * HANGS, exit=True)  # in C, where no exception reaches
        try:
            answer = self.lane.judge(job)
        except BaseException as error:  # Broken too: no program can say that the machinery is
            if isinstance(error, KeyboardInterrupt):
                raise
            self._find(number, task, f"the judge died: {type(error).__name__}: {str(error)[:300]}")
            self._again()
            return None
        finally:
            faulthandler.cancel_dump_traceback_later()
        if time.monotonic() - began > HANGS:
            self._find(number, task, f"the judge took {time.monotonic() - began:.0f} s")
        return answer

    def _again(self) -> None:
        """Another speaker in the place of one whose conversation was left half-way."""
        box = self.lane.box
        if box._ours is not None:  # type: ignore[attr-defined]
            with contextlib.suppress(BaseException):
                box.next()

    def _find(self, number: int, task: Task, what: str) -> None:
        self.finds.append({"sequence": number, "task": task.name, "what": what})


def _odd(answer: dict[str, Any]) -> str:
    """What is wrong with a verdict that the scorer would be told; "" if nothing."""
    kind, outcome = answer["kind"], answer["outcome"]
    if not isinstance(kind, FailureKind) or kind is FailureKind.NONE:
        return f"failed with kind {kind!r}"
    if outcome is not (Outcome.TIMED_OUT if kind is FailureKind.TIMEOUT else Outcome.FAILED):
        return f"{outcome!r} of kind {kind!r}"
    raised, error = answer["raised"], answer["error"]
    if raised and not (raised.isidentifier() and raised.isascii() and len(raised) <= connection._NAME):
        return f"raised {raised!r}"
    if raised and kind is not FailureKind.RAISED:
        return f"raised {raised!r} of kind {kind!r}"
    if not isinstance(error, str) or not 0 < len(error) <= test_worker.ERROR_CHARS or not _printable(error):
        return f"error {error!r:.300}"
    json.dumps(answer).encode()
    return ""


def _printable(text: str) -> bool:
    text.encode()  # no lone surrogates
    return not any(ord(char) in test_worker._CONTROLS for char in text)


def chunk(
    seed: int, first: int, count: int, plant: str, only: str = "", *, last_lingers: float = LINGERS
) -> dict[str, Any]:
    """`count` sequences from number `first` on, on one lane; right programs at the start, between and at the end."""
    fuzz = Fuzz(seed, plant=plant, only=only)
    try:
        for number in range(first, first + count):
            if (number - first) % RIGHT_EVERY == 0:
                fuzz.right(number)
            fuzz.wrong(number, last_lingers if number == first + count - 1 else LINGERS)
        fuzz.right(first + count)
    finally:
        fuzz.close()
    return {"tally": fuzz.tally, "used": fuzz.used, "finds": fuzz.finds}


def run(seed: int, sequences: int, *, jobs: int = 1, plant: str = "", only: str = "") -> dict[str, Any]:
    """The whole of it, or with the task `only`; what `--out` gets."""
    tally: Counter[str] = Counter()
    used: Counter[str] = Counter()
    finds: list[dict[str, Any]] = []
    began = time.monotonic()
    pieces = [(at, min(CHUNK, sequences - at)) for at in range(0, sequences, CHUNK)]

    def add(part: dict[str, Any]) -> None:
        tally.update(part["tally"])
        used.update(part["used"])
        finds.extend(part["finds"])

    if jobs == 1:
        for at, count in pieces:
            add(chunk(seed, at, count, plant, only))
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=context) as pool:
            waiting = {pool.submit(chunk, seed, at, count, plant, only): at for at, count in pieces}
            for done, future in enumerate(concurrent.futures.as_completed(waiting), 1):
                try:
                    add(future.result())
                except concurrent.futures.process.BrokenProcessPool:
                    finds.append(
                        {
                            "sequence": waiting[future],
                            "task": "",
                            "what": f"the judge's process died, or hung for {4 * HANGS:g} s",
                        }
                    )
                if done % 10 == 0:
                    print(f"{done * CHUNK} of {sequences}, {len(finds)} finds", file=sys.stderr, flush=True)
    right, honest = tally.pop("right programs passed", 0), tally.pop("honest", 0)
    seconds = time.monotonic() - began
    return {
        "seed": seed,
        "sequences": sequences,
        "judged": sum(tally.values()) + honest,
        "wrong_programs_passed": tally.pop("", 0),
        "right_programs_passed": right,
        "passed_for_they_said_what_an_honest_child_says": honest,
        "finds": finds,
        "verdicts": dict(tally.most_common()),
        "changes": dict(used.most_common()),
        "tasks": [task.name for task in TASKS],
        "jobs": jobs,
        "seconds": round(seconds, 1),
        "sequences_per_second": round(sequences / seconds, 1),
        "python": platform.python_version(),
    }


def again(seed: int, number: int, *, plant: str = "", only: str = "") -> list[dict[str, Any]]:
    """What sequence `number` finds, after those before it on its lane: what is sent ahead hangs on them."""
    first = number - number % CHUNK
    found = chunk(seed, first, number - first + 1, plant, only, last_lingers=LINGERS_AGAIN)
    return [find for find in found["finds"] if find["sequence"] == number]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--only", type=int, help="this sequence alone")
    parser.add_argument("--plant", choices=sorted(PLANTS), default="", help="a judge with an old flaw")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.only is not None:
        finds = again(args.seed, args.only, plant=args.plant)
        print(json.dumps(finds, indent=1))
        return 1 if finds else 0
    result = run(args.seed, args.sequences, jobs=args.jobs, plant=args.plant)
    text = json.dumps(result, indent=1) + "\n"
    if args.out is not None:
        args.out.write_text(text)
    print(text, end="")
    return 1 if result["finds"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
