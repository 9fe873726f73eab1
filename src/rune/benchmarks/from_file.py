"""Tasks of one's own: a file in the form of a run's problems.jsonl, with the domains and splits that stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rune.errors import DataError
from rune.runs import store
from rune.types import Problem


@dataclass(frozen=True, kw_only=True)
class Config:
    """`[benchmark.settings]`."""

    path: str  # the file


@dataclass(frozen=True, slots=True)
class FromFile:
    config: Config

    def problems(self) -> list[Problem]:
        """In the file's order. Raises DataError for a file that is not there or empty, a damaged line, an id twice."""
        path = Path(self.config.path)
        if not path.is_file():
            raise DataError(f"{path}: no such file; give benchmark.settings.path a JSON Lines file of problems")
        found = store.read_jsonl(path, Problem)
        if not found:
            raise DataError(f"{path}: no problem in it; one line a problem, as in a run's problems.jsonl")
        seen: set[str] = set()
        for problem in found:
            if problem.task_id in seen:
                raise DataError(f"{path}: task '{problem.task_id}' stands there twice; every task has its own id")
            seen.add(problem.task_id)
        return found


def build(config: Config) -> FromFile:
    return FromFile(config)
