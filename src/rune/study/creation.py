"""Making an experiment's folder and those of its cells, all pre-registered before anything is drawn."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rune import __version__
from rune.runs import integrity, provenance, store
from rune.runs.store import RunDir
from rune.study import admission, checks
from rune.study.cells import cells, scored, settings_of, tasks
from rune.study.config import Loaded, located
from rune.study.folders import BASE, CellFolder, Experiment, problems_of
from rune.types import Problem


def create(loaded: Loaded, *, resume: bool) -> Experiment:
    """Make or reopen the folder and those of its cells, all pre-registered.

    Whatever can be refused is refused before a folder is made. Raises ConfigError, PhaseError, StoreError or GateError.
    """
    settings, base = loaded
    path = RunDir.place(Path(settings.run.folder), settings.run.name, settings)
    everything: Sequence[Problem] = ()
    every = cells(settings)
    phase: dict[str, object] = {}
    if not (path / "manifest.json").exists():
        phase = {"phase": admission.demand(settings, base)}
    if not (path / "problems.jsonl").exists():
        for cell in every:
            own = settings_of(settings, cell)
            checks.inputs(located(own, base, seed=cell.seed, fold=cell.fold), own)
            checks.arms(own)
        checks.device(settings)
        first = located(settings, base, seed=every[0].seed, fold=every[0].fold)
        everything = tasks(first)
        checked = scored(everything, settings.design)
    extra = {"rune": __version__, "seed": settings.run.seed, "environment": provenance.environment(), **phase}
    folder = RunDir.make(path, settings.run.name, settings, extra=extra, resume=resume)
    extra = {**extra, **{k: v for k, v in folder.manifest().items() if k == "phase"}}
    if BASE not in folder.manifest():
        folder.update(**{BASE: _seen_from(path, base)})
    if everything:
        store.write_jsonl(folder / "problems.jsonl", checked)
    integrity.preregister(folder)
    experiment = Experiment(folder, settings, base)
    if not experiment.single:
        folder.update(cells=[c.name for c in every])
        for place in experiment.places():
            if "preregistration" not in _manifest(place.folder):
                _create_cell(experiment, place, extra)
    return experiment


def _seen_from(path: Path, base: Path) -> str:
    return Path(os.path.relpath(base.resolve(), path.resolve())).as_posix()


def _manifest(folder: RunDir) -> dict[str, object]:
    return folder.manifest() if folder.manifest_path.exists() else {}


def _create_cell(experiment: Experiment, place: CellFolder, extra: dict[str, object]) -> None:
    folder = RunDir.make(place.folder.path, place.cell.name, place.settings, extra=extra, resume=True)
    folder.update(**{BASE: _seen_from(folder.path, experiment.base)}, cell=place.cell._asdict())
    store.write_jsonl(folder / "problems.jsonl", problems_of(experiment, place))
    integrity.preregister(folder)
