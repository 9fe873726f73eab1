"""A control of `hypernet`: all tasks wear the mean ΔW of all its adapters, as near as `mean_rank` allows (Frobenius).

What every adapter has in common is in it; what one of them knows of its own trajectories is one share of many. With
`train.hypernet.inputs = "shared"` it is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    strength: float = 1.0  # the hypernet arm's, or the two cannot be compared
    mean_rank: int = 32

    def __post_init__(self) -> None:
        if self.mean_rank < 1:
            raise ValueError(f"mean_rank must be at least 1, found {self.mean_rank}")


class HypernetMean:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        if problems:
            source = _adapters.maker(self._arm_inputs)
            by_set = _adapters.of_every_set(self._arm_inputs, source, strength=self._config.strength)
            rank = self._config.mean_rank
            _adapters.mean(self._arm_inputs, "hypernet_mean", by_set, source.layout, problems, on_done, rank=rank)


def build(config: Config, arm_inputs: ArmInputs) -> HypernetMean:
    return HypernetMean(config, arm_inputs)
