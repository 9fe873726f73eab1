"""What an arm loses from one variant to another, as a share of what it had: NF4 against bfloat16. Pure.

The loss is 1 − (passes of the other) / (passes of the reference), over the same tasks, draws and trainings. Its
interval is that of a ratio of means by linearisation (Cochran 1977, "Sampling Techniques", chapter 6): each task and
training gives loss + (ratio · reference − other) / mean reference, whose mean is the loss, and `stats.mean_interval`
does the rest, over tasks or domains and trainings as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rune.analysis import stats
from rune.errors import GateError
from rune.types import Decision, Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One arm in one variant against the same arm in the reference."""

    variant: str
    condition: str
    reference_pass_at_1: float  # in 0..1
    pass_at_1: float
    percent: float  # of the reference's; below 0: the other passes more
    interval: Interval  # in percent


def losses(
    reference: Table,
    other: Table,
    *,
    variant: str,
    clusters: Sequence[str],
    level: float,
    resamples: int,
    seed: int,
) -> list[Loss]:
    """Of every arm that both variants have, in the reference's order.

    `clusters`: each task's domain, () where the interval is over tasks. `level` of the interval, 0..1; `resamples` and
    `seed` of its bootstrap, which one training alone has.
    Raises GateError if the two were not drawn over the same tasks and trainings, or the reference passes nothing.
    """
    import numpy as np

    if reference.tasks != other.tasks or reference.draws != other.draws:
        raise GateError(
            f"variant {variant} has other tasks, draws or trainings than the first one, so no arm of it can be compared"
        )
    units = len(set(clusters)) or len(reference.tasks)
    weights_RT = stats.task_weights(units, resamples, seed)
    found = []
    for arm, had in reference.passes.items():
        if arm not in other.passes:
            continue
        had_TS, has_TS = np.asarray(had, dtype=float), np.asarray(other.passes[arm], dtype=float)
        mean = float(had_TS.mean())
        if mean == 0:
            raise GateError(f"{arm} passes nothing in the first variant, so there is no share to lose; leave it out")
        ratio = float(has_TS.mean()) / mean
        lost_TS = 100 * ((1 - ratio) + (ratio * had_TS - has_TS) / mean)
        most = reference.draws / mean  # a task that passes every draw, in units of the mean
        low, high = 100 * (1 - ratio - most), 100 * (1 - ratio + ratio * most)
        interval = stats.mean_interval(lost_TS, clusters, weights_RT, level=level, low=low, high=high)
        found.append(
            Loss(
                variant=variant,
                condition=arm,
                reference_pass_at_1=mean / reference.draws,
                pass_at_1=float(has_TS.mean()) / other.draws,
                percent=100 * (1 - ratio),
                interval=interval,
            )
        )
    return found


@dataclass(frozen=True)
class Table:
    """One variant's passes."""

    tasks: tuple[str, ...]
    draws: int  # a task and training
    passes: Mapping[str, Sequence[Sequence[int]]]  # arm → per task, per training


def table(pooled: Decision, seeds: Sequence[Decision]) -> Table:
    """From the decisions over each training by itself; `pooled` says which tasks and arms there are."""
    tasks = tuple(pooled.details["tasks"])
    parts: list[Mapping[str, Any]] = [one.details for one in seeds]
    at = [{task: i for i, task in enumerate(part["tasks"])} for part in parts]
    passes = {
        arm: [[part["passes"][arm][where[task]] for part, where in zip(parts, at, strict=True)] for task in tasks]
        for arm in pooled.details["passes"]
    }
    return Table(tasks, int(parts[0]["n"]), passes)
