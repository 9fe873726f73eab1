"""Where an experiment lies on disk.

An experiment of one cell *is* that cell's run folder. One of several has a folder of its own around them:

    runs/<name>-<digest8>/
      manifest.json config.toml problems.jsonl preregistration.json seals.json     as in every run folder
      attempts/<key>.jsonl       what the loop tried, once for all cells that loop alike
      cells/<variant>.seed-S.fold-F/                                               a run folder each
      decision.json result.json result.md report.html …                            over all cells

All cells are made, and their promises frozen, before anything is drawn. A cell's promise follows from the
experiment's config and tasks; `check_promises` makes it again and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from rune.errors import GateError, StoreError
from rune.runs import integrity, preregistration, store
from rune.runs.store import RunDir
from rune.study.cells import Cell, cells, settings_of, split
from rune.study.config import RunConfig, build, located, raw_in, raw_of
from rune.types import Problem, Split

BASE = "paths_from"  # manifest: the folder, seen from this one, that the config's paths are relative to


class CellFolder(NamedTuple):
    """One cell on disk."""

    cell: Cell
    folder: RunDir
    settings: RunConfig  # as written


@dataclass(frozen=True)
class Experiment:
    """An experiment on disk."""

    folder: RunDir
    settings: RunConfig  # as written
    base: Path  # what its paths are relative to

    def places(self) -> list[CellFolder]:
        """All cells, in order."""
        return list(self._places)

    @cached_property  # each cell's settings are built once: a stage asks for all cells several times
    def _places(self) -> list[CellFolder]:
        every = cells(self.settings)
        if len(every) == 1:
            return [CellFolder(every[0], self.folder, self.settings)]
        root = self.folder / "cells"
        return [CellFolder(c, RunDir(root / c.name), settings_of(self.settings, c)) for c in every]

    @cached_property
    def single(self) -> bool:
        return len(cells(self.settings)) == 1

    def located(self, place: CellFolder) -> RunConfig:
        """A cell's settings with absolute paths: for the work itself."""
        return located(place.settings, self.base, seed=place.cell.seed, fold=place.cell.fold)


def problems_of(experiment: Experiment, place: CellFolder) -> list[Problem]:
    """A cell's tasks from the experiment's."""
    everything = store.read_jsonl(experiment.folder / "problems.jsonl", Problem)
    design = experiment.settings.design
    if design.folds:
        everything = [replace(p, split=Split.TRAIN) for p in everything]
        return split(everything, design, place.cell.fold)
    return everything


def reopen(path: Path) -> Experiment:
    """An existing experiment or cell with the config it was made with.

    Raises StoreError if the config was edited since, or if an earlier version of the program made the folder.
    """
    folder = RunDir.open(path)
    if folder.version != store.SCHEMA_VERSION:
        raise StoreError(
            f"{path}: made by an earlier version (schema {folder.version}): show, gate, leakage, report and compare "
            "read it; to run it again, start another run from a config"
        )
    integrity.demand_config(folder)
    return Experiment(folder, build(raw_in(folder)), folder.path / str(folder.manifest().get(BASE, ".")))


def check_promises(experiment: Experiment) -> None:
    """Raises GateError unless every cell promises what the experiment's config and tasks make of it."""
    if experiment.single:
        return
    for place in experiment.places():
        if not place.folder.manifest_path.is_file():
            raise GateError(f"{place.folder.path}: the cell is gone; put it back, or start a new run")
        found = place.folder.manifest().get("preregistration")
        version = integrity.analysis_of(place.folder)
        wanted = preregistration.freeze(raw_of(place.settings), problems_of(experiment, place), version=version)
        if found != wanted["digest"]:
            raise GateError(
                f"{place.folder.path}: its pre-registration is not what {experiment.folder / 'config.toml'} makes of "
                "this cell; put it back, or start a new run"
            )
