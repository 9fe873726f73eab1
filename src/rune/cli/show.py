"""`rune show RUN`: what a run is, how far it is and what it found, of one cell or of many. Loads no model."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rune import console
from rune.errors import DataError, RuneError, StoreError

if TYPE_CHECKING:
    from rune.runs.store import RunDir

RECORDS = ("problems", "trajectories", "treatments", "samples", "verdicts")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a folder of runs")


def run(args: argparse.Namespace) -> int:
    from rune.runs.store import RunDir

    path: Path = args.run
    if (path / "manifest.json").is_file():
        _one(RunDir.open(path))
        return 0
    runs = sorted(p.parent for p in path.glob("*/manifest.json")) if path.is_dir() else []
    if not runs:
        raise StoreError(f"{path}: no run folder and no folder of runs; `rune run CONFIG` makes one under runs/")
    rows, foreign = [], []
    for folder in runs:
        try:
            rows.append(_row(RunDir.open(folder)))
        except (RuneError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            foreign.append(f"{folder.name}: no run of this rune ({_words(error)})")
    if rows:
        console.out(console.table(rows, ("run", "created", "status", "answer")))
    for text in foreign:
        console.warn(text)
    if not rows:
        raise StoreError(f"{path}: none of its {len(runs)} folders with a manifest is a run of this rune")
    return 0


def _words(error: Exception) -> str:
    """What was wrong with a manifest, without the path that stands before it."""
    text = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
    return text.partition(": ")[2] or text or type(error).__name__


def _row(folder: RunDir) -> tuple[object, ...]:
    manifest = folder.manifest()
    return (folder.path.name, manifest["created"], manifest["status"], _answer(folder))


def _answer(folder: RunDir) -> str:
    from rune.study import reading

    try:
        return reading.decision(folder).answer
    except DataError:
        return "not decided"


def _one(folder: RunDir) -> None:
    from rune.runs import store
    from rune.study import reading

    manifest = folder.manifest()
    result = reading.result(folder)
    model, device = manifest.get("model") or {}, manifest.get("device", "?")
    if result:
        model, device = result["model"] or model, result["device"]
    console.out(f"{folder.path}  ({manifest['created']}, rune {manifest['rune']}, {manifest['environment']['commit']})")
    if model:
        console.out(f"model   {model['name']}  sha256 {model['sha256'][:12]}…  on {device}")
    counts = [
        (name, sum(1 for _ in store.read_lines(folder / f"{name}.jsonl")))
        for name in RECORDS
        if (folder / f"{name}.jsonl").exists()
    ]
    if counts:
        console.out("files   " + ", ".join(f"{n} {name}" for name, n in counts))
    if cells := manifest.get("cells"):
        _cells(folder, cells)
    rows: list[tuple[object, ...]] = [
        (name, entry["status"], f"{entry.get('seconds', 0):.1f} s") for name, entry in manifest["stages"].items()
    ]
    if rows:
        console.out(console.table(rows, ("stage", "status", "time")))
    if result:
        _variants(result)
    try:
        decision = reading.decision(folder)
    except DataError:
        console.out("not decided")
        return
    arms: list[tuple[object, ...]] = [
        (a.condition, f"{100 * a.pass_at_1:.1f}", f"{a.num_passed}/{a.num_samples}") for a in decision.arms
    ]
    if result and len(result["variants"]) > 1:
        console.out(f"the first variant, {next(iter(result['variants']))}, which decides:")
    console.out(console.table(arms, ("arm", f"{decision.scorer.measure()} %", "passed")))
    console.out(f"effect  {decision.effect_points:+.2f} points (threshold {decision.threshold_points})")
    if decision.evidence:
        console.out(f"        {decision.evidence}")
    if (folder / "report.html").exists():
        console.out(f"report  {folder / 'report.html'}")
    console.out(decision.answer)


def _cells(folder: RunDir, names: list[str]) -> None:
    """How far the cells are."""
    from rune.runs.store import RunDir

    states = Counter(
        str(cell.manifest()["status"]) if cell.manifest_path.is_file() else "gone"
        for cell in (RunDir(folder / "cells" / name) for name in names)
    )
    console.out(f"cells   {len(names)}: " + ", ".join(f"{count} × {state}" for state, count in states.items()))


def _variants(result: Any) -> None:
    """Every variant's arms, effect and answer, all seeds together."""
    rows: list[tuple[object, ...]] = []
    decisions = {name: found["pooled"]["decision"] for name, found in result["variants"].items()}
    arms = list(dict.fromkeys(arm["condition"] for found in decisions.values() for arm in found["arms"]))
    for name, found in decisions.items():
        rates = {arm["condition"]: f"{100 * arm['pass_at_1']:.1f}" for arm in found["arms"]}
        shown = (rates.get(arm, "–") for arm in arms)
        rows.append((name, *shown, f"{found['effect_points']:+.2f}", found["answer"]))
    console.out(console.table(rows, ("variant", *arms, "effect, points", "answer")))
