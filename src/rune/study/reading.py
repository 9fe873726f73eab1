"""Opens an experiment's folder for the verbs that only look or decide. Loads neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rune.errors import DataError, RuneError
from rune.runs import store
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


def decision(folder: RunDir) -> Decision:
    """What was decided. Raises DataError if nothing was yet."""
    path = folder / "decision.json"
    if path.exists():
        return store.decode(Decision, store.read_json(path), where=str(path))
    if found := result(folder):
        first = next(iter(found["variants"].values()))["pooled"]["decision"]
        return store.decode(Decision, first, where=str(folder / "result.json"))
    raise DataError(f"{folder.path}: no decision.json; run `rune gate {folder.path}` first")
