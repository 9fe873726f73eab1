"""Mutate and repair: mutants are different programs, failures are real, the ending is the reference."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator

import pytest

from rune.benchmarks import humaneval
from rune.corpus import mutate, summary
from rune.sandbox import fork
from rune.types import Outcome, Problem, Program, Sandbox

REFERENCE = """import math

def area(xs, limit):
    total = 0
    for x in xs:
        if x > 0 and x < limit:
            total += math.sqrt(x) * 2
    return total
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = fork.build(fork.Config(cpu_seconds=1.0))
    yield box
    box.close()


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return humaneval.build(humaneval.Config()).problems()[:24]


def test_mutants_are_new_programs_one_edit_away() -> None:
    mutants = list(mutate.mutate(REFERENCE, 12, seed=0))
    assert len(mutants) == len({m.code for m in mutants}) == 12
    assert {"condition", "operator", "off by one", "return", "import"} <= {m.kind for m in mutants}
    original = ast.dump(ast.parse(REFERENCE))
    for mutant in mutants:
        assert ast.dump(ast.parse(mutant.code)) != original
    close = [summary.correction(m.code, REFERENCE) for m in mutants]
    assert "rewritten" not in close


def test_the_same_seed_breaks_the_same_places() -> None:
    assert list(mutate.mutate(REFERENCE, 6, seed=1)) == list(mutate.mutate(REFERENCE, 6, seed=1))
    assert list(mutate.mutate(REFERENCE, 6, seed=1)) != list(mutate.mutate(REFERENCE, 6, seed=2))


def test_a_program_with_few_places_to_break_gives_what_it_has() -> None:
    mutants = list(mutate.mutate("def f(x):\n    return x\n", 10, seed=0))
    assert [m.kind for m in mutants] == ["return", "syntax"]


def test_trajectories_hold_real_failures_and_end_with_the_reference(problems: list[Problem], sandbox: Sandbox) -> None:
    settings = mutate.Settings(seed=0, mutants=8, per_task=2)
    found = list(mutate.trajectories(problems, settings, sandbox=sandbox))
    by_task = {p.task_id: p for p in problems}
    assert {t.task_id for t in found} == set(by_task)
    assert max(Counter(t.task_id for t in found).values()) == 2
    assert len({t.trajectory_id for t in found}) == len(found)
    programs, told = [], []
    for trajectory in found:
        problem = by_task[trajectory.task_id]
        *failures, last = trajectory.attempts
        assert 1 <= len(failures) <= settings.failures
        assert last.code == trajectory.solution == problem.reference
        assert trajectory.source == mutate.SOURCE
        for attempt in failures:
            assert attempt.error
            programs.append(
                Program(
                    key=str(len(programs)),
                    code=attempt.code,
                    test=problem.test,
                    entry_point=problem.entry_point,
                    prelude=problem.prelude,
                )
            )
            told.append((attempt.outcome, attempt.error_kind))
    # Judged again, every recorded failure fails in the recorded way.
    again = {int(e.key): (e.outcome, e.label) for e in sandbox.judge(programs)}
    assert [again[i] for i in range(len(told))] == told
    assert len({kind for _, kind in told}) >= 4


def test_a_reference_that_fails_its_own_test_gives_nothing(problems: list[Problem], sandbox: Sandbox) -> None:
    from dataclasses import replace

    wrong = replace(problems[0], reference=problems[0].prompt + "    return None\n")
    assert list(mutate.trajectories([wrong], mutate.Settings(seed=0), sandbox=sandbox)) == []


def test_mutants_that_still_pass_are_dropped(sandbox: Sandbox) -> None:
    always = Problem(
        task_id="t/1",
        benchmark="t",
        prompt="def f(): ...",
        entry_point="f",
        test="def check(candidate):\n    candidate(1)\n",
        reference="def f(x):\n    y = 1 + 2\n    return y < 3\n",
    )
    found = list(mutate.trajectories([always], mutate.Settings(seed=0), sandbox=sandbox))
    assert all(a.outcome is not Outcome.PASSED for t in found for a in t.attempts[:-1])
    assert [a.error_kind for t in found for a in t.attempts[:-1]] in ([], ["SyntaxError"], ["NameError"])
