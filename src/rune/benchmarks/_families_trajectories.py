"""Trajectories of family tasks: the plain default and its error, perhaps a half-way repair, then the solution.

The attempts are written from the convention; what they run into is real: each is run, by the sandbox if one is
given, or else in this process (the code is our own, so it needs no box) with the same words.
"""

from __future__ import annotations

import linecache
import random
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from rune import config
from rune.benchmarks import _families_conventions as conventions
from rune.benchmarks._families_tasks import BY_NAME
from rune.errors import DataError
from rune.types import Attempt, Execution, FailureKind, Outcome, Problem, Program, Sandbox, Trajectory

SOURCE = "families"


def write(problems: Sequence[Problem], sandbox: Sandbox | None, *, seed: int, variants: int) -> list[Trajectory]:
    """`variants` trajectories per problem. Raises DataError if an attempt does not end as it must."""
    plans = {
        f"{problem.task_id}#{variant}": (
            problem,
            _attempts(problem, random.Random(f"{seed}/{problem.task_id}/{variant}")),
        )
        for problem in problems
        for variant in range(variants)
    }
    programs = [
        Program(
            key=f"{key}#{i}", code=code, test=problem.test, entry_point=problem.entry_point, prelude=problem.prelude
        )
        for key, (problem, codes) in plans.items()
        for i, code in enumerate(codes)
    ]
    executions = {e.key: e for e in (sandbox.judge(programs) if sandbox else map(run_here, programs))}
    return [
        _trajectory(problem, codes, [executions[f"{key}#{i}"] for i in range(len(codes))])
        for key, (problem, codes) in plans.items()
    ]


def _attempts(problem: Problem, rng: random.Random) -> list[str]:
    """Programs in order; the last one passes. A half-way repair mends some habits and still fails."""
    task, convention = BY_NAME[problem.entry_point], conventions.parse(problem.domain)
    # No guard that returns a plain value: a small reader takes that value for the family's error habit.
    first = conventions.default(task, rng.choice(("", 'raise ValueError("empty")')))
    missing = rng.choice(convention.active)
    second = conventions.solution(task, convention.without(missing), headings=False)
    middle = [second] if rng.random() < 0.5 else []
    return [first, *middle, conventions.solution(task, convention)]


def _trajectory(problem: Problem, codes: list[str], executions: list[Execution]) -> Trajectory:
    for i, execution in enumerate(executions):
        if (execution.outcome is Outcome.PASSED) != (i == len(codes) - 1):
            raise DataError(f"families: {problem.task_id}: attempt {i} {execution.outcome.value} {execution.error}")
    attempts = tuple(
        Attempt(code=code, outcome=e.outcome, error_kind=e.label, error=e.error)
        for code, e in zip(codes, executions, strict=True)
    )
    return Trajectory(
        trajectory_id=config.digest([problem.task_id, attempts])[:16],
        task_id=problem.task_id,
        benchmark=problem.benchmark,
        prompt=problem.prompt,
        attempts=attempts,
        solution=codes[-1],
        category=problem.category,
        domain=problem.domain,
        source=SOURCE,
    )


FILE = "<candidate>"


def run_here(program: Program) -> Execution:
    """Judge one of our own programs in this process; errors read as the sandbox's do (a test holds them together)."""
    before = set(sys.modules)
    scope: dict[str, Any] = {}
    judge: dict[str, Any] = {}
    linecache.cache[FILE] = (len(program.code), None, program.code.splitlines(keepends=True), FILE)
    story = ""
    try:
        exec(program.prelude, scope)
        exec(compile(program.code, FILE, "exec", dont_inherit=True), scope)
        exec(program.test, judge)
        for arguments, expected in judge["CASES"]:
            story = f"{program.entry_point}({', '.join(map(repr, arguments))})"
            got = scope[program.entry_point](*arguments)
            if got != expected:
                text = f"check: {story} returned {got!r}, expected {expected!r}"
                return _failed(program, FailureKind.WRONG_ANSWER, "", text)
    except Exception as error:
        name = type(error).__name__
        text = "\n".join([*([f"{story}:"] if story else []), *_frames(error), f"{name}: {error}"])
        return _failed(program, FailureKind.RAISED, name, text)
    finally:
        del linecache.cache[FILE]
        for name in set(sys.modules) - before:
            del sys.modules[name]
    return Execution(key=program.key, outcome=Outcome.PASSED)


def _frames(error: Exception) -> list[str]:
    """The candidate's own lines, the last three."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == FILE][-3:]
    return [f"  line {f.lineno}, in {f.name}\n    {(f.line or '').strip()}" for f in frames]


def _failed(program: Program, kind: FailureKind, raised: str, text: str) -> Execution:
    return Execution(key=program.key, outcome=Outcome.FAILED, error_kind=kind, raised=raised, error=text)
