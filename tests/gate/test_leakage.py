"""A planted leak is found whatever its kind; a clean corpus passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.analysis import gate, leakage
from rune.corpus import overlap
from rune.runs import store
from rune.types import Attempt, Outcome, Problem, Split, Trajectory, Treatment
from tests.report import runs

SETTINGS = gate.Config(resamples=500, simulations=100)
VICTIM = "HumanEval/70"


def without_relatives(problems: list[Problem]) -> list[Problem]:
    """HumanEval/61 repeats /56 with other brackets: a leak of the benchmark's own, found by the check."""
    return [p for p in problems if p.task_id != "HumanEval/56"]


def check(tmp_path: Path, edit: Callable[[list[Trajectory]], list[Trajectory]] = lambda x: x) -> dict[str, Any]:
    folder = runs.build(tmp_path, extras=False, edit_problems=without_relatives, edit_trajectories=edit)
    runs.decide(folder, SETTINGS)
    found: dict[str, Any] = store.read_json(folder / "leakage.json")
    return found


def victim() -> Problem:
    return next(p for p in runs.problems(25) if p.task_id == VICTIM)


def trajectory(**changes: object) -> Trajectory:
    donor = runs.trajectory(runs.problems(25)[0])
    return replace(donor, trajectory_id="planted", task_id="MBPP/900", **changes)  # type: ignore[arg-type]


def test_a_clean_corpus_passes(tmp_path: Path) -> None:
    found = check(tmp_path)
    assert found["status"] == "clean"
    assert found["suspicious"] == []
    assert found["effect_without"] == found["effect"]
    assert len(found["rows"]) == 25
    # What docs/statistics.md says is suspicious.
    assert found["limits"] == {"gram": 8, "prompt": 0.5, "solution": 0.6, "tree": 24}
    assert all(r["nearest"] != r["task_id"] for r in found["rows"])


def test_the_benchmarks_own_near_duplicate_is_found(tmp_path: Path) -> None:
    folder = runs.build(tmp_path, extras=False)
    runs.decide(folder, SETTINGS)
    found = store.read_json(folder / "leakage.json")
    assert found["suspicious"] == ["HumanEval/61"]
    assert next(r for r in found["rows"] if r["suspicious"])["nearest"] == "HumanEval/56"


RENAMED = """
def totally_other(items):
    out, flag = [], True
    while items:
        out.append(min(items) if flag else max(items))
        items.remove(out[-1])
        flag = not flag
    return out
"""


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (lambda: replace(runs.trajectory(victim()), trajectory_id="planted"), "the task itself is in the corpus"),
        (
            lambda: trajectory(prompt=victim().prompt.replace("strange", "odd")),
            "of its prompt stands in a training prompt",
        ),
        (lambda: trajectory(solution=victim().reference + "\n# seen before\n"), "of its solution stands"),
        (lambda: trajectory(solution=RENAMED), "reference's syntax tree"),
        (
            lambda: trajectory(
                attempts=(Attempt(code=victim().reference, outcome=Outcome.FAILED, error_kind="Timeout"),), solution=""
            ),
            "reference's syntax tree",
        ),
    ],
    ids=["id", "prompt", "solution", "renamed", "failed attempt"],
)
def test_a_planted_leak_is_found(tmp_path: Path, plant: Callable[[], Trajectory], words: str) -> None:
    found = check(tmp_path, lambda corpus: [*corpus, plant()])
    assert found["status"] == "suspicious"
    assert VICTIM in found["suspicious"]
    row = next(r for r in found["rows"] if r["task_id"] == VICTIM)
    assert words in row["why"]
    assert found["tasks_without"] == 25 - len(found["suspicious"])


def test_a_tree_counts_from_the_size_at_which_trees_do_not_coincide_by_chance() -> None:
    smaller = "def f(a, b, c):\n    return a + b * c - b\n"
    just = "def f(a, b, c):\n    return a + b * c - b // 2\n"
    sizes = [found.size for code in (smaller, just) if (found := overlap.shape(code))]
    assert sizes[0] < leakage.TREE_SIZE == sizes[1]
    for code, same in ((smaller, False), (just, True)):
        task = replace(victim(), reference=code)
        renamed = code.replace("a", "first").replace("b", "second").replace("def f", "def g")
        (row,) = leakage.examine([task], [leakage.Item("other/1", "", (renamed,))], {})
        assert row.same_tree is same and row.suspicious is same


def test_a_shared_function_name_alone_is_shown_but_not_suspicious(tmp_path: Path) -> None:
    code = f"def {victim().entry_point}(x):\n    return [x]\n"
    found = check(tmp_path, lambda corpus: [*corpus, trajectory(solution=code)])
    row = next(r for r in found["rows"] if r["task_id"] == VICTIM)
    assert row["same_name"]
    assert found["status"] == "clean"


def test_tests_shown_in_a_context_are_found() -> None:
    problem = victim()
    (row,) = leakage.examine([problem], [], {VICTIM: f"Here is help:\n{problem.test}"})
    assert row.in_context
    assert "shown to an arm" in row.why
    (row,) = leakage.examine([problem], [], {VICTIM: problem.prompt})
    assert not row.suspicious


def test_a_treatment_made_from_a_held_out_trajectory_is_found() -> None:
    own = runs.trajectory(victim())
    rows = leakage.examine([victim()], [], {})
    treatment = Treatment(task_id=VICTIM, condition="hypernet", trajectory_ids=(own.trajectory_id,))
    (row,) = leakage._forbidden_sources(rows, [treatment], [own])
    assert row.suspicious
    assert "held-out task's trajectory" in row.why


def test_domains_are_compared_by_domain_and_not_by_text() -> None:
    task = replace(victim(), domain="f1")
    sibling_text = leakage.Item("other/1", task.prompt, (task.reference,), "f2")
    (row,) = leakage.examine([task], [sibling_text], {})
    assert not row.suspicious
    (row,) = leakage.examine([task], [sibling_text._replace(domain="f1")], {})
    assert row.why == "its domain is in the corpus"


def test_a_task_outside_of_domains_is_compared_with_the_text_of_all_items() -> None:
    item = leakage.Item("other/1", "Something else.", (victim().reference,), "f2")
    (row,) = leakage.examine([victim()], [item], {})
    assert row.suspicious and row.nearest == "other/1" and "syntax tree" in row.why


def test_tasks_near_the_corpus_that_gain_more_are_noticed() -> None:
    blank = leakage.examine([replace(victim(), task_id=f"T/{i}", split=Split.HELD_OUT) for i in range(20)], [], {})
    rows = [replace(r, similarity=i / 20) for i, r in enumerate(blank)]
    base = [0] * 20
    leaked = leakage.consequences(rows, [i // 4 for i in range(20)], base, 5)
    assert leaked["similarity_gain"]["rho"] > 0.9
    assert leaked["similarity_gain"]["p"] < 0.01
    honest = leakage.consequences(rows, [1, 0] * 10, base, 5)
    assert honest["similarity_gain"]["p"] > 0.05


def test_the_placebo_knows_what_luck_gives() -> None:
    rows = leakage.examine([replace(victim(), task_id=f"T/{i}") for i in range(20)], [], {})
    found = leakage.consequences(rows, [3] * 20, [1] * 20, 5)
    assert found["effect"] == 40.0
    assert 0 < found["placebo"]["percentile_95"] < 20
    assert found["placebo"]["at_least_effect"] < 0.01
