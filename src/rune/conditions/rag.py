"""Retrieval: the matching pieces of the nearest trajectories stand in the context before the task.

It gets the same trajectories as the hypernet arm; only the channel differs (text against weights).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rune import prompts
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.types import Problem, Treatment

LEAD = "Here are notes from similar problems that were worked on before. They may or may not help."


@dataclass(frozen=True, kw_only=True)
class Config:
    max_chars: int = 2400  # a piece; longer ones lose their middle. About 700 tokens: two fit a 2k context


class Rag:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        for problem in problems:
            hits = self._arm_inputs.hits[problem.task_id]
            pieces = [
                f"Note {i}:\n{prompts.truncate(hit.snippet, self._config.max_chars)}" for i, hit in enumerate(hits, 1)
            ]
            on_done(
                Treatment(
                    task_id=problem.task_id,
                    condition="rag",
                    context="\n\n".join([LEAD, *pieces]) if pieces else "",
                    trajectory_ids=tuple(hit.trajectory.trajectory_id for hit in hits),
                )
            )


def build(config: Config, arm_inputs: ArmInputs) -> Rag:
    return Rag(config, arm_inputs)
