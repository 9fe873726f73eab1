"""What the conditions that make adapters share: which sets they come from, and where the folders go."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rune import console
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.config import derive_seed
from rune.corpus import exclusion
from rune.errors import DataError
from rune.types import AdapterRef, Problem, Trajectory, Treatment

if TYPE_CHECKING:
    from rune.adapters.factors import Adapters, Factors, LoraTargets
    from rune.hypernet.export import AdapterGenerator

MOST_NAMED = 5_000  # trajectories: 250 tasks that name 30,000 each are 145 MB of treatments.jsonl
Sets = Mapping[str, tuple[Trajectory, ...]]  # task_id → what its adapter is made from


_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*(/[A-Za-z0-9][A-Za-z0-9.-]*)?")  # its "/" can become "_"


def key(task_id: str, *more: str) -> str:
    """A task, or several names in order, as a folder name; no two share one.

    `HumanEval/3` is `HumanEval_3`; what could be taken for another ends in a digest (`a_1` beside `a/1`).
    """
    if not more and len(task_id) <= 100 and _PLAIN.fullmatch(task_id):
        return task_id.replace("/", "_")
    digest = hashlib.sha256(json.dumps([task_id, *more]).encode()).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9.-]', '_', task_id)[:80]}_{digest}"


def maker(arm_inputs: ArmInputs) -> AdapterGenerator:
    """The run's hypernetwork; loaded once for all arms of a process."""
    from rune.hypernet.export import maker as shared

    folder = arm_inputs.checkpoints / "hypernet"
    return shared(folder, arm_inputs.model, arm_inputs.device, arm_inputs.dtype, arm_inputs.base)


def generate(
    arm_inputs: ArmInputs,
    condition: str,
    problems: Sequence[Problem],
    sets: Sets,
    on_done: Callable[[Treatment], None],
    *,
    strength: float,
) -> None:
    """One adapter per problem from its set, kept under the arm's name and told to `on_done` one by one.

    `strength`: λ. Raises AdapterError or DataError for a checkpoint that is none of this base model's hypernetworks.
    """
    source = maker(arm_inputs)
    chosen = [sets[p.task_id] for p in problems]
    for problem, used, made in zip(problems, chosen, source.iter_generate(chosen, strength=strength), strict=True):
        adapter = arm_inputs.keep(condition, key(problem.task_id), made, source.layout)
        on_done(
            Treatment(
                task_id=problem.task_id,
                condition=condition,
                adapter=adapter,
                trajectory_ids=tuple(t.trajectory_id for t in used),
            )
        )


def constant(
    arm_inputs: ArmInputs,
    condition: str,
    checkpoint: Path,
    problems: Sequence[Problem],
    on_done: Callable[[Treatment], None],
) -> None:
    """The static part of a checkpoint, one adapter for all problems: its sources are the whole corpus.

    A corpus of more than MOST_NAMED trajectories is not named for every task again: it is trajectories.jsonl.

    Raises AdapterError for a checkpoint of another base model, DataError for what is none.
    """
    from rune.hypernet import checkpoint as checkpoints

    stored = checkpoints.load(checkpoint, arm_inputs.model, device="cpu")
    made = {m: type(f)(*(t.detach() for t in f)) for m, f in stored.static.factors().items()}
    adapter = arm_inputs.keep(condition, "all", made, stored.layout)
    whole = arm_inputs.trajectories
    ids = tuple(t.trajectory_id for t in whole) if len(whole) <= MOST_NAMED else ()
    for problem in problems:
        on_done(Treatment(task_id=problem.task_id, condition=condition, adapter=adapter, trajectory_ids=ids))


def of_every_set(
    arm_inputs: ArmInputs, source: AdapterGenerator, *, strength: float
) -> dict[tuple[str, ...], Adapters]:
    """Ids of a set's trajectories → its adapter, N = 1. Tasks that are given the same have one adapter."""
    sets = {}
    for task in sorted(arm_inputs.hits):
        trajectories = arm_inputs.retrieved(task)
        sets[tuple(t.trajectory_id for t in trajectories)] = trajectories
    return dict(zip(sets, source.iter_generate(list(sets.values()), strength=strength), strict=True))


def mean(
    arm_inputs: ArmInputs,
    condition: str,
    by_set: Mapping[tuple[str, ...], Adapters],
    layout: LoraTargets,
    problems: Sequence[Problem],
    on_done: Callable[[Treatment], None],
    *,
    rank: int,
) -> None:
    """All problems wear the mean ΔW of some adapters (ids of a set's trajectories → N = 1).

    Where all have the same A the mean of B is exact; otherwise it is cut to `rank`, the nearest in every module.
    """
    adapter = arm_inputs.keep(condition, "all", _mean(arm_inputs, by_set, layout, rank), layout)
    ids = tuple(sorted({name for names in by_set for name in names}))
    for problem in problems:
        on_done(Treatment(task_id=problem.task_id, condition=condition, adapter=adapter, trajectory_ids=ids))


