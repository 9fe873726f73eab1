"""The cells of an experiment, and everything that follows from its config before anything is drawn. Pure but for tasks.

A cell is (variant, seed, fold). Its own config is the experiment's with the variant's values in it and a `[design]` of
this cell alone, so that `rune run CELL/config.toml` is the same cell as an experiment of its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rune import config, plugins
from rune.corpus import splits
from rune.errors import ConfigError
from rune.runs import preregistration
from rune.stages import collect
from rune.study.config import BenchmarkSection, Design, RunConfig, changed, located, raw_of
from rune.types import Asking, Benchmark, Problem, Split

MAIN = "main"  # the variant of an experiment that has none


class Cell(NamedTuple):
    """One cell: what a folder of stages is made for."""

    variant: str
    seed: int
    fold: int  # -1: the held-out split

    @property
    def name(self) -> str:
        """Of its folder."""
        fold = "held-out" if self.fold < 0 else f"fold-{self.fold}"
        return f"{self.variant}.seed-{self.seed}.{fold}"


_THE_SAME = ("run", "design", "benchmark", "gate", "report", "track", "phase")


def variants(design: Design) -> dict[str, dict[str, Any]]:
    """Name → {"section.key": value}, in the config's order. The first one decides; the others stand beside it.

    Raises ConfigError for what may not vary, or two variants of one name.
    """
    named: dict[str, dict[str, Any]] = {name: dict(values) for name, values in design.variants.items()} or {"": {}}
    axes = dict(design.grid)
    if design.temperatures:
        axes["sample.temperature"] = tuple(design.temperatures)
    for key in [*axes, *(k for values in named.values() for k in values)]:
        if key.partition(".")[0] in _THE_SAME:
            raise ConfigError(f"[design] {key} cannot differ between variants: it is the same for all of an experiment")
    found: dict[str, dict[str, Any]] = {}
    for (name, values), *point in itertools.product(
        named.items(), *([(key, i, v) for i, v in enumerate(axis)] for key, axis in axes.items())
    ):
        parts = [name] if name else []
        parts += [f"{key.rpartition('.')[2]}-{_word(value, i)}" for key, i, value in point]
        label = "_".join(parts) or MAIN
        if label in found:
            raise ConfigError(f"[design] two variants are called '{label}'; name them under [design.variants]")
        found[label] = {**values, **{key: value for key, _, value in point}}
    return found


def _word(value: Any, number: int) -> str:
    """A value as part of a folder's name; lists and sections by their place."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if isinstance(value, (bool, int, float, str)) and text.replace(".", "").isalnum() else str(number)


def seeds(settings: RunConfig) -> tuple[int, ...]:
    return settings.design.seeds or (settings.run.seed,)


def folds(design: Design) -> tuple[int, ...]:
    if not design.folds:
        return (-1,)
    return (design.fold,) if design.fold >= 0 else tuple(range(design.folds))


def cells(settings: RunConfig) -> list[Cell]:
    """All of them, those that share most next to each other. Raises ConfigError for variants of one name."""
    names = variants(settings.design)
    return [Cell(v, s, f) for s in seeds(settings) for f in folds(settings.design) for v in names]


def settings_of(settings: RunConfig, cell: Cell) -> RunConfig:
    """The config of one cell. Raises ConfigError if a variant's value does not fit."""
    changes = variants(settings.design)[cell.variant]
    own = changed(settings, changes) if changes else settings
    design = replace(own.design, seeds=(cell.seed,), fold=cell.fold, grid={}, variants={}, temperatures=())
    return replace(own, design=design)


# --------------------------------------------------------------------------- tasks


def problems(section: BenchmarkSection) -> list[Problem]:
    """All tasks of a benchmark, with its own marks. Raises ConfigError or DataError."""
    return _built(section).problems()


def asked(section: BenchmarkSection) -> Mapping[str, Sequence[str]]:
    """Task id → calls whose values it asks for, of a benchmark that has such tasks. Raises as `problems` does."""
    part = _built(section)
    return part.asked() if isinstance(part, Asking) else {}


