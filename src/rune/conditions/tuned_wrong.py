"""A control of `tuned`: every task wears the LoRA of another domain's trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rune.conditions import _tuned
from rune.conditions._tuned import Config as Config  # the tuned arm's, or the two cannot be compared
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


class TunedWrong:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        others = _tuned.others(self._arm_inputs)
        tuned = _tuned.made(self._config, self._arm_inputs)
        _tuned.treat(self._arm_inputs, "tuned_wrong", problems, tuned, others, on_done)


def build(config: Config, arm_inputs: ArmInputs) -> TunedWrong:
    return TunedWrong(config, arm_inputs)
