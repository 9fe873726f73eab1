"""Fine-tuning where it counts: a LoRA of the task's own trajectories, one for all tasks that are given them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rune.conditions import _tuned
from rune.conditions._tuned import Config as Config
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


class TunedArm:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        own = {p.task_id: self._arm_inputs.retrieved(p.task_id) for p in problems}
        tuned = _tuned.made(self._config, self._arm_inputs)
        _tuned.treat(self._arm_inputs, "tuned", problems, tuned, own, on_done)


def build(config: Config, arm_inputs: ArmInputs) -> TunedArm:
    return TunedArm(config, arm_inputs)
