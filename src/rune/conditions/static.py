"""A control: the hypernetwork's constant part alone. right − static says what the trajectories added to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import Workshop
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


class Static:
    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        checkpoint = self._workshop.checkpoints / "hypernet"
        _adapters.constant(self._workshop, "static", checkpoint, problems, on_done)


def build(config: Config, workshop: Workshop) -> Static:
    return Static(workshop)
