"""Ordinary fine-tuning: one LoRA trained on all trajectories' solutions, the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set: `[train.lora]` says how it is trained."""


class Lora:
    def __init__(self, arm_inputs: ArmInputs) -> None:
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        _adapters.constant(self._arm_inputs, "lora", self._arm_inputs.checkpoints / "lora", problems, on_done)


def build(config: Config, arm_inputs: ArmInputs) -> Lora:
    return Lora(arm_inputs)
