"""Which trajectories a task is given: the best of a retriever's ranking, so many of any one task."""

from __future__ import annotations

from collections import Counter

from rune.corpus import exclusion
from rune.types import Hit, Retriever


def nearest(
    retriever: Retriever, query: str, *, ranked: int, count: int, per_task: int, without: str = ""
) -> tuple[Hit, ...]:
    """The `count` best hits for a prompt, best first; fewer if there are fewer.

    `ranked`: how many hits are looked through, the number of indexed trajectories for all of them. `per_task`: hits
    of one task at most, under any of its names; 0 for no limit. `without`: a task that gives none.
    """
    given: Counter[str] = Counter()
    found: list[Hit] = []
    for hit in retriever.retrieve(query, top_k=ranked):
        task = exclusion.canonical_id(hit.trajectory.task_id)
        if len(found) < count and task != exclusion.canonical_id(without) and not 0 < per_task <= given[task]:
            given[task] += 1
            found.append(hit)
    return tuple(found)
