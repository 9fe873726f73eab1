"""`rune show RUN`: what a run is, how far it is and what it found. Loads no model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rune import console
from rune.errors import StoreError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder, or a folder of runs")


def run(args: argparse.Namespace) -> int:
    from rune.store import RunDir

    path: Path = args.run
    if (path / "manifest.json").is_file():
        _one(RunDir.open(path))
        return 0
    runs = sorted(p.parent for p in path.glob("*/manifest.json")) if path.is_dir() else []
    if not runs:
        raise StoreError(f"{path}: no run folder and no folder of runs; `rune run CONFIG` makes one under runs/")
    rows = [_row(RunDir.open(p)) for p in runs]
    console.out(console.table(rows, ("run", "created", "status", "answer")))
    return 0


def _row(folder: Any) -> tuple[object, ...]:
    manifest = folder.manifest()
    return (folder.path.name, manifest["created"], manifest["status"], _answer(folder))


def _answer(folder: Any) -> str:
    from rune import store

    decision = folder / "decision.json"
    return str(store.read_json(decision)["answer"]) if decision.exists() else "not decided"


def _one(folder: Any) -> None:
    from rune import store

    manifest = folder.manifest()
    model = manifest.get("model", {})
    console.out(f"{folder.path}  ({manifest['created']}, rune {manifest['rune']}, {manifest['environment']['commit']})")
    if model:
        console.out(f"model   {model['name']}  sha256 {model['sha256'][:12]}…  on {manifest.get('device', '?')}")
    counts = [
        (name, sum(1 for _ in store.read_lines(folder / name)))
        for name in ("problems.jsonl", "trajectories.jsonl", "treatments.jsonl", "samples.jsonl", "verdicts.jsonl")
        if (folder / name).exists()
    ]
    console.out("files   " + ", ".join(f"{n} {name.removesuffix('.jsonl')}" for name, n in counts))
    rows: list[tuple[object, ...]] = [
        (name, entry["status"], f"{entry.get('seconds', 0):.1f} s") for name, entry in manifest["stages"].items()
    ]
    if rows:
        console.out(console.table(rows, ("stage", "status", "time")))
    if (folder / "decision.json").exists():
        decision = store.read_json(folder / "decision.json")
        arms: list[tuple[object, ...]] = [
            (a["condition"], f"{100 * a['pass_at_1']:.1f}", f"{a['num_passed']}/{a['num_samples']}")
            for a in decision["arms"]
        ]
        console.out(console.table(arms, ("arm", "pass@1 %", "passed")))
        console.out(f"effect  {decision['effect_points']:+.2f} points (threshold {decision['threshold_points']})")
        if decision.get("evidence"):
            console.out(f"        {decision['evidence']}")
        console.out(f"report  {folder / 'report.html'}")
    console.out(_answer(folder))
