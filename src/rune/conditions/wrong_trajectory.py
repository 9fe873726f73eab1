"""A control: the hypernetwork given another task's trajectories. right − wrong is the evidence that they matter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.config import ADDED
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    strength: float = 1.0  # the hypernet arm's, or the two cannot be compared
    near: bool = field(default=False, metadata=ADDED)  # a hard negative: another update of the same package, say


class WrongTrajectory:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        sets = _adapters.permuted(self._arm_inputs, near=self._config.near)
        _adapters.generate(
            self._arm_inputs, "wrong_trajectory", problems, sets, on_done, strength=self._config.strength
        )


def build(config: Config, arm_inputs: ArmInputs) -> WrongTrajectory:
    return WrongTrajectory(config, arm_inputs)
