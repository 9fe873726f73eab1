"""Every answer judged as its own task says: `Problem.scorer` names the file beside this one.

A scorer's file has three functions. `judge` gives verdicts; `trials` are answers that must pass or must not, by which
it proves itself before anything counts; `checks` are what another path has to find again of an answer that passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

from rune import plugins
from rune.types import Execution, Problem, Program, Sandbox, Scorer


class Item(NamedTuple):
    """One answer to one task."""

    key: str
    problem: Problem
    code: str  # the program, or the value as it was written


class Trial(NamedTuple):
    """An answer whose verdict is known beforehand."""

    what: str
    problem: Problem
    code: str
    passes: bool


class Check(NamedTuple):
    """A program and whether it passes its test: what must be so if an answer's pass is one."""

    program: Program
    passes: bool


class Judging(Protocol):
    """A file in this folder that `types.Scorer` names."""

    def judge(self, sandbox: Sandbox, items: Iterable[Item]) -> Iterator[Execution]:
        """One execution an item, in any order; `passed` is what counts. Raises SandboxError as the sandbox does."""

    def trials(self, problem: Problem, *, forged: bool) -> Iterator[Trial]:
        """The reference, stubs and, if `forged`, what would be a success only for a scorer that can be deceived."""

    def checks(self, key: str, code: str, problem: Problem) -> tuple[Check, ...]:
        """What holds for an answer that passed, as programs that another path can run."""


def of(scorer: Scorer) -> Judging:
    """The file of a scorer."""
    return cast(Judging, plugins.load("benchmarks.scorers", scorer.value))


def judge(sandbox: Sandbox, items: Iterable[Item]) -> Iterator[Execution]:
    """One execution an item, in any order. Raises SandboxError."""
    groups: dict[Scorer, list[Item]] = {}
    for item in items:
        groups.setdefault(item.problem.scorer, []).append(item)
    for scorer, some in groups.items():
        yield from of(scorer).judge(sandbox, some)


def trials(problems: Sequence[Problem], *, forged: int) -> list[Trial]:
    """Of all tasks; forgeries attack the scorer, not the task, and are made for the first `forged` tasks only."""
    return [
        trial
        for number, problem in enumerate(problems)
        for trial in of(problem.scorer).trials(problem, forged=number < forged)
    ]
