"""verdicts → decision.json: checks the seals, looks for leaks, decides (`analysis/gate.py`) and writes it down."""

from __future__ import annotations

from rune.analysis.gate import Config, over
from rune.config import plain
from rune.errors import GateError
from rune.runs import integrity, records, store
from rune.stages.context import Context
from rune.types import Decision, Problem


def run(folder: store.RunDir, config: Config, context: Context | None = None) -> Decision:
    """Check the seals, run the leakage check, decide, write decision.json and leakage.json."""
    demand(folder)
    problems = store.read_jsonl(folder / "problems.jsonl", Problem)
    decision, found = over(problems, [records.of_run(folder)], config)
    store.write_json(folder / "leakage.json", found)
    store.write_json(folder / "decision.json", plain(decision))
    return decision


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
