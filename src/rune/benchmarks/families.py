"""Task families with private conventions: where "the trajectory reached the weights" can be seen.

Every task is a plain little function whose prompt says "Follow the house conventions" and no more. Its family
packs the argument, signals an empty one, rewrites the result and wraps it in ways that nobody would guess, so
a bare model scores about 0; a trajectory of a sibling task (default attempt, error, corrected code) shows all
of it. The prompt names no family: the same prompt has different right answers in different families, so the
trajectory is the only source. docs/families.md has the vocabulary and the measured numbers.

Covered: generation, split by family, tests, references, proof, trajectories. Not covered: conventions that
need more than one line each, or state between calls.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rune.benchmarks import _families_conventions as conventions
from rune.benchmarks import _families_trajectories
from rune.benchmarks._families_atoms import DIMENSIONS, choices, prelude
from rune.benchmarks._families_conventions import Convention, Rows
from rune.benchmarks._families_tasks import BY_NAME, TASKS, Task
from rune.errors import DataError
from rune.types import Outcome, Problem, Program, Sandbox, Split, Trajectory

NAME = "families"
KINDS = ("number", "list", "text")
CASES = 4  # regular test cases per task, besides the empty one
DRAWS = 5000  # conventions tried for one family before giving up


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What to generate. The same settings give the same bytes on every machine."""

    seed: int = 0
    families: int = 320
    held_out: int = 64  # of the families above
    tasks: int = 6  # per family
    min_active: int = 3  # dimensions in use, of 4
    max_active: int = 4
    split: Literal["combination", "atom"] = "combination"
    # combination: held-out families combine atoms that training families show one by one.
    # atom: each held-out family uses at least one atom that no training family shows (harder).

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < self.families:
            raise ValueError(f"held_out = {self.held_out} families of {self.families}; leave some to train on")
        if not 1 <= self.tasks <= 10:
            raise ValueError(f"tasks = {self.tasks}; a kind offers enough plain tasks for 1 to 10 per family")
        if not 2 <= self.min_active <= self.max_active <= len(DIMENSIONS):
            raise ValueError(f"active dimensions {self.min_active} to {self.max_active}; expected 2 ≤ min ≤ max ≤ 4")


@dataclass(frozen=True, slots=True)
class Families:
    """The benchmark: `problems()` in family order."""

    config: Config

    def problems(self) -> list[Problem]:
        return generate(self.config)


def build(config: Config) -> Families:
    return Families(config)


def generate(config: Config) -> list[Problem]:
    """All problems, training families first. Raises DataError if the vocabulary is too small for the settings."""
    rng = random.Random(f"families/{config.seed}")
    reserved = _reserved(rng) if config.split == "atom" else frozenset()
    shown: dict[Split, Counter[str]] = {split: Counter() for split in Split}  # atoms of the families so far
    shapes: set[tuple[str, ...]] = set()
    problems: list[Problem] = []
    for index in range(config.families):
        split = Split.TRAIN if index < config.families - config.held_out else Split.HELD_OUT
        for _ in range(DRAWS):
            convention = _draw(rng, config, KINDS[index % len(KINDS)], split, shown, reserved)
            if convention is None or convention.shape in shapes:
                continue
            if members := _members(convention, split, config):
                break
        else:
            raise DataError(f"families: found {index} of {config.families} distinct families; ask for fewer")
        shapes.add(convention.shape)
        problems += members
        shown[split].update(convention.labels)
    return problems


def _draw(
    rng: random.Random,
    config: Config,
    kind: str,
    split: Split,
    shown: dict[Split, Counter[str]],
    reserved: frozenset[str],
) -> Convention | None:
    """A convention that this side of the split may have, or None if the draw was not one."""
    kept = _labels(rng.choice(DIMENSIONS), kind) if reserved and split is Split.HELD_OUT else frozenset()

    def allowed(name: str) -> bool:
        if split is Split.TRAIN:
            return name not in reserved
        if name in kept:  # else the rarest of three is taken, and as each family has one, these are never the rarest
            return name in reserved
        return bool(reserved) or shown[Split.TRAIN][name] > 0

    active = rng.randint(config.min_active, config.max_active)
    convention = conventions.draw(rng, kind, active=active, used=shown[split], allowed=allowed)
    novel = not reserved or split is Split.TRAIN or bool(convention.labels & reserved)
    return convention if novel and len(convention.active) >= config.min_active else None


def _labels(dimension: str, kind: str) -> frozenset[str]:
    return frozenset(conventions.label(dimension, kind, atom) for atom in choices(dimension, kind))


