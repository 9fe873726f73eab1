"""What the conditions that make adapters share: which sets they come from, and where the folders go."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rune.conditions.shared.arm_inputs import Workshop
from rune.config import derive_seed
from rune.corpus import exclusion
from rune.errors import DataError
from rune.types import AdapterRef, Problem, Trajectory, Treatment

if TYPE_CHECKING:
    from rune.adapters.factors import Adapters, Layout
    from rune.hypernet.export import Maker

Sets = Mapping[str, tuple[Trajectory, ...]]  # task_id → what its adapter is made from


def key(task_id: str) -> str:
    """A task as a folder name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", task_id)


def maker(workshop: Workshop) -> Maker:
    """The run's hypernetwork; loaded once for all arms of a process."""
    from rune.hypernet.export import maker as shared

    return shared(workshop.checkpoints / "hypernet", workshop.model, workshop.device, workshop.dtype, None)


def generate(
    workshop: Workshop,
    condition: str,
    problems: Sequence[Problem],
    sets: Sets,
    on_done: Callable[[Treatment], None],
    *,
    strength: float,
) -> None:
    """One adapter per problem from its set."""
    source = maker(workshop)
    chosen = [sets[p.task_id] for p in problems]
    for problem, used, made in zip(problems, chosen, source.each(chosen, strength=strength), strict=True):
        adapter = place(workshop, condition, key(problem.task_id), made, source.stored.layout)
        on_done(
            Treatment(
                task_id=problem.task_id,
                condition=condition,
                adapter=adapter,
                trajectory_ids=tuple(t.trajectory_id for t in used),
            )
        )


def constant(
    workshop: Workshop,
    condition: str,
    checkpoint: Path,
    problems: Sequence[Problem],
    on_done: Callable[[Treatment], None],
) -> None:
    """The static part of a checkpoint, one adapter for all problems."""
    from rune.hypernet import checkpoint as checkpoints

    stored = checkpoints.load(checkpoint, workshop.model, device="cpu")
    made = {m: type(f)(*(t.detach() for t in f)) for m, f in stored.static.factors().items()}
    adapter = place(workshop, condition, "all", made, stored.layout)
    ids = tuple(t.trajectory_id for t in workshop.trajectories)
    for problem in problems:
        on_done(Treatment(task_id=problem.task_id, condition=condition, adapter=adapter, trajectory_ids=ids))


def place(workshop: Workshop, condition: str, name: str, made: Adapters, layout: Layout) -> AdapterRef:
    """One adapter as a PEFT folder of the run, or to where the workshop wants it."""
    if workshop.keep:
        return workshop.keep(condition, name, made, layout)
    from rune.adapters.store import FolderStore

    return FolderStore(workshop.adapters, workshop.model, dtype=workshop.dtype).put(condition, name, made, layout)


def permuted(workshop: Workshop) -> dict[str, tuple[Trajectory, ...]]:
    """Every task gets another task's set, with nothing in it of a training task or a family that its own set has.

    Drawn once for all tasks from the run's seed, so a resumed run permutes the same way. A task for which no other
    task's set will do gets as many trajectories of the corpus. Raises DataError if the corpus has none either.
    """
    own = {task: workshop.retrieved(task) for task in sorted(workshop.hits)}
    rng = random.Random(derive_seed(workshop.seed, "wrong trajectory"))
    givers = list(own)
    rng.shuffle(givers)
    result: dict[str, tuple[Trajectory, ...]] = {}
    for task, mine in own.items():
        fitting = next((g for g in givers if g != task and own[g] and _foreign(own[g], mine)), None)
        if fitting is not None:
            givers.remove(fitting)
            result[task] = own[fitting]
            continue
        strangers = [t for t in workshop.trajectories if t.solved and _foreign((t,), mine)]
        if not strangers:
            raise DataError(f"wrong_trajectory: every trajectory of the corpus belongs to {task}; collect more tasks")
        result[task] = tuple(rng.sample(strangers, min(max(1, len(mine)), len(strangers))))
    return result


def _foreign(theirs: Sequence[Trajectory], mine: Sequence[Trajectory]) -> bool:
    """Whether two sets share no lesson: no domain, and no task under any of its names."""
    return not {lesson(t) for t in theirs} & {lesson(t) for t in mine}


def lesson(trajectory: Trajectory) -> str:
    """What a trajectory teaches: its domain's convention, or its task where there are no domains."""
    return trajectory.domain or exclusion.canonical_id(trajectory.task_id)
