"""What must hold before anything is decided: every sample judged, and all under seal as it was.

The decision itself is `analysis/gate.py`, over all cells `study/combine.py`.
"""

from __future__ import annotations

from rune.errors import GateError
from rune.runs import integrity, store


def demand(folder: store.RunDir) -> None:
    """Raises GateError unless everything under seal is as it was, and every sample is judged."""
    demand_promise(folder)
    _check_scored(folder)


def demand_promise(folder: store.RunDir) -> None:
    """Raises GateError if the folder has no pre-registration, or if anything under seal changed."""
    integrity.demand(folder)


def _check_scored(folder: store.RunDir) -> None:
    entry = folder.manifest().get("stages", {}).get("score", {})
    if entry.get("status") != "done":
        found = entry.get("status", "not started")
        raise GateError(f"{folder.path}: scoring is {found}, so nothing can be decided; run `rune score {folder.path}`")
