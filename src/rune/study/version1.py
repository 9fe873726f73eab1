"""Reads what version 1 wrote: plain run folders, and cross-fitted ones as folders or as the archive `run.tar.xz`.

    <name>-crossfit-<digest8>/      corpus.jsonl, problems.jsonl (all tasks)
      seed-S/fold-F/                problems.jsonl (the fold's), corpus.json (ids), diagnostics.json, done.json
      seed-S/fold-F/t0.8/           treatments.jsonl, samples.jsonl, verdicts.jsonl

There a temperature is what a variant is now, and of all files only config.toml was sealed.
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rune import config
from rune.analysis import gate
from rune.errors import DataError
from rune.models import resolve
from rune.runs import integrity, records, store
from rune.runs.store import RunDir
from rune.stages import report
from rune.study.cells import Cell
from rune.study.combine import Done, Source, of_one_cell
from rune.study.config import raw_in
from rune.types import Problem, Trajectory

ARCHIVE = "run.tar.xz"


def is_crossfit(folder: RunDir) -> bool:
    raw_name = str(folder.manifest().get("name", ""))
    return (folder / ARCHIVE).is_file() or raw_name.endswith("-crossfit")


def source(folder: RunDir) -> Source:
    """A version 1 folder as the decision sees it. Raises DataError if its records are not there."""
    raw = raw_in(folder)
    return _crossfit(folder, raw) if is_crossfit(folder) else of_one_cell(folder, raw)


def _crossfit(folder: RunDir, raw: Mapping[str, Any]) -> Source:
    root = _unpacked(folder)
    pool = functools.cache(lambda: {t.trajectory_id: t for t in store.read_jsonl(root / "corpus.jsonl", Trajectory)})
    heats = temperatures(raw)
    cells = []
    for seed in raw["crossfit"]["seeds"]:
        for fold in range(raw["benchmark"]["folds"]):
            where = root / f"seed-{seed}" / f"fold-{fold}"
            done = store.read_json(where / "done.json")
            for name, temperature in heats.items():
                cells.append(
                    Done(
                        Cell(name, seed, fold),
                        _records(where, where / f"t{temperature:g}", pool),
                        str(done.get("device", folder.manifest().get("device"))),
                        float(done.get("seconds", 0.0)) / len(heats),
                    )
                )
    began = folder.manifest().get("stages", {}).get("collect", {}).get("seconds", 0.0)
    return Source(
        folder=folder,
        gate=config.build(gate.Config, raw.get("gate", {}), where="gate"),
        report=config.build(report.Config, raw.get("report", {}), where="report"),
        problems=store.read_jsonl(root / "problems.jsonl", Problem),
        variants={name: {"sample.temperature": t} for name, t in heats.items()},
        cells=cells,
        verify=lambda: integrity.demand_config(folder),
        seconds={"collect": began},
    )


def temperatures(raw: Mapping[str, Any]) -> dict[str, float]:
    """Variant → temperature of a cross-fitted config."""
    found = raw["crossfit"].get("temperatures") or [raw["sample"]["temperature"]]
    return {f"temperature-{float(t):g}": float(t) for t in found}


def _records(trained: Path, drawn: Path, pool: Any) -> records.Records:
    """One fold at one temperature."""

    def read(name: str) -> Any:
        if name == "trajectories":
            return [pool()[i] for i in store.read_json(trained / "corpus.json")]
        if name == "diagnostics":
            return store.read_json(trained / "diagnostics.json")
        if name in ("metrics", "changes"):
            return sorted((trained / "checkpoints").glob("**/metrics.jsonl")) if name == "metrics" else ()
        where = trained if name == "problems" else drawn
        return store.read_jsonl(where / f"{name}.jsonl", records.FILES[name])

    return records.Records(read)


def _unpacked(folder: RunDir) -> Path:
    """The folder with the records: this one, or what its archive holds, unpacked once in the cache."""
    archive = folder / ARCHIVE
    if not archive.is_file():
        if not any(folder.path.glob("seed-*")):
            raise DataError(f"{folder.path}: neither seed-…/ folders nor {ARCHIVE}: its records are elsewhere")
        return folder.path
    place = resolve.default_cache() / "unpacked" / store.sha256_file(archive)[:16]
    if not (place / "whole").exists():
        place.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as file:
            file.extractall(place, filter="data")
        (place / "whole").touch()
    (found,) = (p for p in place.iterdir() if p.is_dir())
    return found


def result(found: Mapping[str, Any]) -> dict[str, Any]:
    """A version 1 result.json in today's layout. Raises DataError for one that is of neither."""
    if "variants" in found:
        return dict(found)
    if missing := sorted({"name", "temperatures", "diagnostics"} - found.keys()):
        raise DataError(f"result.json lacks {missing[0]!r}, so it is no run's; `rune gate RUN` writes it again")
    return {
        **{k: v for k, v in found.items() if k not in ("temperatures", "diagnostics")},
        "run": str(found["name"]).rpartition("-crossfit")[0],
        "variants": {
            f"temperature-{heat}": {
                "settings": {"sample.temperature": float(heat)},
                **both,
                "diagnostics": found["diagnostics"],
            }
            for heat, both in found["temperatures"].items()
        },
    }
