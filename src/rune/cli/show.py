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
    from rune.runs.store import RunDir, instead_of_a_run

    path: Path = args.run
    if (path / "manifest.json").is_file():
        _one(RunDir.open(path))
        return 0
    runs = sorted(p.parent for p in path.glob("*/manifest.json")) if path.is_dir() else []
    if not runs:
        raise StoreError(f"{path}: no run folder and no folder of runs; {instead_of_a_run(path)}")
    rows, foreign = [], []
    damaged: list[DataError] = []
    for folder in runs:
        try:
            rows.append(_row(RunDir.open(folder), damaged))
        except (RuneError, OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            foreign.append(f"{folder.name}: no run of this rune ({_words(error)})")
    if rows:
        console.out(console.table(rows, ("run", "created", "status", "phase", "answer")))
        console.out("")
        for line in _phases([RunDir.open(path / str(row[0])) for row in rows]):
            console.out(line)
    for text in foreign:
        console.warn(text)
    if not rows:
        raise StoreError(f"{path}: none of its {len(runs)} folders with a manifest is a run of this rune")
    for other in damaged[1:]:
        console.warn(str(other))
    if damaged:
        raise damaged[0]
    return 0


def _words(error: Exception) -> str:
    """What was wrong with a manifest, without the path that stands before it."""
    text = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
    return text.partition(": ")[2] or text or type(error).__name__


def _row(folder: RunDir, damaged: list[DataError]) -> tuple[object, ...]:
    """A run in the table; what is wrong with its decision is added to `damaged`."""
    from rune.study import reading

    manifest, answer = folder.manifest(), "not decided"
    if reading.decided(folder):
        try:
            answer = reading.decision(folder).answer
        except DataError as error:
            answer = "damaged"
            damaged.append(error)
    return (folder.path.name, manifest["created"], manifest["status"], _phase(folder), answer)


def _phase(folder: RunDir) -> int:
    """Of a run; one of before phases had numbers is of phase 1."""
    return int(folder.manifest().get("phase", {}).get("number", 1))


def _phases(folders: list[RunDir]) -> list[str]:
    """One line a phase: what it waits for, and which of these runs would open it. `rune run` is what verifies it."""
    from rune.study import phases, reading

    lines = []
    for number, title in phases.TITLES.items():
        passed = []
        for folder in folders:
            try:
                if _phase(folder) == number - 1 and reading.decision(folder).passed:
                    passed.append(folder.path.name)
            except RuneError:
                continue
        if number == 1:
            state = "waits for nothing"
        elif passed:
            state = f"phase {number - 1} passed in {', '.join(passed)}"
        else:
            state = f"waits for a passed decision of phase {number - 1}: none of these runs"
        lines.append(f"phase {number}  {title}: {state}")
    return lines


def _one(folder: RunDir) -> None:
    from rune.reporting import words
    from rune.runs import store
    from rune.study import combine, reading

    manifest = folder.told()
    result = reading.result(folder)
    model, device = manifest.get("model") or {}, manifest.get("device", "?")
    if result:
        model, device = result["model"] or model, result["device"]
    console.out(f"{folder.path}  ({manifest['created']}, rune {manifest['rune']}, {manifest['environment']['commit']})")
    if phase := words.phase(manifest.get("phase", {})):
        console.out(f"phase   {phase}")
    for line in words.overrides(manifest.get("phase", {})):
        console.out(f"        {line}")
    if model:
        console.out(f"model   {model['name']}  sha256 {model['sha256'][:12]}…  on {device}")
        console.out(f"        {words.base({**manifest, 'model': model})}")
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
    if not reading.decided(folder):
        console.out("not decided")
        return
    decision = reading.decision(folder)
    arms: list[tuple[object, ...]] = [
        (a.condition, f"{100 * a.pass_at_1:.1f}", f"{a.num_passed}/{a.num_samples}") for a in decision.arms
    ]
    if result and len(result["variants"]) > 1:
        console.out(f"the first variant, {next(iter(result['variants']))}, which decides:")
    console.out(console.table(arms, ("arm", f"{decision.scorer.measure()} %", "passed")))
    compared = decision.contrasts[0].name
    console.out(f"effect  {compared}: {decision.effect_points:+.2f} points (threshold {decision.threshold_points})")
    if decision.evidence:
        console.out(f"        {decision.evidence}")
    console.out(f"decision  sha256 {combine.digest_of(folder)}")
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
    compared = next(iter(decisions.values()))["contrasts"][0]["name"]
    arms = list(dict.fromkeys(arm["condition"] for found in decisions.values() for arm in found["arms"]))
    for name, found in decisions.items():
        rates = {arm["condition"]: f"{100 * arm['pass_at_1']:.1f}" for arm in found["arms"]}
        shown = (rates.get(arm, "–") for arm in arms)
        rows.append((name, *shown, f"{found['effect_points']:+.2f}", found["answer"]))
    console.out(console.table(rows, ("variant", *arms, f"{compared}, points", "answer")))
