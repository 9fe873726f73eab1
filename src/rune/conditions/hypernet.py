"""The arm the gate is about: an adapter generated from the retrieved trajectories in one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    strength: float = 1.0  # λ on the trajectory part; 0 is the static arm


class Hypernet:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        sets = {p.task_id: self._arm_inputs.retrieved(p.task_id) for p in problems}
        _adapters.generate(self._arm_inputs, "hypernet", problems, sets, on_done, strength=self._config.strength)


def build(config: Config, arm_inputs: ArmInputs) -> Hypernet:
    return Hypernet(config, arm_inputs)
