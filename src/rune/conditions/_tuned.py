"""One LoRA for each set of trajectories that tasks are given, made by gradient steps; what the arms `tuned…` share.

Tasks of one domain are given the same trajectories and wear the same LoRA, so there are as many trainings as domains,
many in one batch. They are made once a process for all of these arms.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rune import console
from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.config import derive_seed
from rune.errors import DataError
from rune.types import AdapterRef, Problem, Trajectory, Treatment

if TYPE_CHECKING:
    from rune.adapters.factors import Factors, LoraTargets

Key = tuple[str, ...]  # the ids of a set's trajectories, in the order retrieved


@dataclass(frozen=True, kw_only=True)
class Config:
    """How each is trained: as `oracle`'s, which makes one for each task instead."""

    rank: int = 8
    alpha: float = 16.0
    steps: int = 40
    learning_rate: float = 5e-4
    rows: int = 1  # solutions of a set in one step
    together: int = 16  # LoRAs in one batch
    max_tokens: int = 1024  # of prompt and solution; a longer one is not learned

    def __post_init__(self) -> None:
        if min(self.rank, self.steps, self.rows, self.together, self.max_tokens) < 1 or self.alpha <= 0:
            raise ValueError("rank, steps, rows, together and max_tokens must be at least 1, and alpha above 0")


@dataclass(frozen=True, slots=True)
class Tuned:
    """The LoRAs of all sets."""

    by_set: Mapping[Key, Mapping[str, Factors]]  # N = 1 each
    layout: LoraTargets


def key(trajectories: Sequence[Trajectory]) -> Key:
    return tuple(t.trajectory_id for t in trajectories)


def sets(arm_inputs: ArmInputs) -> dict[Key, tuple[Trajectory, ...]]:
    """What tasks are given, each set once. Raises DataError for a task that is given nothing."""
    found = {}
    for task in sorted(arm_inputs.hits):
        trajectories = arm_inputs.retrieved(task)
        if not trajectories:
            raise DataError(
                f"{task}: no trajectory is retrieved for it, so nothing can be fine-tuned; add some of its domain to "
                "collect.shown, or set retrieve.within = 'any'"
            )
        found[key(trajectories)] = trajectories
    return found


def others(arm_inputs: ArmInputs) -> dict[str, tuple[Trajectory, ...]]:
    """task_id → another domain's set, the same for all tasks of one; none of its solutions is among the task's own.

    The sets stand in a circle, shuffled by the run's seed; each takes the next one that is foreign to it. Raises
    DataError for a set to which none is.
    """
    every = sets(arm_inputs)
    order = sorted(every)
    random.Random(derive_seed(arm_inputs.seed, "wrong LoRA")).shuffle(order)
    found: dict[Key, tuple[Trajectory, ...]] = {}
    for place, name in enumerate(order):
        mine = {t.solution for t in every[name]}
        following = (every[order[(place + step) % len(order)]] for step in range(1, len(order)))
        foreign = next((some for some in following if not mine & {t.solution for t in some}), None)
        if foreign is None:
            raise DataError(
                f"tuned_wrong: no other task is given anything but {', '.join(name)}; hold out more domains"
            )
        found[name] = foreign
    return {task: found[key(arm_inputs.retrieved(task))] for task in arm_inputs.hits}


def made(config: Config, arm_inputs: ArmInputs) -> Tuned:
    """Fine-tuned, or what another arm of this process had made of the same. Raises DataError for a set too long."""
    wanted = tuple(sorted(sets(arm_inputs).items()))
    return _train(config, wanted, _Base(arm_inputs))


class _Base:
    """What a training stands on. Equal for equal base and seed: the cache below goes by it."""

    def __init__(self, arm_inputs: ArmInputs) -> None:
        self.arm_inputs = arm_inputs
        self._same = (arm_inputs.model.digest, arm_inputs.device, arm_inputs.dtype, arm_inputs.seed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Base) and other._same == self._same

    def __hash__(self) -> int:
        return hash(self._same)


@functools.lru_cache(maxsize=1)
def _train(config: Config, wanted: tuple[tuple[Key, tuple[Trajectory, ...]], ...], on: _Base) -> Tuned:
    from rune.adapters.factors import select
    from rune.hypernet import base as bases
    from rune.hypernet import side_by_side
    from rune.hypernet.settings import MODULES, Schedule

    arm_inputs = on.arm_inputs
    base = bases.load(arm_inputs.model, device=arm_inputs.device, dtype=arm_inputs.dtype)
    lessons = []
    for name, trajectories in wanted:
        texts = tuple(base.encode(t.prompt, t.solution, answer=t.answer) for t in trajectories if t.solved)
        short = tuple(text for text in texts if len(text.ids) <= config.max_tokens)
        if not short:
            raise DataError(
                f"none of the trajectories {', '.join(name)} has a solution of at most {config.max_tokens} tokens; "
                "raise max_tokens"
            )
        lessons.append(side_by_side.Lesson(" ".join(name), short))
    schedule = Schedule(steps=config.steps, learning_rate=config.learning_rate, checkpoint_every=config.steps)
    by_set: dict[Key, Mapping[str, Factors]] = {}
    with console.Progress("fine-tune", len(lessons), unit="LoRA") as bar:
        for first in range(0, len(lessons), config.together):
            some = lessons[first : first + config.together]
            together, curve = side_by_side.train(
                base, some, schedule, rank=config.rank, alpha=config.alpha, rows=config.rows, seed=arm_inputs.seed
            )
            for i, (name, _) in enumerate(wanted[first : first + config.together]):
                by_set[name] = {
                    m: type(f)(*(t.to("cpu", copy=True) for t in f))
                    for m, f in select(together, slice(i, i + 1)).items()
                }
            bar.advance(len(some), loss=f"{sum(curve[-1]) / len(some):.3f}")
    base.hooks.remove()
    layout = base.layout(MODULES)
    if arm_inputs.device == "cuda":
        import torch

        del base, together  # others on the GPU need the room
        torch.cuda.empty_cache()
    return Tuned(by_set, layout)


def treat(
    arm_inputs: ArmInputs,
    condition: str,
    problems: Sequence[Problem],
    tuned: Tuned,
    chosen: _adapters.Sets,
    on_done: Callable[[Treatment], None],
) -> None:
    """Every problem wears the LoRA of its `chosen` set."""
    refs: dict[Key, AdapterRef] = {}
    for problem in problems:
        name = key(chosen[problem.task_id])
        if name not in refs:
            factors = tuned.by_set[name]
            refs[name] = arm_inputs.keep(condition, _adapters.key(*name), factors, tuned.layout)
        on_done(Treatment(task_id=problem.task_id, condition=condition, adapter=refs[name], trajectory_ids=name))
