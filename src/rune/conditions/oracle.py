"""The expensive bound: for every task its own LoRA, trained by gradient steps on the retrieved trajectories' solutions.

What generation in one pass is compared with, in points and in seconds (`seconds.json` beside each adapter).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.config import derive_seed
from rune.hypernet.settings import LoraConfig, Schedule
from rune.runs import store
from rune.types import Problem, Treatment


@dataclass(frozen=True, kw_only=True)
class Config:
    rank: int = 8
    alpha: float = 16.0
    steps: int = 30
    learning_rate: float = 5e-4
    rows: int = 4  # solutions a step
    max_tokens: int = 1024  # of prompt and solution


class Oracle:
    def __init__(self, config: Config, arm_inputs: ArmInputs) -> None:
        self._config = config
        self._arm_inputs = arm_inputs

    def treat(self, problems: Sequence[Problem], on_done: Callable[[Treatment], None]) -> None:
        from rune.hypernet import base as bases
        from rune.hypernet import trainer
        from rune.hypernet.data import Corpus

        if not problems:
            return
        arm_inputs, config = self._arm_inputs, self._config
        schedule = Schedule(steps=config.steps, learning_rate=config.learning_rate, checkpoint_every=config.steps)
        settings = LoraConfig(schedule=schedule, rank=config.rank, alpha=config.alpha, rows=config.rows)
        held = arm_inputs.base() if arm_inputs.base else None
        with bases.lent(held, arm_inputs.model, device=arm_inputs.device, dtype=arm_inputs.dtype) as base:
            layout = base.layout(settings.modules)
            for problem in problems:
                trajectories = arm_inputs.retrieved(problem.task_id)
                started = time.monotonic()
                with tempfile.TemporaryDirectory() as scratch:
                    tuned = trainer.train_lora(
                        base,
                        Corpus(base, trajectories, max_tokens=config.max_tokens),
                        settings,
                        seed=derive_seed(arm_inputs.seed, "oracle", problem.task_id),
                        folder=Path(scratch),
                        metrics=Path(scratch) / "metrics.jsonl",
                    )
                name = _adapters.key(problem.task_id)
                factors = {m: type(f)(*(t.detach() for t in f)) for m, f in tuned.factors().items()}
                adapter = arm_inputs.keep("oracle", name, factors, layout)
                seconds = round(time.monotonic() - started, 3)
                store.write_json(arm_inputs.adapters / "oracle" / name / "seconds.json", {"seconds": seconds})
                on_done(
                    Treatment(
                        task_id=problem.task_id,
                        condition="oracle",
                        adapter=adapter,
                        trajectory_ids=tuple(t.trajectory_id for t in trajectories),
                    )
                )


def build(config: Config, arm_inputs: ArmInputs) -> Oracle:
    return Oracle(config, arm_inputs)
