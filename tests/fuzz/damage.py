"""What happens to files: values replaced, dropped, nested or repeated; bytes cut, joined, re-encoded or flipped."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import random
import signal
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from rune.cli.main import main

SECONDS = 60  # what one input may take; more is a find
WAITS = 20  # times as long by the clock, for what waits
PATCH = "diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n@@ -1 +1 @@\n-a\n+b\n"

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2.5,
    10**30,
    float("nan"),
    "",
    " ",
    "x",
    "\x00",
    "\ud800",
    "é" * 9,
    [],
    {},
]
ODD += [
    "True",
    "null",
    "[]",
    "{}",
    "[1, 2",
    [[]],
    [None],
    {"": ""},
    {"role": "assistant"},
    [{"role": "user"}],
    "```bash\nx",
]
ODD += [
    PATCH,
    "diff --git a/x b/x",
    "sed -i s/a/b/ x.py",
    "cat > x <<EOF",
    "$(" * 50,
    "'" * 9,
    "-----BEGIN PRIVATE KEY-----",
]
ODD += [
    "sk-" + "a1B2" * 8,
    "https://a:b@c",
    "/home/x/",
    "\r\n",
    "\u2028",
    "9" * 5000,
    "<function=bash>",
    "@@ -1 +1 @@\n-a\n+b",
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or index) of a JSON value."""
    found, rest = [], [value]
    while rest:
        one = rest.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
        for key in keys:
            found.append((one, key))
            rest.append(one[key])
    return found


def damage(value: Any, rng: random.Random, fields: Sequence[str] = ()) -> Any:
    """A few values replaced, dropped, repeated, moved, wrapped or stored as text."""
    value = [copy.deepcopy(value)]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        spots = places(value)
        if not spots:
            break
        container, key = rng.choice(spots)
        kind = rng.randrange(9)
        if kind <= 2:
            container[key] = copy.deepcopy(rng.choice(ODD))
        elif kind == 3:
            del container[key]
        elif kind == 4 and isinstance(container, dict):
            container[rng.choice(fields or [str(key)])] = copy.deepcopy(container[key])
        elif kind == 4:
            container.insert(key, copy.deepcopy(container[key]))
        elif kind == 5:
            container[key] = [container[key]] if rng.random() < 0.5 else {"content": container[key]}
        elif kind == 6:
            with contextlib.suppress(ValueError):
                container[key] = json.dumps(container[key])
        elif kind == 7 and isinstance(container[key], str):
            text = container[key]
            at = rng.randrange(len(text) + 1)
            container[key] = text[:at] + str(rng.choice(ODD)) + text[at:]
        elif kind == 8 and isinstance(container, list):
            rng.shuffle(container)
    return value[0] if len(value) == 1 else value


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Bytes as they come out of a full disk, another editor or another machine."""
    kind = rng.randrange(12)
    at = rng.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + rng.randbytes(rng.randrange(1, 5)) + data[at:]
    if kind == 2:
        return gzip.compress(data)
    if kind == 3:
        return gzip.compress(data)[: rng.randrange(40)]
    if kind == 4:
        return b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")
    if kind == 5:
        return data.decode("utf-8", "replace").encode("utf-16")
    if kind == 6:
        return data + data
    return data


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raises TimeoutError in what takes too long: an odd number must not become an endless loop.

    What counts is the processor's time, so that a busy machine finds nothing; what waits has `WAITS` times as long.
    """

    def ring(_number: int, _frame: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, WAITS * SECONDS))
    before = [signal.signal(number, ring) for _, number, _ in timers]
    try:
        for timer, _, seconds in timers:
            signal.setitimer(timer, seconds)
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def run(*command: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command in this process; -1 and the traceback if it broke."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with bounded():
                code = main(list(command))
        except SystemExit as stop:
            code = int(str(stop.code))
        except BaseException:
            return -1, out.getvalue(), traceback.format_exc()
    return code, out.getvalue(), err.getvalue()


def refused(code: int, out: str, err: str) -> None:
    """Raises AssertionError unless a command ended with exit code 2, one line and nothing on stdout."""
    assert code == 2, err
    assert out == "" and err.count("\n") == 1 and err.startswith("rune"), (out, err)
