"""A control: the retrieved trajectories in context. What a text channel without rag's limit on length would know.

Of each trajectory it shows the task, the last `max_attempts` failures with their errors, and the solution. The
hypernetwork encodes all failures: where a trajectory has more of them, the teacher is shown less.
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
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        for problem in problems:
            trajectories = self._arm_inputs.retrieved(problem.task_id)
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
