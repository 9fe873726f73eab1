"""A control of `tuned`: all tasks wear the mean ΔW of all its LoRAs, as near as `mean_rank` allows (Frobenius).

What every LoRA has in common, such as the form of an answer, is in it; what one of them knows is one share of many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions import _adapters, _tuned
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config(_tuned.Config):
    """The tuned arm's, and the mean's own rank."""

    mean_rank: int = 32

    def tuned(self) -> _tuned.Config:
        return _tuned.Config(**{name: getattr(self, name) for name in _tuned.Config.__dataclass_fields__})


class TunedMean:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        if problems:
            tuned = _tuned.made(self._config.tuned(), self._arm_inputs)
            rank = self._config.mean_rank
            _adapters.mean(self._arm_inputs, "tuned_mean", tuned.by_set, tuned.layout, problems, on_done, rank=rank)


def build(config: Config, arm_inputs: ArmInputs) -> TunedMean:
    return TunedMean(config, arm_inputs)
