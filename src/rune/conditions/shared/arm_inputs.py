"""What every condition is given to make its treatments from. One record, the same for all arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rune.types import AdapterRef, Hit, ModelRef, Trajectory

if TYPE_CHECKING:
    from rune.adapters.factors import Adapters, LoraTargets
    from rune.hypernet.base import Base

    Keep = Callable[[str, str, Adapters, LoraTargets], AdapterRef]  # (arm, key, one adapter, layout)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmInputs:
    """Inputs of the adapt stage. `hits` are shared by RAG and hypernet, so that only the channel differs."""

    model: ModelRef
    device: str  # "cpu" or "cuda"
    dtype: str  # "float32" or "bfloat16"
    seed: int
    trajectories: tuple[Trajectory, ...]  # the whole training corpus
    hits: Mapping[str, tuple[Hit, ...]]  # task_id → its nearest trajectories, trained on or shown, best first
    checkpoints: Path  # what train wrote
    keep: Keep  # where adapters go: a PEFT folder adapters/<condition>/<key>/, or the engine
    adapters: Path  # adapters/ of the run, for what an arm writes beside its adapters
    base: Callable[[], Base] | None = (
        None  # the base model that the process trains with; None: whoever needs one loads it
    )

    def retrieved(self, task_id: str) -> tuple[Trajectory, ...]:
        """The trajectories that RAG and hypernet both get for a task."""
        return tuple(hit.trajectory for hit in self.hits[task_id])
