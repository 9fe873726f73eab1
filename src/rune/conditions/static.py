"""A control: the hypernetwork's constant part alone. right − static says what the trajectories added to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


class Static:
    def __init__(self, arm_inputs: ArmInputs) -> None:
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        checkpoint = self._arm_inputs.checkpoints / "hypernet"
        _adapters.constant(self._arm_inputs, "static", checkpoint, problems, on_done)


def build(config: Config, arm_inputs: ArmInputs) -> Static:
    return Static(arm_inputs)
