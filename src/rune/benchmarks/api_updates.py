"""Updates of standard-library functions that nobody made: a seeded generator in the form of CodeUpdateArena.

A domain is an update: a function gets a new argument, another default, another return, a new name, a new error, or two
of these. Its tasks want the updated function and never say what changed; a trajectory of a sibling shows it. Every task
is kept only if its reference passes with the update and fails without it, what someone who knows the old function would
write fails, and the reference of one update fails under every other update of the same function. The check is an
execution, here while generating and in the sandbox by `verify`.

Functions of math, numpy, re, itertools and sympy are never changed: CodeUpdateArena holds updates of these out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from rune import config as settings
from rune.benchmarks._api_changes import MAKERS, Change, Draw, Use
from rune.benchmarks._api_functions import FUNCTIONS, SUBJECTS, Function
from rune.benchmarks._api_tasks import SHAPES, Raised, Shape, name_of, passes, program, prompt, run
from rune.benchmarks._families_trajectories import run_here
from rune.benchmarks.scorers import execution, execution_with_and_without
from rune.benchmarks.scorers import updates as _updates
from rune.benchmarks.scorers.judging import Item
from rune.benchmarks.scorers.updates import Update
from rune.errors import DataError
from rune.types import Attempt, Outcome, Problem, Sandbox, Scorer, Split, Trajectory

NAME = "api_updates"
FORBIDDEN = frozenset({"math", "numpy", "re", "itertools", "sympy"})
KINDS = {  # how often each is drawn
    "new-argument": 6,
    "changed-default": 1,
    "changed-return": 4,
    "new-name": 2,
    "new-error": 2,
    "combined": 3,
}
CASES = 4  # tests a task, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What to generate. The same settings give the same tasks under the same version of Python."""

    seed: int = 0
    updates: int = 1000
    tasks: int = 4  # per update
    held_out: int = 0  # functions, not updates: all that change one of these are held out
    names: Literal["plain", "open"] = "open"
    # plain: arguments, keys and new names from a few hundred, which a reader can learn by heart.
    # open: from millions (one or two of 2,000 words), so that only copying them from the trajectory helps.

    def __post_init__(self) -> None:
        if self.updates < 1 or not 4 <= self.tasks <= len(SHAPES):
            raise ValueError(f"updates = {self.updates}, tasks = {self.tasks}; expected ≥ 1 and 4 to {len(SHAPES)}")
        if not 0 <= self.held_out < len(FUNCTIONS):
            raise ValueError(f"held_out = {self.held_out} of {len(FUNCTIONS)} functions")


@dataclass(frozen=True, slots=True)
class ApiUpdates:
    """The benchmark: `problems()` in the order of generation."""

    config: Config

    def problems(self) -> list[Problem]:
        return [task.problem for task in generate(self.config)]


def build(config: Config) -> ApiUpdates:
    return ApiUpdates(config)


class Task(NamedTuple):
    """A problem and what its proof and its trajectories are made of."""

    problem: Problem
    update: Update
    habits: tuple[str, ...]  # programs of someone who knows the old function, or guesses at the new one


# --------------------------------------------------------------------------- generating


def generate(config: Config) -> list[Task]:
    """All tasks, update by update. Raises DataError if the tables are too small for the settings."""
    rng = random.Random(f"{NAME}/{config.seed}")
    held = {f.path for f in rng.sample(FUNCTIONS, config.held_out)}
    found: dict[str, list[list[Task]]] = {f.path: [] for f in FUNCTIONS}
    names: set[str] = set()
    kinds = rng.choices(list(KINDS), weights=list(KINDS.values()), k=20 * config.updates + 1000)
    tasks: list[Task] = []
    for kind in kinds:
        function = rng.choice(FUNCTIONS)
        change = MAKERS[kind](Draw(rng, config.names), function)
        if change is None or change.update.domain in names:
            continue
        split = Split.HELD_OUT if function.path in held else Split.TRAIN
        made = _tasks(rng, function, change, split, config.tasks)
        if not made or any(_agree(made, other) or _agree(other, made) for other in found[function.path]):
            continue
        names.add(change.update.domain)
        found[function.path].append(made)
        tasks += made
        if len(names) == config.updates:
            return tasks
    raise DataError(f"{NAME}: found {len(names)} of {config.updates} distinct updates; ask for fewer")


def _agree(one: Sequence[Task], other: Sequence[Task]) -> bool:
    """Whether a solution of one update does under another."""
    return passes(other[0].update, one[0].problem.reference, one[0].problem)


def _tasks(rng: random.Random, function: Function, change: Change, split: Split, count: int) -> list[Task]:
    """The update's tasks, or [] if too few of them prove it."""
    made: list[Task] = []
    for shape in rng.sample(SHAPES, len(SHAPES)):
        task = _task(rng, function, change, shape, split, len(made))
        if task is not None:
            made.append(task)
            if len(made) == count:
                return made
    return []


