"""What the executor hands to a stage besides its own config section and the run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rune.types import Engine, ModelRef, Sandbox

if TYPE_CHECKING:
    from rune.stages.train import TrainingSession


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Machinery shared by stages. Heavy parts are functions: a stage that needs none loads none."""

    seed: int
    model: Callable[[], ModelRef]  # resolves, verifies and converts on the first call
    device: str  # "cpu" or "cuda"; already resolved from "auto"
    dtype: str  # "float32" or "bfloat16"
    engine: Callable[[], Engine]
    sandbox: Callable[[], Sandbox]
    cache: Path  # shared over runs: features, verdicts by content hash
    session: Callable[[], TrainingSession] | None = (
        None  # base model and features for training, kept over cells; None: made anew
    )
