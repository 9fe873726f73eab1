"""CRUXEval's functions (Gu et al. 2024, arXiv 2401.03065) under nonce names, with inputs and values that are known.

Their code is not run: inputs and values are those of CRUXEval's file, and of EXTRA beside it, further inputs that were
made by mutation and run once. The hub has one input a function, too few to show some and ask for others.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rune.benchmarks import cruxeval, pbb
from rune.benchmarks.formats import data
from rune.config import digest
from rune.errors import DataError
from rune.types import Attempt, FailureKind, Outcome, Trajectory

EXTRA = "extra_inputs.jsonl"
SHORT, SHORT_CODE = 40, 300  # characters of an input or a value, and of a function
_STARTS = ("b", "br", "ch", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kl", "l", "m", "n", "p", "pl", "qu", "r")
_MIDDLES = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "x", "z")


class Renamed(NamedTuple):
    """A function by others."""

    name: str
    code: str
    known: tuple[tuple[tuple[Any, ...], str], ...]  # arguments and the text of the value; the first SHOWN are shown
    origin: str  # its id in CRUXEval

    def calls(self) -> list[tuple[str, str]]:
        return [(pbb.call_of(self.name, values), value) for values, value in self.known]


def nonce(rng: random.Random) -> str:
    """A name of the same kind as `pbb`'s, from more syllables."""
    return rng.choice(_STARTS) + rng.choice("aeiou") + rng.choice(_MIDDLES) + rng.choice(pbb.ENDS)


def functions(rng: random.Random, *, path: str, verify: bool, taken: set[str]) -> Iterator[Renamed]:
    """Those that are short, with more than SHOWN short inputs and more than one value; in the file's order.

    One by one: who asks about a function draws from `rng` before the next one's name is drawn.

    `path`: the file or its folder, "" for RUNE_DATA; `verify`: refuse a file that is not the pinned one; `taken`: names
    that are others'. Raises DataError for a file that is missing or is not what it should be.
    """
    if path == "hub":
        raise DataError(
            f"CRUXEval from the hub has one input a function, and {pbb.SHOWN} are shown before others are asked for; "
            f"give the path of a folder with cruxeval.jsonl and {EXTRA}, or set RUNE_DATA"
        )
    file = data.locate(path, cruxeval.FILE, hub=cruxeval.HUB.name)
    data.check(file, cruxeval.SHA256, verify=verify)
    if not (beside := file.with_name(EXTRA)).is_file():
        raise DataError(f"{beside}: no such file, and CRUXEval alone has one input a function; put {EXTRA} there")
    extra = {str(name): more for r in data.read(beside) for name, more in [data.need(r, "id", "extra", where=beside)]}
    names = set(taken)
    for record in data.read(file):
        origin, code = data.need(record, "id", "code", where=file)
        known = _short([record, *extra.get(origin, ())])
        name = nonce(rng)
        plain = len(code) <= SHORT_CODE and not re.search(r"\bf\b(?![('\"])", code)
        if not plain or name in names or len(known) <= pbb.SHOWN or len({v for _, v in known}) < 2:
            continue
        names.add(name)
        yield Renamed(name, re.sub(r"\bf\(", f"{name}(", code).strip() + "\n", tuple(known), origin)


def lesson(one: Renamed) -> Trajectory:
    """What `pbb.trajectory` is of our own: its test with SHOWN inputs, a stub that fails, the function."""
    head = next(line for line in one.code.split("\n") if line.startswith("def "))
    calls = one.calls()[: pbb.SHOWN]
    stub = Attempt(
        code=f"{head}\n    return None\n",
        outcome=Outcome.FAILED,
        error_kind=FailureKind.WRONG_ANSWER.value,
        error=f"{calls[0][0]} is None, not {calls[0][1]}",
    )
    lines = "\n".join(f"assert {call} == {value}" for call, value in calls)
    return Trajectory(
        trajectory_id=digest([pbb.NAME, one.origin, one.name])[:16],
        task_id=f"PBB/{one.name}/definition",
        benchmark=pbb.NAME,
        prompt=f"Write the function {one.name} so that all of these hold:\n{lines}",
        attempts=(stub, Attempt(code=one.code, outcome=Outcome.PASSED)),
        solution=one.code,
        category="cruxeval",
        domain=one.name,
        source="pbb",
    )


def _short(records: Sequence[Mapping[str, str]]) -> list[tuple[tuple[Any, ...], str]]:
    """Arguments and the text of the value, of the records where both are short literals, and differ."""
    found: dict[str, tuple[tuple[Any, ...], str]] = {}
    for record in records:
        if max(len(record["input"]), len(record["output"])) > SHORT or record["input"] == record["output"]:
            continue
        try:
            values = ast.literal_eval(f"({record['input']},)")
            found.setdefault(repr(values), (values, repr(ast.literal_eval(record["output"]))))
        except (SyntaxError, ValueError, TypeError):
            continue
    return list(found.values())
