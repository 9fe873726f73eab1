"""What the memory study adds to Phase 4's one table: α, composition against selection, operators against parents.

All effects are paired and in points; releases are drawn anew. A pair of merged adapters is of two releases, and pairs
that share one are not independent: a pair is drawn as often as both of its releases (the vertex bootstrap of Snijders
and Borgatti 1999).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rune.adapters.registry.records import Entry, Level, Operation
from rune.analysis import stats

RESAMPLES = 10_000
SPECIFIED = "0.7"  # α
SUMS = (
    "learned sum of the lessons",
    "all in one + release",
    "sum of the lessons",
    "mean of the lessons",
    "mean of all releases",
)
NO_GAIN = np.finfo(float).eps


def drawn_anew(means_R: np.ndarray, points: float) -> dict[str, float]:
    """Interval and two-sided p of an effect whose resampled means are given, all in points."""
    means_R = np.where(np.abs(means_R) < 100 * NO_GAIN, 0.0, means_R)
    beyond = min(float((means_R <= 0).mean()), float((means_R >= 0).mean()))
    return {
        "points": points, "low": float(np.quantile(means_R, 0.025)), "high": float(np.quantile(means_R, 0.975)),
        "p": min(1.0, 2 * max(beyond, 1 / len(means_R))),
    }  # fmt: skip


def paired(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, Any] | None:
    """Of releases that both have, shares in, points out; None if there are none."""
    both = sorted(one.keys() & other.keys())
    if not both:
        return None
    values_D = 100 * np.array([one[d] - other[d] for d in both])
    means_R = stats.task_weights(len(both), RESAMPLES, 0) @ values_D
    return {**drawn_anew(means_R, float(values_D.mean())), "units": f"{len(both)} releases"}


def over_vertices(pairs: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """Of pairs of releases with a share each; resamples in which no pair is left are passed over."""
    names = sorted({d for a, b, _ in pairs for d in (a, b)})
    at = {name: n for n, name in enumerate(names)}
    weights_RD = stats.task_weights(len(names), RESAMPLES, 0)
    weights_RP = np.stack([weights_RD[:, at[a]] * weights_RD[:, at[b]] for a, b, _ in pairs], 1)
    weights_RP = weights_RP[weights_RP.sum(1) > 0]
    values_P = 100 * np.array([value for _, _, value in pairs])
    means_R = weights_RP @ values_P / weights_RP.sum(1)
    return {**drawn_anew(means_R, float(values_P.mean())), "units": f"{len(pairs)} pairs of {len(names)} releases"}


def effects(
    entries: Mapping[str, Entry], done: Sequence[Operation], arms: Mapping[str, Mapping[str, float]],
    by_alpha: Mapping[str, Mapping[str, float]], decided: Mapping[str, Mapping[str, float]],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row an effect. All are release → UPass: `arms` by arm, the others by α. `by_alpha`: the fittest adapter of any
    level; `decided`: what is selected when that α also decided what is kept, none where that was not tried.
    """
    rows: list[dict[str, Any]] = []

    def add(axis: str, variant: str, against: str, found: Mapping[str, Any] | None, parameters: float) -> None:
        if found:
            rows.append({"axis": axis, "variant": variant, "against": against, "parameters": parameters, **found})

    size = float(np.mean([e.parameters for e in entries.values() if e.place.level is Level.TASK]))
    for axis, of in (("α, fittest of any level", by_alpha), ("α, kept and selected", decided)):
        for alpha, means in of.items():
            if alpha != SPECIFIED:
                add(axis, alpha, SPECIFIED, paired(means, of[SPECIFIED]), size)
    for name in SUMS:
        if name in arms:
            made = [e.parameters for e in entries.values() if e.place.domain.startswith(f"{name} ")]
            add("composition", name, "selected", paired(arms[name], arms["selected"]), float(np.mean(made or [0])))
    groups: dict[str, list[Operation]] = {}
    for one in done:
        if one.kind == "merge":
            name = f"{one.arguments['merge']['method']}, {one.arguments['weights'][0]:g} each"
            groups.setdefault(name, []).append(one)
    for name, some in groups.items():
        made = float(np.mean([entries[one.result].parameters for one in some]))
        add("merge", name, "that parent, own tasks", over_vertices([lost(entries, one) for one in some]), made)
    return rows


def lost(entries: Mapping[str, Entry], merge: Operation) -> tuple[str, str, float]:
    """The releases of a merge's parents, and its rate less a parent's own on that one's tasks, mean of both."""
    domains = [entries[parent].place.domain for parent in merge.inputs]
    rates = merge.numbers["domains"]
    gains = [rates[d][merge.result] - rates[d][parent] for d, parent in zip(domains, merge.inputs, strict=True)]
    return domains[0], domains[1], sum(gains) / len(gains)
