"""Where things lie in the folder of a cross-fitted run; the picture is in `crossfit.py`."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rune.stages.pipeline import RunConfig
from rune.store import RunDir

CORPUS = "corpus.jsonl"
DONE = "done.json"


class Place(NamedTuple):
    """One fold of one seed."""

    seed: int
    fold: int


def temperatures(settings: RunConfig) -> tuple[float, ...]:
    return settings.crossfit.temperatures or (settings.sample.temperature,)


def place(folder: RunDir, seed: int, fold: int) -> Path:
    return folder.path / f"seed-{seed}" / f"fold-{fold}"


def drawn_at(temperature: float) -> str:
    """The name of the folder that holds what was drawn at a temperature."""
    return f"t{temperature:g}"