def centred(
    arm_inputs: ArmInputs,
    condition: str,
    by_set: Mapping[tuple[str, ...], Adapters],
    layout: LoraTargets,
    problems: Sequence[Problem],
    on_done: Callable[[Treatment], None],
    *,
    strength: float,
    rank: int,
) -> None:
    """Each problem wears strength · (its set's ΔW − the mean ΔW of all sets), the mean being that of `mean`.

    Raises DataError where there is one set: nothing would be left of it.
    """
    from rune.adapters.factors import concatenate

    if len(by_set) < 2:
        raise DataError(f"{condition}: all tasks are given the same trajectories, so own − mean is zero; leave it out")
    common = _mean(arm_inputs, by_set, layout, rank)
    same = _same_down(list(by_set.values()))
    refs: dict[tuple[str, ...], AdapterRef] = {}
    for problem in problems:
        names = tuple(t.trajectory_id for t in arm_inputs.retrieved(problem.task_id))
        if names not in refs:
            own = by_set[names]
            if same:
                left = {m: type(f)(f.down_YNRI, strength * (f.up_YNRO - common[m].up_YNRO)) for m, f in own.items()}
            else:
                scaled = {m: type(f)(f.down_YNRI, strength * f.up_YNRO) for m, f in own.items()}
                left = concatenate(scaled, common, strength=-strength)
            refs[names] = arm_inputs.keep(condition, key(*names), left, layout)
        on_done(Treatment(task_id=problem.task_id, condition=condition, adapter=refs[names], trajectory_ids=names))


def _mean(
    arm_inputs: ArmInputs, by_set: Mapping[tuple[str, ...], Adapters], layout: LoraTargets, rank: int
) -> dict[str, Factors]:
    import torch

    from rune.adapters import composition, convert

    first, *_ = every = list(by_set.values())
    if _same_down(every):
        return {m: type(f)(f.down_YNRI, torch.stack([a[m].up_YNRO for a in every]).mean(0)) for m, f in first.items()}
    adapters = [convert.to_adapter(f, layout, base_model=arm_inputs.model.digest) for f in every]
    whole = composition.compose(adapters, [1 / len(every)] * len(every))
    return convert.from_adapter(composition.shrink(whole, rank), layout)


def _same_down(every: Sequence[Adapters]) -> bool:
    import torch

    first, *others = every
    return all(torch.equal(one[m].down_YNRI, f.down_YNRI) for one in others for m, f in first.items())


def permuted(arm_inputs: ArmInputs, *, near: bool = False) -> dict[str, tuple[Trajectory, ...]]:
    """Every task gets another task's set, with nothing in it of a task or a domain that its own set has.

    With `near` it is one of the task's own category, where there is one, and a set may serve several tasks; how many
    tasks have none is said.

    Drawn once for all tasks from the run's seed, so a resumed run permutes the same way. A task for which no other
    task's set will do gets as many trajectories of the corpus. Raises DataError if the corpus has none either.
    """
    own = {task: arm_inputs.retrieved(task) for task in sorted(arm_inputs.hits)}
    rng = random.Random(derive_seed(arm_inputs.seed, "wrong trajectory"))
    givers = list(own)
    rng.shuffle(givers)
    result: dict[str, tuple[Trajectory, ...]] = {}
    alone = 0
    for task, mine in own.items():
        close = [g for g in own if near and _alike(own[g], mine) and _foreign(own[g], mine)]
        if close:
            result[task] = own[rng.choice(close)]
            continue
        alone += near
        fitting = next((g for g in givers if g != task and own[g] and _foreign(own[g], mine)), None)
        if fitting is not None:
            givers.remove(fitting)
            result[task] = own[fitting]
            continue
        foreign = [t for t in arm_inputs.trajectories if t.solved and _foreign((t,), mine)]
        if not foreign:
            raise DataError(f"wrong_trajectory: every trajectory of the corpus belongs to {task}; collect more tasks")
        result[task] = tuple(rng.sample(foreign, min(max(1, len(mine)), len(foreign))))
    if alone:
        console.warn(
            f"wrong_trajectory: near = true, and {alone} of {len(own)} tasks have no other's trajectories of their "
            "category: they are given any other's"
        )
    return result


def _foreign(theirs: Sequence[Trajectory], mine: Sequence[Trajectory]) -> bool:
    """Whether two sets share nothing to be learned: no domain, and no task under any of its names.

    A domain may be given another one's trajectory: a composition those of its two functions (`pbb.given`).
    """
    if {domain_key(t) for t in theirs} & {domain_key(t) for t in mine}:
        return False
    return not {exclusion.canonical_id(t.task_id) for t in theirs} & {exclusion.canonical_id(t.task_id) for t in mine}


def _alike(theirs: Sequence[Trajectory], mine: Sequence[Trajectory]) -> bool:
    """Whether two sets have a category in common: a package of API updates, a kind of convention."""
    return bool({t.category for t in theirs} & {t.category for t in mine} - {""})


def domain_key(trajectory: Trajectory) -> str:
    """What a trajectory teaches: its domain's convention, or its task where there are no domains."""
    return trajectory.domain or exclusion.canonical_id(trajectory.task_id)
