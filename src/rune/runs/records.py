"""What one cell of an experiment wrote, read once: what gate and report work on, whatever folders it lies in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rune.errors import DataError
from rune.runs import integrity, store
from rune.runs.store import RunDir
from rune.types import Decision, Problem, Sample, Trajectory, Treatment, Verdict


def decision(folder: RunDir) -> Decision:
    """decision.json. Raises DataError if it is missing or damaged."""
    path = folder / "decision.json"
    if not path.exists():
        raise DataError(f"{folder.path}: no decision.json; run `rune gate {folder.path}` first")
    found = store.decode(Decision, store.read_json(path), where=str(path))
    if not found.contrasts:
        raise DataError(f"{path}: field 'contrasts' is empty; what the gate compares comes first in it")
    return found


@dataclass(frozen=True)
class Records:
    """The records of one cell, or of several together. Each is read when it is first asked for."""

    read: Callable[[str], Any]  # a name below → its records

    @functools.cached_property
    def problems(self) -> list[Problem]:
        return list(self.read("problems"))

    @functools.cached_property
    def trajectories(self) -> list[Trajectory]:
        return list(self.read("trajectories"))

    @functools.cached_property
    def shown(self) -> list[Trajectory]:
        """What held-out tasks were given and nothing trained on."""
        return list(self.read("shown"))

    @functools.cached_property
    def treatments(self) -> list[Treatment]:
        return list(self.read("treatments"))

    @functools.cached_property
    def samples(self) -> list[Sample]:
        return list(self.read("samples"))

    @functools.cached_property
    def verdicts(self) -> list[Verdict]:
        return list(self.read("verdicts"))

    @functools.cached_property
    def diagnostics(self) -> Mapping[str, Any]:
        """diagnostics.json; empty if there is none."""
        found: Mapping[str, Any] = self.read("diagnostics")
        return found

    @functools.cached_property
    def metrics(self) -> tuple[Path, ...]:
        """Files of training curves."""
        return tuple(self.read("metrics"))

    @functools.cached_property
    def changes(self) -> tuple[str, ...]:
        """What the seals found."""
        return tuple(self.read("changes"))


FILES: Mapping[str, type] = {
    "problems": Problem,
    "trajectories": Trajectory,
    "shown": Trajectory,
    "treatments": Treatment,
    "samples": Sample,
    "verdicts": Verdict,
}


def of_run(folder: RunDir, elsewhere: Mapping[str, Callable[[], Any]] | None = None) -> Records:
    """The records of a run folder. `elsewhere`: those that lie in other files, by name."""

    def read(name: str) -> Any:
        if elsewhere and name in elsewhere:
            return elsewhere[name]()
        if name in FILES:
            return store.read_jsonl(folder / f"{name}.jsonl", FILES[name])
        if name == "diagnostics":
            path = folder / "diagnostics.json"
            return store.read_json(path) if path.exists() else {}
        if name == "metrics":
            return sorted((folder / "checkpoints").glob("**/metrics.jsonl"))
        return integrity.verify(folder)

    return Records(read)


def together(problems: Sequence[Problem], parts: Sequence[Records]) -> Records:
    """Several cells as one: draws of a task counted on, trajectories once each, diagnostics and curves of the first."""

    def read(name: str) -> Any:
        if name == "problems":
            return problems
        if name in ("trajectories", "shown"):
            return {t.trajectory_id: t for part in parts for t in getattr(part, name)}.values()
        if name == "treatments":
            return [t for part in parts for t in part.treatments]
        if name in ("samples", "verdicts"):
            return counted_on([getattr(part, name) for part in parts])
        if name == "changes":
            return [change for part in parts for change in part.changes]
        return getattr(parts[0], name)

    return Records(read)


def counted_on(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Samples or verdicts of several cells; where a task comes again, its draws go on from the earlier ones."""
    draws = max((one.draw for part in parts for one in part), default=0) + 1
    before: dict[str, int] = {}
    found: list[Any] = []
    for part in parts:
        found += [replace(one, draw=one.draw + draws * n) if (n := before.get(one.task_id, 0)) else one for one in part]
        before |= {task: before.get(task, 0) + 1 for task in {one.task_id for one in part}}
    return found
