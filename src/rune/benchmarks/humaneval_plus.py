"""HumanEval+ (Liu et al. 2023, EvalPlus v0.1.10): HumanEval's tasks with about 80 times the tests. Evaluation only.

Reads HumanEvalPlus-OriginFmt.jsonl.gz, whose tests hold the expected values. Two things are mended: numpy, used
for two comparisons, is replaced by the same comparison in plain Python (loading it would cost more than most
tests), and the checker of HumanEval/32, which applies its polynomial to swapped arguments and refuses every
answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rune.benchmarks import humaneval
from rune.benchmarks._evalplus import without_numpy
from rune.benchmarks.formats import data
from rune.types import Problem, Split

FILE = "humaneval_plus/HumanEvalPlus-OriginFmt.jsonl.gz"
SHA256 = {"HumanEvalPlus-OriginFmt.jsonl.gz": "daa7661c8189924068069b0872a440b491edb60f8bdf431d5957adc88d18bae5"}
HUB = data.OnHub("evalplus/humanevalplus", "", 164)
_BROKEN_32 = "assert _poly(*candidate(*inp), inp) <= 0.0001"
_MENDED_32 = "assert abs(_poly(*inp, candidate(*inp))) <= 0.0001"


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    path: str = ""  # the file or its folder; "" = from RUNE_DATA; "hub"
    verify: bool = True  # refuse a file that is not the official one


@dataclass(frozen=True, slots=True)
class HumanEvalPlus:
    config: Config

    def problems(self) -> list[Problem]:
        """All 164 tasks, under HumanEval's ids, every one HELD_OUT. Raises DataError."""
        return self.read(None)

    def read(self, unreadable: list[data.Unreadable] | None) -> list[Problem]:
        """The same; a malformed task is no error but goes to `unreadable`, if that is given."""
        categories = {p.task_id: p.category for p in humaneval.build(humaneval.Config()).problems()}
        return data.load_problems(
            self.config.path,
            FILE,
            SHA256,
            lambda record, where: _problem(record, where, categories),
            hub=HUB,
            verify=self.config.verify,
            unreadable=unreadable,
        )


def build(config: Config) -> HumanEvalPlus:
    return HumanEvalPlus(config)


def _problem(record: dict[str, Any], where: str, categories: dict[str, str]) -> Problem:
    task_id, test = data.texts(record, "task_id", "test", where=where)
    mended = {**record, "test": without_numpy(test.replace(_BROKEN_32, _MENDED_32))}
    # HumanEval's own test decides the category, so that a task has the same one in both benchmarks.
    problem = humaneval.problem(mended, where, benchmark="humaneval_plus", category=categories.get(task_id, ""))
    return replace(problem, split=Split.HELD_OUT)