def _built(section: BenchmarkSection) -> Benchmark:
    module = plugins.load("benchmarks", section.name)
    part: Benchmark = module.build(config.build(module.Config, section.settings, where="benchmark.settings"))
    return part


def tasks(settings: RunConfig) -> list[Problem]:
    """The benchmark's tasks that take part. Raises as `problems` does."""
    found, design = problems(settings.benchmark), settings.design
    return collect.choose(found, design.tasks, seed=design.split_seed) if design.tasks else found


def split(everything: Sequence[Problem], design: Design, fold: int) -> list[Problem]:
    """Tasks marked as one cell has them. Raises ConfigError if the split cannot be made."""
    if fold >= 0:
        if own := next((p for p in everything if p.split is Split.HELD_OUT), None):
            raise ConfigError(
                f"[design] folds: {own.benchmark} marks its own evaluation tasks, so they cannot train in turn; "
                "cross-fit a benchmark that has no split of its own, as humaneval"
            )
        marked = splits.hold_out_fold(everything, fold=fold, folds=design.folds, seed=design.split_seed, by=design.by)
    else:
        marked = splits.split(everything, held_out=design.held_out, seed=design.split_seed, by=design.by)
    if design.scored:
        held_out = [p for p in marked if p.split is Split.HELD_OUT]
        kept = {p.task_id for p in collect.choose(held_out, design.scored, seed=design.split_seed)}
        marked = [p for p in marked if p.split is Split.TRAIN or p.task_id in kept]
    return marked


def scored(everything: Sequence[Problem], design: Design) -> list[Problem]:
    """All tasks as the whole experiment has them: held out in some cell, or never."""
    if len(folds(design)) == 1:
        return split(everything, design, *folds(design))
    held_out = {p.task_id for f in folds(design) for p in split(everything, design, f) if p.split is Split.HELD_OUT}
    return [replace(p, split=Split.HELD_OUT if p.task_id in held_out else Split.TRAIN) for p in everything]


def count_scored(settings: RunConfig, base: Path) -> int:
    """How many tasks the decision will be over; reads the benchmark only if the config does not say."""
    design = settings.design
    if design.held_out and not design.folds and design.by == "task":
        return min(design.scored or design.held_out, design.held_out)
    first = cells(settings)[0]
    everything = tasks(located(settings, base, seed=first.seed, fold=first.fold))
    return sum(p.split is Split.HELD_OUT for p in scored(everything, design))


# --------------------------------------------------------------------------- the promise


def promise(settings: RunConfig, everything: Sequence[Problem]) -> dict[str, Any]:
    """What is pre-registered for the experiment: what `rune preregister` prints, and the run's folder holds."""
    return preregistration.freeze(raw_of(settings), scored(everything, settings.design))


# --------------------------------------------------------------------------- what cells share

# What a stage's result depends on, besides what the stage before it depends on.
_READS: Mapping[str, tuple[str, ...]] = {
    "collect": ("model", "engine", "benchmark", "collect", "score"),
    "train": ("train",),
    "adapt": ("retrieve", "adapt"),
    "sample": ("sample",),
    "score": (),
}


def key(settings: RunConfig, cell: Cell, stage: str) -> str:
    """Two cells with the same key have the same result of `stage`, which is then made once. `settings`: the cell's."""
    raw = config.plain(settings)
    design = {k: v for k, v in raw["design"].items() if k not in ("seeds", "fold")}
    known: list[Any] = [settings.run.seed, design, cell.fold]
    for name, sections in _READS.items():
        known += [{section: raw[section] for section in sections}]
        if name == "train":
            known += [cell.seed]
        if name == stage:
            return config.digest(known)
    raise AssertionError(stage)


def loop_key(settings: RunConfig) -> str:
    """Cells with the same key work on their training tasks by the same loop, so that attempts are made once for all."""
    loop = {
        k: v
        for k, v in config.plain(settings.collect).items()
        if k not in ("tasks", "keep", "keep_per_task", "imports", "shown")
    }
    parts = [settings.run.seed, loop, settings.model, settings.engine, settings.benchmark, settings.score]
    return config.digest(json.loads(json.dumps(config.plain(parts))))[:8]
