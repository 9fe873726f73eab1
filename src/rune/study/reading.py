"""Opens an experiment's folder for the verbs that only look or decide. Loads neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rune.errors import RuneError
from rune.runs import records, store
from rune.runs.store import RunDir
from rune.stages import gate
from rune.study import combine, folders, version1
from rune.study.config import raw_in
from rune.types import Decision


def source(path: Path) -> combine.Source:
    """An experiment as the decision sees it.

    Raises StoreError if `path` is none, GateError for what cannot be read because it was changed under its seal.
    """
    folder = RunDir.open(path)
    try:
        return _source(folder)
    except (RuneError, OSError):
        if folder.manifest().get("seals"):
            gate.demand_promise(folder)  # an edit is named as one, before what it broke
        raise


def _source(folder: RunDir) -> combine.Source:
    if folder.version != store.SCHEMA_VERSION:
        return version1.source(folder)
    if "cells" in folder.manifest():
        return combine.of_experiment(folders.reopen(folder.path))
    return combine.of_one_cell(folder, raw_in(folder))


def result(folder: RunDir) -> dict[str, Any] | None:
    """result.json of an experiment of several cells, None for one cell or before a decision."""
    path = folder / "result.json"
    return version1.result(store.read_json(path)) if path.exists() else None


def decided(folder: RunDir) -> bool:
    """Is a decision there, whole or damaged?"""
    return (folder / "decision.json").exists() or (folder / "result.json").exists()


def decision(folder: RunDir) -> Decision:
    """What was decided. Raises DataError if nothing was yet, or if what is there is damaged."""
    if not (folder / "decision.json").exists() and (found := result(folder)):
        first = next(iter(found["variants"].values()))["pooled"]["decision"]
        return store.decode(Decision, first, where=str(folder / "result.json"))
    return records.decision(folder)