def _reserved(rng: random.Random) -> frozenset[str]:
    """A sixth of each dimension's atoms, kept for held-out families."""
    chosen: list[str] = []
    for dimension in DIMENSIONS:
        for kind in KINDS if dimension == "value" else KINDS[:1]:
            table = choices(dimension, kind)
            picked = rng.sample(table, max(1, len(table) // 6))
            chosen += [conventions.label(dimension, kind, atom) for atom in picked]
    return frozenset(chosen)


def _members(convention: Convention, split: Split, config: Config) -> list[Problem]:
    """The family's problems, or [] if too few plain tasks show every one of its habits."""
    rng = random.Random(f"families/{config.seed}/{convention.name}")
    fitting = [task for task in TASKS if _fits(task, convention)]
    problems: list[Problem] = []
    for task in rng.sample(fitting, len(fitting)):
        rows = conventions.cases(task, convention, rng, count=CASES)
        if rows:
            problems.append(_problem(task, convention, rows, split, index=len(problems)))
            if len(problems) == config.tasks:
                return problems
    return []


def _fits(task: Task, convention: Convention) -> bool:
    subjects = convention.input.subjects if convention.input else ()
    return task.kind == convention.kind and (not subjects or task.subject in subjects)


def _problem(task: Task, convention: Convention, rows: Rows, split: Split, *, index: int) -> Problem:
    return Problem(
        task_id=f"{NAME}/{convention.name}/{index}",
        benchmark=NAME,
        prompt=conventions.prompt(task),
        entry_point=task.name,
        test=_test(task, rows),
        reference=conventions.solution(task, convention),
        category=convention.kind,
        split=split,
        prelude=prelude(convention.libraries),
        domain=convention.name,
    )


def _test(task: Task, rows: Rows) -> str:
    """check(candidate) over literal cases: only plain data goes in and comes out."""
    cases = "".join(f"    ({arguments!r}, {expected!r}),\n" for arguments, expected in rows)
    return (
        f"CASES = [\n{cases}]\n\n\n"
        "def check(candidate):\n"
        "    for arguments, expected in CASES:\n"
        "        assert candidate(*arguments) == expected\n"
    )


# --------------------------------------------------------------------------- trajectories


def trajectories(
    problems: Iterable[Problem], sandbox: Sandbox | None, *, seed: int = 0, variants: int = 1
) -> list[Trajectory]:
    """`variants` different trajectories per problem, in order: the plain default fails, perhaps a half-way
    repair too, then the family's solution passes. Errors come from `sandbox`, or without one from running our
    own attempts in this process.
    """
    return _families_trajectories.write(list(problems), sandbox, seed=seed, variants=variants)


# --------------------------------------------------------------------------- proof


class Proof(NamedTuple):
    """What `verify` ran: every count is of programs that did what they had to."""

    families: int
    references_passed: int
    defaults_failed: int
    near_misses_failed: int


def verify(problems: Sequence[Problem], sandbox: Sandbox) -> Proof:
    """Run the proof: each reference passes; each plausible default fails; so does a solution that lacks one of
    the family's habits; no two families share a convention. Raises DataError naming the first offender.
    """
    names = {problem.domain for problem in problems}
    found = {name: conventions.parse(name) for name in names}
    shapes = Counter(convention.shape for convention in found.values())
    for name, convention in sorted(found.items()):
        if shapes[convention.shape] > 1:
            raise DataError(f"families: {name} shares its convention with another family")
    programs: list[Program] = []
    for problem in problems:
        programs.append(_program(problem, "reference", problem.reference))
        programs += [_program(problem, f"default {i}", code) for i, code in enumerate(defaults(problem))]
        programs += [_program(problem, f"near miss without {d}", code) for d, code in near_misses(problem).items()]
    counts: Counter[str] = Counter()
    for execution in sandbox.judge(programs):
        task_id, _, role = execution.key.partition("#")
        passed = execution.outcome is Outcome.PASSED
        if passed != (role == "reference"):
            raise DataError(f"families: {task_id}: the {role} {execution.outcome.value} {execution.error}".strip())
        counts[role.split()[0]] += 1
    return Proof(len(names), counts["reference"], counts["default"], counts["near"])


def _program(problem: Problem, role: str, code: str) -> Program:
    return Program(
        key=f"{problem.task_id}#{role}",
        code=code,
        test=problem.test,
        entry_point=problem.entry_point,
        prelude=problem.prelude,
    )


def defaults(problem: Problem) -> list[str]:
    """What someone who knows no convention would plausibly write."""
    task = BY_NAME[problem.entry_point]
    plain = [conventions.default(task, error) for error in conventions.PLAIN_ERRORS]
    return [*plain, conventions.solution(task, Convention(kind=task.kind))]


def near_misses(problem: Problem) -> dict[str, str]:
    """Dimension → the reference with that one habit missing."""
    task, convention = BY_NAME[problem.entry_point], conventions.parse(problem.domain)
    return {d: conventions.solution(task, convention.without(d)) for d in convention.active}
