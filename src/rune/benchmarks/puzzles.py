"""Python Programming Puzzles (Schuster et al. 2021): find an input that satisfies a given `sat` function.

Training material only. A puzzle becomes "write `sol`": the prompt shows `sat` and the head of `sol`, the test
calls `sol()` and asserts that the answer is of the type that `sat` states for it, and `sat(answer)`. Only puzzles
with a known solution are given; the module derived from HumanEval must not be in the file, and one that is is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune.benchmarks.formats import data
from rune.errors import ContaminationError
from rune.types import Problem, Split

FILE = "python_programming_puzzles/puzzles.json"
SHA256 = {"puzzles.json": "3f8c7fe3d0f8989b1e13976a146b76302ae17ff63a94332b86ab5171869bf638"}
_TYPES = "from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Union\n"
# As in the original, where an answer of another type is none: `sat` alone would take True for 1, or what only looks
# like a list. A whole number will do where a float is asked for.
_CHECK = """

def _fits(value, hint):
    from typing import Any, Union, get_args, get_origin
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind is Union:
        return any(_fits(value, part) for part in parts)
    if hint is None or kind is type(None):
        return value is None
    if kind is float:
        return type(value) in (float, int)
    if type(value) is not kind:
        return False
    if kind is dict:
        return not parts or all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if kind is tuple and parts and parts[-1] is not Ellipsis:
        return len(value) == len(parts) and all(map(_fits, value, parts))
    return not parts or all(_fits(item, parts[0]) for item in value)


def check(candidate):
    from typing import get_type_hints
    answer = candidate()
    hints = get_type_hints(sat)
    name = sat.__code__.co_varnames[0]
    assert name not in hints or _fits(answer, hints[name])
    assert sat(answer) is True
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    path: str = ""  # the file or its folder; "" = from RUNE_DATA
    verify: bool = True  # refuse a file that is not the expected one
    per_problem: int = 1  # instances of one puzzle: "Study_1:0", "Study_1:1" differ in their numbers only

    def __post_init__(self) -> None:
        if self.per_problem < 1:
            raise ValueError(f"per_problem must be at least 1, found {self.per_problem}")


@dataclass(frozen=True, slots=True)
class Puzzles:
    config: Config

    def problems(self) -> list[Problem]:
        """Puzzles with a solution, in the file's order, ids "P3/name:instance". Raises DataError."""
        path = data.locate(self.config.path, FILE, hub="microsoft/PythonProgrammingPuzzles on GitHub")
        data.check(path, SHA256, verify=self.config.verify)
        taken: dict[str, int] = {}
        found = []
        for record in data.read(path):
            name, bodies = data.need(record, "name", "sol_bodies", where=path)
            kind = name.partition(":")[0]
            if bodies and taken.get(kind, 0) < self.config.per_problem:
                taken[kind] = taken.get(kind, 0) + 1
                found.append(_problem(record, path))
        return found


def build(config: Config) -> Puzzles:
    return Puzzles(config)


def _problem(record: dict[str, Any], path: Path) -> Problem:
    name, sat, header, module = data.need(record, "name", "sat", "sol_header", "module", where=path)
    if "human_eval" in module.lower() or "humaneval" in module.lower():
        raise ContaminationError(f"{path}: puzzle {name} comes from HumanEval; remove that module from the file")
    docstring, body = record.get("sol_docstring", ""), record["sol_bodies"][0]
    return Problem(
        task_id=f"P3/{name}",
        benchmark="puzzles",
        prompt=f"{_TYPES}\n{sat}\n\n{header}\n{docstring}\n    # return an answer for which sat(answer) is True\n",
        entry_point="sol",
        test=f"{_TYPES}\n{sat}\n{_CHECK}",
        reference=f"{_TYPES}\n{sat}\n\n{header}\n{docstring}\n{body}\n",
        category=module.removesuffix(".py").rpartition("/")[2].replace("_", " "),
        split=Split.TRAIN,
    )
