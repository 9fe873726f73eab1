"""A control: the hypernetwork given no trajectory at all. One adapter, the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    strength: float = 1.0  # the hypernet arm's, or the two cannot be compared


class EmptyTrajectory:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        source = _adapters.maker(self._arm_inputs)
        made = source.generate([()], strength=self._config.strength)
        adapter = self._arm_inputs.keep("empty_trajectory", "all", made, source.layout)
        for problem in problems:
            on_done(Treatment(task_id=problem.task_id, condition="empty_trajectory", adapter=adapter))


def build(config: Config, arm_inputs: ArmInputs) -> EmptyTrajectory:
    return EmptyTrajectory(config, arm_inputs)
