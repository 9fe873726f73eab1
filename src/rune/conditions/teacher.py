"""A control: the whole retrieved trajectories in context. What a perfect text channel would know.

Where `rag` shows matching pieces under a limit, the teacher shows everything the hypernetwork encoded, so
that "adapter against in-context" compares the same information.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune import prompts
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    max_attempts: int = 2  # failed attempts shown of each trajectory, the last ones


class Teacher:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._workshop = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        for problem in problems:
            trajectories = self._workshop.retrieved(problem.task_id)
            texts = [prompts.render_trajectory(t, max_attempts=self._config.max_attempts) for t in trajectories]
            on_done(
                Treatment(
                    task_id=problem.task_id,
                    condition="teacher",
                    context="\n\n".join(texts),
                    trajectory_ids=tuple(t.trajectory_id for t in trajectories),
                )
            )


def build(config: Config, arm_inputs: ArmInputs) -> Teacher:
    return Teacher(config, arm_inputs)
