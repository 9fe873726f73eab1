"""CRUXEval-O (Gu et al. 2024, arXiv 2401.03065): what does a short function return for one input?

The answer is a Python value, read and compared, never executed (`scorers/exact_value.py`). The original executes
`assert f(input) == answer`, where True equals 1 and an answer may be an expression; here it must be the value. The file
has no split of its own: `[design]` makes one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune.benchmarks import _categories
from rune.benchmarks.formats import data
from rune.benchmarks.scorers import exact_value
from rune.errors import DataError
from rune.types import Problem, Scorer

NAME = "cruxeval"
FILE = "cruxeval/cruxeval.jsonl"
SHA256 = {"cruxeval.jsonl": "0d0b3aabafb35b57381f918f6082704c3d96bd87793f8375f207c365936459ff"}
HUB = data.OnHub("cruxeval-org/cruxeval", "", 800)


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    path: str = ""  # the file or its folder; "" = from RUNE_DATA; "hub"
    verify: bool = True  # refuse a file that is not the pinned one


@dataclass(frozen=True, slots=True)
class CruxEval:
    """The benchmark: `problems()` in the file's order."""

    config: Config

    def problems(self) -> list[Problem]:
        """All tasks, ids "cruxeval/sample_N". Raises DataError."""
        records, path = data.load(self.config.path, FILE, SHA256, hub=HUB, verify=self.config.verify)
        return [_problem(record, path) for record in records]


def build(config: Config) -> CruxEval:
    return CruxEval(config)


def _problem(record: dict[str, Any], path: Path) -> Problem:
    name, code, given, output = data.need(record, "id", "code", "input", "output", where=path)
    try:
        exact_value.parse(output)
    except exact_value.NoValue as error:
        raise DataError(f"{path}: task {name}: field 'output': {error}") from None
    return Problem(
        task_id=f"{NAME}/{name}",
        benchmark=NAME,
        prompt=f"{code.strip()}\n\n# What is the value of f({given.strip()})?\n",
        entry_point="",
        test=output,
        reference=output,
        category=_categories.categorise(reference=code, entry_point="f", test=f"f({given.strip()})"),
        scorer=Scorer.EXACT_VALUE,
    )
