"""The bare model: no context, no adapter. Every other arm is measured against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to set."""


class Vanilla:
    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        for problem in problems:
            on_done(Treatment(task_id=problem.task_id, condition="vanilla"))


def build(config: Config, arm_inputs: ArmInputs) -> Vanilla:
    return Vanilla()
