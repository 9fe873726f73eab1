"""Which tasks are held out: once, by a seeded, stratified rule that anyone can repeat.

The rule of `split`: every category gives its share of the held-out tasks (largest remainder); within a category
tasks are taken in the order of sha256(seed, task id). A task with a near relative on the other side (same
syntax tree, half of its 10-token shingles; see `exclusion.relatives`) is passed over, so that no training task
is a rewording of a held-out one. `deal` lays all tasks into k parts for the cross-fitted variant, relatives
together, so that each task is held out once.

With `by="domain"` whole domains are held out (`Problem.domain`: a library, an API update, a private convention), so
that nothing that trains is of a held-out one; with `by="task"` tasks of one domain may stand on both sides.

A benchmark that marks its own evaluation tasks (MBPP: ids 11–510) is held out among those only; the ones not
chosen take no part at all, for they may not train either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rune.config import derive_seed
from rune.corpus import exclusion
from rune.errors import ConfigError
from rune.types import Problem, Split


def split(problems: Sequence[Problem], *, held_out: int, seed: int, by: str = "task") -> list[Problem]:
    """The tasks that take part, in order, marked TRAIN or HELD_OUT. `held_out=0` keeps the benchmark's own marks.

    `held_out` counts tasks, or domains with `by="domain"`. Raises ConfigError if so many cannot be held out.
    """
    if by == "domain" and held_out:
        return _split_domains(problems, held_out, seed)
    marked = [p for p in problems if p.split is Split.HELD_OUT]
    if held_out == 0:
        return list(problems)
    candidates = marked or _without_relatives(problems)
    if held_out < 0 or held_out > len(candidates) or (not marked and held_out >= len(problems)):
        raise ConfigError(
            f"cannot hold out {held_out} of {len(problems)} tasks ({len(candidates)} have no near relative among "
            f"them); give a number from 0 to {len(candidates)}"
        )
    chosen: set[str] = set()
    for category, quota in _quotas(candidates, held_out).items():
        members = sorted((p for p in candidates if p.category == category), key=lambda p: _order(p, seed))
        chosen.update(p.task_id for p in members[:quota])
    rest = problems if not marked else [p for p in problems if p.split is Split.TRAIN or p.task_id in chosen]
    return [replace(p, split=Split.HELD_OUT if p.task_id in chosen else Split.TRAIN) for p in rest]


def _split_domains(problems: Sequence[Problem], held_out: int, seed: int) -> list[Problem]:
    """`held_out` domains by a seeded order; among those that the benchmark marks, if it marks any."""
    marked = [p for p in problems if p.split is Split.HELD_OUT]
    names = sorted({_domain(p) for p in marked or problems}, key=lambda d: derive_seed(seed, "split", d))
    least = 0 if marked else 1
    if held_out > len(names) - least:
        raise ConfigError(f"cannot hold out {held_out} of {len(names)} domains; give 1 to {len(names) - least}")
    chosen = set(names[:held_out])
    rest = problems if not marked else [p for p in problems if p.split is Split.TRAIN or p.domain in chosen]
    return [replace(p, split=Split.HELD_OUT if p.domain in chosen else Split.TRAIN) for p in rest]


def _domain(problem: Problem) -> str:
    if not problem.domain:
        raise ConfigError(f'[design] by = "domain", but {problem.task_id} has no domain; use by = "task"')
    return problem.domain


def deal(problems: Sequence[Problem], *, k: int, seed: int, by: str = "task") -> list[list[str]]:
    """k lists of task ids that cover all tasks once: even in size and categories, near relatives together.

    Raises ConfigError if there are fewer tasks than folds.
    """
    if by == "domain":
        for problem in problems:
            _domain(problem)
    if not 2 <= k <= len(problems):
        raise ConfigError(f"folds must be between 2 and the number of tasks ({len(problems)}), found {k}")
    groups = [[problems[i] for i in group] for group in exclusion.relatives(problems, by=by)]
    groups.sort(key=lambda g: (-len(g), g[0].category, _order(g[0], seed)))
    parts: list[list[Problem]] = [[] for _ in range(k)]
    for group in groups:
        category = group[0].category

        def load(part: list[Problem], category: str = category) -> tuple[int, int]:
            return sum(p.category == category for p in part), len(part)

        min(parts, key=load).extend(group)
    return [[p.task_id for p in part] for part in parts]


def hold_out_fold(problems: Sequence[Problem], *, fold: int, folds: int, seed: int, by: str = "task") -> list[Problem]:
    """All tasks, fold number `fold` of `folds` held out."""
    if not 0 <= fold < folds:
        raise ConfigError(f"fold must be 0 to {folds - 1}, found {fold}")
    chosen = set(deal(problems, k=folds, seed=seed, by=by)[fold])
    return [replace(p, split=Split.HELD_OUT if p.task_id in chosen else Split.TRAIN) for p in problems]


def _without_relatives(problems: Sequence[Problem]) -> list[Problem]:
    return [problems[group[0]] for group in exclusion.relatives(problems, by="task") if len(group) == 1]


def _quotas(problems: Sequence[Problem], total: int) -> dict[str, int]:
    """`total` shared out in proportion, by largest remainder; ties to the larger category, then by name."""
    sizes = Counter(p.category for p in problems)
    exact = {name: total * size / len(problems) for name, size in sizes.items()}
    quotas = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: (quotas[name] - exact[name], -sizes[name], name))
    for name in by_remainder[: total - sum(quotas.values())]:
        quotas[name] += 1
    return quotas


def _order(problem: Problem, seed: int) -> int:
    return derive_seed(seed, "split", problem.task_id)