def _task(
    rng: random.Random, function: Function, change: Change, shape: Shape, split: Split, number: int
) -> Task | None:
    kind, words, draw = SUBJECTS[function.subject]
    use = change.right(rng)
    name = name_of(rng, function, shape)
    reference = program(function, name, shape, use)
    habits = [program(function, name, shape, Use(wrong, parameter=use.parameter)) for wrong in change.wrong]
    rows: list[tuple[tuple[Any, ...], Any]] = []
    for _ in range(4 * CASES):
        arguments: tuple[Any, ...] = (shape.arguments(rng, draw),)
        if use.parameter:
            arguments += (rng.choice(use.given),)
        if any(arguments == row[0] for row in rows):
            continue
        got = run(change.update, reference, name, arguments)
        if not isinstance(got, Raised) and _plain(got):
            rows.append((arguments, got))
        if len(rows) == CASES + 1:
            break
    if len(rows) < CASES:
        return None
    problem = Problem(
        task_id=f"{NAME}/{change.update.domain}/{number}",
        benchmark=NAME,
        prompt=prompt(rng, function, shape, use, name, kind, words),
        entry_point=name,
        test=_test(rows),
        reference=reference,
        category=change.update.package,
        split=split,
        prelude=_updates.prelude(change.update),
        domain=change.update.domain,
        scorer=Scorer.EXECUTION_WITH_AND_WITHOUT,
    )
    failing = [code for code in habits if not passes(change.update, code, problem)]
    if passes(None, reference, problem) or len(failing) < len(habits):
        return None
    return Task(problem, change.update, tuple(dict.fromkeys(failing)))


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(map(_plain, value)) and all(map(_plain, value.values()))
    return value is None or type(value) in (bool, int, float, str)


def _test(rows: Sequence[tuple[tuple[Any, ...], Any]]) -> str:
    cases = "".join(f"    ({arguments!r}, {expected!r}),\n" for arguments, expected in rows)
    return (
        f"CASES = [\n{cases}]\n\n\ndef check(candidate):\n    for arguments, expected in CASES:\n"
        "        assert candidate(*arguments) == expected\n"
    )


# --------------------------------------------------------------------------- trajectories


def trajectories(tasks: Sequence[Task], *, seed: int = 0) -> Iterator[Trajectory]:
    """One per task: what someone with the old habit tries, its real errors, then the reference."""
    for task in tasks:
        rng = random.Random(f"{seed}/{task.problem.task_id}")
        tried = rng.sample(task.habits, rng.randint(1, len(task.habits)))
        attempts = []
        for code in (*tried, task.problem.reference):
            with _updates.restored([task.update.function]):
                found = run_here(execution.program("", code, task.problem))
            if (found.outcome is Outcome.PASSED) != (code == task.problem.reference):
                raise DataError(f"{NAME}: {task.problem.task_id}: {found.outcome.value} {found.error}")
            attempts.append(Attempt(code=code, outcome=found.outcome, error_kind=found.label, error=found.error))
        yield Trajectory(
            trajectory_id=settings.digest([task.problem.task_id, attempts])[:16],
            task_id=task.problem.task_id,
            benchmark=NAME,
            prompt=task.problem.prompt,
            attempts=tuple(attempts),
            solution=task.problem.reference,
            category=task.problem.category,
            domain=task.problem.domain,
            source=NAME,
        )


# --------------------------------------------------------------------------- proof


def verify(tasks: Sequence[Task], sandbox: Sandbox) -> dict[str, int]:
    """Run the proof in the sandbox: each reference counts (passes with, fails without), each habit fails, and no
    reference passes under another update of its function. Raises DataError naming the first offender.
    """
    first: dict[str, dict[str, Task]] = {}
    for task in tasks:
        first.setdefault(task.update.function, {}).setdefault(task.update.domain, task)
    items = [Item(f"{t.problem.task_id}#reference", t.problem, t.problem.reference) for t in tasks]
    items += [Item(f"{t.problem.task_id}#habit {i}", t.problem, code) for t in tasks for i, code in enumerate(t.habits)]
    for members in first.values():
        for one in members.values():
            for other in members.values():
                if one is not other:
                    strange = replace(one.problem, prelude=other.problem.prelude)
                    key = f"{one.problem.task_id}#under {other.update.domain}"
                    items.append(Item(key, strange, one.problem.reference))
    counts: Counter[str] = Counter(updates=sum(map(len, first.values())), functions=len(first))
    for found in execution_with_and_without.judge(sandbox, items):
        task_id, _, role = found.key.partition("#")
        counts_or_passes = (
            found.outcome is Outcome.PASSED if role == "reference" else execution_with_and_without.passes_with(found)
        )
        if counts_or_passes != (role == "reference"):
            raise DataError(f"{NAME}: {task_id}: {role}: {found.outcome.value} {found.error_kind} {found.error}")
        counts[
            {"reference": "references_count", "habit": "habits_fail", "under": "strangers_fail"}[role.split()[0]]
        ] += 1
    return dict(counts)
