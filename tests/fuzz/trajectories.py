"""Damaged trajectory files, given to `rune collect --import`."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
from pathlib import Path
from typing import Any

from rune.corpus import reading
from rune.runs import store
from rune.types import Outcome, Trajectory
from tests.corpus.samples import SAMPLES
from tests.fuzz.damage import damage, refused, run, spoil

FIELDS = sorted({k for samples in SAMPLES.values() for s in samples if isinstance(s.record, dict) for k in s.record})


def make(number: int) -> tuple[str, bytes]:
    """(file name, content) of one input; the same for the same number."""
    rng = random.Random(number)
    lines: list[Any] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        sample = rng.choice(SAMPLES[rng.choice(list(SAMPLES))])
        record = damage(sample.record, rng, FIELDS)
        lines += record if sample.lines and isinstance(record, list) else [record]
    if rng.random() < 0.3:
        text = json.dumps(lines if rng.random() < 0.6 or not lines else lines[0], indent=rng.choice((None, 2)))
    else:
        text = "".join(json.dumps(line) + "\n" for line in lines)
    name = rng.choice(("x.jsonl", "x.json", "x.traj", "x.traj.json", "x.jsonl.gz"))
    return name, spoil(text.encode("utf-8", "surrogatepass"), rng)


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
        if code != 0:
            refused(code, out, err)
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
