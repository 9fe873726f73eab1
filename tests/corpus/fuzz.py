"""Damaged trajectory files by the thousand, through the command: one line and exit 2, or a right result.

    python tests/corpus/fuzz.py --count 10000 --seed 0        # minutes; prints what came out

An input is a sample of some format (or several, of several), its values replaced, dropped, nested or repeated, then its
bytes cut, joined, re-encoded or flipped. What must hold is in `judge`. `test_fuzz.py` runs a few hundred in CI.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rune.cli.main import main
from rune.corpus import reading
from rune.runs import store
from rune.types import Outcome, Trajectory
from tests.corpus.samples import PATCH, SAMPLES

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
FIELDS = sorted({k for samples in SAMPLES.values() for s in samples if isinstance(s.record, dict) for k in s.record})


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


def damage(value: Any, rng: random.Random) -> Any:
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
            container[rng.choice(FIELDS)] = copy.deepcopy(container[key])
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


def make(number: int) -> tuple[str, bytes]:
    """(file name, content) of one input; the same for the same number."""
    rng = random.Random(number)
    lines: list[Any] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        sample = rng.choice(SAMPLES[rng.choice(list(SAMPLES))])
        record = damage(sample.record, rng)
        lines += record if sample.lines and isinstance(record, list) else [record]
    if rng.random() < 0.3:
        text = json.dumps(lines if rng.random() < 0.6 or not lines else lines[0], indent=rng.choice((None, 2)))
    else:
        text = "".join(json.dumps(line) + "\n" for line in lines)
    name = rng.choice(("x.jsonl", "x.json", "x.traj", "x.traj.json", "x.jsonl.gz"))
    return name, spoil(text.encode("utf-8", "surrogatepass"), rng)


def run(*command: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command in this process; -1 and the traceback if it broke."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(command))
        except SystemExit as stop:
            code = int(str(stop.code))
        except BaseException:
            return -1, out.getvalue(), traceback.format_exc()
    return code, out.getvalue(), err.getvalue()


def proof(data: bytes) -> bool:
    """Whether anything in a file could say that a task was solved."""
    with contextlib.suppress(Exception):
        data = gzip.decompress(data)
    plain = data.replace(b"\x00", b"")  # UTF-16
    return any(word in plain for word in (b"resolved", b"target", b"passed", b"problem_statement"))


def judge(number: int, folder: Path) -> str:
    """What became of one input: "read" or "refused". Raises AssertionError if it is neither."""
    name, data = make(number)
    path, target = folder / name, folder / "out.jsonl"
    path.write_bytes(data)
    code, out, err = run("collect", "--import", str(path), "-o", str(target))
    left = {p.name for p in folder.iterdir()}
    try:
        assert code in (0, 2), err
        if code == 2:
            assert out == "" and err.count("\n") == 1 and err.startswith("rune: "), (out, err)
            assert str(path) in err, err
            assert left == {name}, left
            return "refused"
        assert left == {name, "out.jsonl"}, left
        found = store.read_jsonl(target, Trajectory)
        assert found and f"{len(found)} trajectories" in out
        assert reading.read(target) == found  # whole, redacted, and taken again as it is
        for one in found:
            reading.check(one, "it")
            assert sum(a.outcome is Outcome.PASSED for a in one.attempts) == bool(one.solution)
            assert not one.solution or proof(data), one
        return "read"
    finally:
        for file in folder.iterdir():
            file.unlink()


def campaign(count: int, start: int) -> Counter[str]:
    """`count` inputs that hypothesis picks, from one seed. Raises with the number of the first that fails."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:

        @seed(start)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.integers(0, 2**63))
        def each(number: int) -> None:
            seen.add(number)
            try:
                found[judge(number, Path(folder))] += 1
            except AssertionError as error:
                raise AssertionError(f"input {number}: {error}") from error

        each()
    found["distinct"] = len(seen)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    given_args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begun = time.monotonic()
    counts = campaign(given_args.count, given_args.seed)
    print(json.dumps({**counts, "seconds": round(time.monotonic() - begun, 1), "seed": given_args.seed}))
