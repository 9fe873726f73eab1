"""What is sealed of verdicts.jsonl: the outcome by (arm, task, draw). Not seconds, not error texts, not the order.

So a file that was lost or spoilt can be made again from the sealed samples, on another machine, and is the same file to
the seal. Runs sealed before this (version 1: whole lines) are held to their lines.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rune.errors import RuneError
from rune.runs import store
from rune.runs.store import RunDir
from rune.types import Outcome, Sample, Verdict

FILE = "verdicts.jsonl"
VERSION = 2
DIGITS = 8  # hex digits kept of each line's digest: enough to name the line, the whole file has its sha256


class Key(NamedTuple):
    """Whose outcome it is."""

    condition: str
    task_id: str
    draw: int

    def __str__(self) -> str:
        return f"{self.task_id} {self.condition} draw {self.draw}"


class Found(NamedTuple):
    """A verdicts file, line by line: outcomes, and the numbers of lines that hold none."""

    outcomes: tuple[tuple[Key, Outcome], ...]
    unreadable: tuple[int, ...]
    raw: tuple[bytes, ...]  # those lines


class Changes(NamedTuple):
    """What differs from the seal."""

    edited: tuple[tuple[Key, Outcome, Outcome], ...]  # key, sealed, found
    missing: tuple[str, ...]  # keys by name where the samples tell them, else ""
    added: tuple[Key, ...]
    unreadable: tuple[int, ...]

    def __bool__(self) -> bool:
        return any(self)

    def describe(self) -> str:
        """One clause."""
        parts = []
        if self.edited:
            key, before, now = self.edited[0]
            parts.append(f"{_count(len(self.edited), 'outcome')} edited, the first {key}: {before} → {now}")
        if self.unreadable:
            parts.append(f"line {', '.join(map(str, self.unreadable[:5]))} is no verdict")
        if self.missing:
            first = f", the first {self.missing[0]}" if self.missing[0] else ""
            parts.append(f"{_count(len(self.missing), 'verdict')} missing{first}")
        if self.added:
            parts.append(f"{_count(len(self.added), 'verdict')} added, the first {self.added[0]}")
        return f"{FILE}: {', '.join(parts)}"


def read(path: Path) -> Found:
    """Every line of the file, whatever it holds."""
    outcomes, unreadable, raw = [], [], []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not line.strip():
            continue
        try:
            if not line.endswith(b"\n"):
                raise ValueError("torn")
            verdict = store.decode(Verdict, json.loads(line), where="")
        except (ValueError, RuneError):
            unreadable.append(number)
            raw.append(line)
        else:
            outcomes.append((Key(verdict.condition, verdict.task_id, verdict.draw), verdict.outcome))
    return Found(tuple(outcomes), tuple(unreadable), tuple(raw))


def fingerprint(found: Found) -> dict[str, Any]:
    """An entry of seals.json."""
    lines = sorted([_line(key, outcome) for key, outcome in found.outcomes] + [b"?" + line for line in found.raw])
    return {
        "version": VERSION,
        "sha256": hashlib.sha256(b"".join(lines)).hexdigest(),
        "lines": len(lines),
        "outcome_digests": "".join(map(digest_of, lines)),
    }


def changes(folder: RunDir, found: Found, sealed: Mapping[str, Any]) -> Changes:
    """`found` held against an entry that `fingerprint` made."""
    left = Counter(split(sealed["outcome_digests"]))
    unmatched = []
    for key, outcome in found.outcomes:
        digest = digest_of(_line(key, outcome))
        if left[digest]:
            left[digest] -= 1
        else:
            unmatched.append((key, outcome))
    edited, added = [], []
    for key, outcome in unmatched:
        before = next((o for o in Outcome if left[digest_of(_line(key, o))]), None)
        if before is None:
            added.append(key)
        else:
            left[digest_of(_line(key, before))] -= 1
            edited.append((key, before, outcome))
    names = _names(folder) if +left else {}
    missing = sorted((names.get(digest, "") for digest in left.elements()), reverse=True)  # named ones first
    return Changes(tuple(edited), tuple(missing), tuple(added), found.unreadable)


def of_sealed_lines(path: Path, line_digests: str) -> dict[Key, Outcome]:
    """The outcomes of those lines that a seal of version 1, by whole lines, still vouches for."""
    if not path.exists():
        return {}
    known = set(split(line_digests))
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if digest_of(line) in known]
    verdicts = [store.decode(Verdict, json.loads(line), where=str(path)) for line in lines]
    return {Key(v.condition, v.task_id, v.draw): v.outcome for v in verdicts}


def split(digests: str) -> list[str]:
    """Shortened digests that stand one behind another."""
    return [digests[i : i + DIGITS] for i in range(0, len(digests), DIGITS)]


def digest_of(line: bytes) -> str:
    """A line's digest, shortened."""
    return hashlib.sha256(line).hexdigest()[:DIGITS]


def _line(key: Key, outcome: Outcome) -> bytes:
    return json.dumps([*key, str(outcome)]).encode() + b"\n"


def _names(folder: RunDir) -> dict[str, str]:
    """What each digest may stand for, by the samples; nothing if they cannot be read."""
    with contextlib.suppress(RuneError, OSError):
        return dict(_possible(folder))
    return {}


def _possible(folder: RunDir) -> Iterator[tuple[str, str]]:
    for sample in store.read_jsonl(folder / "samples.jsonl", Sample):
        key = Key(sample.condition, sample.task_id, sample.draw)
        for outcome in Outcome:
            yield digest_of(_line(key, outcome)), str(key)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
