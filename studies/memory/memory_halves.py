"""The evolution decided again on half of its scored tasks, and what it then selects scored on the other half.

Every update has two scored tasks; one of each stands in either half, eight splits a release. What is kept and selected
follows `rune adapters evolve` and `select`, with φ of the one half (and the tasks outside) at any α; rates are of the
other half, mean over the splits. So nothing is scored on a task that chose it, and nothing needs another draw but the
bare model's. Not announced: it stands in for the test, which was cut off.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

Passes = Mapping[str, tuple[int, int]]  # task → (passes, draws)
BARE = ""  # instead of an adapter's id
NOTHING = "nothing selected"  # beside the arms: the share of splits in which the evolution has left nothing to select


class Release(NamedTuple):
    """What one release has: ids of adapters, `updated` BARE if none was made."""

    lessons: Sequence[str]  # in order of arrival
    consolidated: str
    updated: str


def splits(by_update: Mapping[str, Sequence[str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Both halves, in every way that puts one of each update's two tasks in either."""
    pairs = [tuple(tasks) for _, tasks in sorted(by_update.items()) if len(tasks) == 2]
    for sides in itertools.product((0, 1), repeat=len(pairs)):
        yield [p[s] for p, s in zip(pairs, sides, strict=True)], [p[1 - s] for p, s in zip(pairs, sides, strict=True)]


def rate(passes: Passes, tasks: Sequence[str]) -> float:
    return math.fsum(passes[task][0] / passes[task][1] for task in tasks) / len(tasks)


def phi(passes: Passes, inside: Sequence[str], outside: Sequence[str], alpha: float) -> float:
    return alpha * rate(passes, inside) + ((1 - alpha) * rate(passes, outside) if alpha < 1 else 0.0)


def selected(release: Release, worth: Mapping[str, float]) -> str:
    """What `select` gives for an unseen task of the release once the evolution has decided by `worth` (id → φ)."""
    if worth[release.consolidated] < max(worth[lesson] for lesson in release.lessons):
        return BARE
    if release.updated and worth[release.updated] >= worth[release.consolidated]:
        return release.updated
    return release.consolidated


def fittest(release: Release, worth: Mapping[str, float]) -> str:
    """Of all levels; of equals the newest."""
    order = [*release.lessons, release.consolidated, *filter(None, [release.updated])]
    return max(enumerate(order), key=lambda one: (worth[one[1]], one[0]))[1]


def scored(
    releases: Mapping[str, Release], passes: Mapping[str, Passes], tasks: Mapping[str, Mapping[str, Sequence[str]]],
    outside: Sequence[str], alpha: float,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Arm → release → rate on the half that chose nothing. `passes[BARE]`: the bare model's.

    `tasks`: release → update → its scored tasks.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for name, release in releases.items():
        rates: dict[str, list[float]] = defaultdict(list)
        for chose, asked in splits(tasks[name]):
            own = [*release.lessons, release.consolidated, *filter(None, [release.updated])]
            worth = {a: phi(passes[a], chose, outside, alpha) for a in own}
            arms = {
                "selected": selected(release, worth), "fittest of any level": fittest(release, worth),
                "newest of the release": release.lessons[-1], "consolidated": release.consolidated, "vanilla": BARE,
            }  # fmt: skip
            if release.updated:
                arms["updated"] = release.updated
            for arm, adapter in arms.items():
                rates[arm].append(rate(passes[adapter], asked))
            rates[NOTHING].append(float(arms["selected"] == BARE))
            rates["one lesson, mean of six"] += [rate(passes[a], asked) for a in release.lessons]
        for arm, some in rates.items():
            found[arm][name] = math.fsum(some) / len(some)
    return dict(found)
