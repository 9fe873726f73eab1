"""Which trajectories a held-out task is given, by its prompt alone: the same for RAG and for the hypernetwork."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rune import config as configs
from rune import plugins
from rune.corpus import nearest
from rune.types import Hit, Problem, Trajectory


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[retrieve]`."""

    top_k: int  # trajectories a task is given
    per_task: int = 1  # trajectories of one training task at most, so that top_k are of so many tasks; 0 = no limit
    retriever: str = "bm25"  # a file in retrievers/
    within: Literal["any", "domain"] = "any"  # "domain": only trajectories of the task's own domain
    exclude_same_task: bool = True  # false: a task's own trajectory may be found (recall, not transfer)
    settings: dict[str, Any] = field(default_factory=dict)  # the retriever's own

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, found {self.top_k}")
        if self.per_task < 0:
            raise ValueError(f"per_task must be 0 (no limit) or more, found {self.per_task}")


def hits(problems: Sequence[Problem], trajectories: Sequence[Trajectory], config: Config) -> dict[str, tuple[Hit, ...]]:
    """task_id → its nearest solved trajectories, best first; fewer than `top_k` where there are fewer.

    A task of a domain is given what `within` allows. A private domain is no help to a task outside of all domains, so
    such a task is given nothing of one.
    """
    module = plugins.load("retrievers", config.retriever)
    settings = configs.build(module.Config, config.settings, where="retrieve.settings")
    solved = [t for t in trajectories if t.solved]
    indices: dict[str | None, tuple[Any, int]] = {}
    found: dict[str, tuple[Hit, ...]] = {}
    for problem in problems:
        key = _pool_key(problem, config)
        if key not in indices:
            pool = solved if key is None else [t for t in solved if t.domain == key]
            indices[key] = module.build(settings, pool), len(pool)
        retriever, size = indices[key]
        found[problem.task_id] = nearest.nearest(
            retriever,
            problem.prompt,
            ranked=size,
            count=config.top_k,
            per_task=config.per_task,
            without=problem.task_id if config.exclude_same_task else "",
        )
    return found


def _pool_key(problem: Problem, config: Config) -> str | None:
    """The domain to search in; None for everything."""
    if config.within == "domain" or not problem.domain:
        return problem.domain
    return None
