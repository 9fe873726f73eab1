"""A control of `hypernet`: each task wears λ · (its own adapter − the mean of all), what is its trajectories' alone.

What every adapter has in common, the constant part and the form of an answer with it, is taken out; `hypernet_mean` is
the other half. The mean is that arm's: exact where all adapters have the same A, else cut to `mean_rank`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    strength: float = 1.0  # λ, on what is left; 1 is as large as it is in the hypernet arm
    mean_rank: int = 32

    def __post_init__(self) -> None:
        if self.mean_rank < 1:
            raise ValueError(f"mean_rank must be at least 1, found {self.mean_rank}")


class HypernetCentred:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        if problems:
            source = _adapters.maker(self._arm_inputs)
            by_set = _adapters.of_every_set(self._arm_inputs, source, strength=1.0)
            _adapters.centred(
                self._arm_inputs,
                "hypernet_centred",
                by_set,
                source.layout,
                problems,
                on_done,
                strength=self._config.strength,
                rank=self._config.mean_rank,
            )


def build(config: Config, arm_inputs: ArmInputs) -> HypernetCentred:
    return HypernetCentred(config, arm_inputs)
