"""HumanEval: the official bytes, its categories, and a held-out split that anyone can repeat."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from rune.benchmarks import _categories, humaneval
from rune.corpus import exclusion, splits
from rune.errors import ConfigError, DataError
from rune.types import Problem, Split

CATEGORIES = {"string manipulation": 58, "arithmetic": 47, "data structures": 34, "algorithms": 25}


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return humaneval.build(humaneval.Config()).problems()


def held_out(problems: list[Problem]) -> list[Problem]:
    return [p for p in problems if p.split is Split.HELD_OUT]


def test_every_reference_passes_its_test_which_sees_nothing_else_of_the_program(problems: list[Problem]) -> None:
    assert [p.task_id for p in problems] == [f"HumanEval/{i}" for i in range(164)]
    for problem in problems:
        program: dict[str, object] = {}
        exec(problem.reference, program)
        test: dict[str, object] = {}
        exec(problem.test, test)
        test["check"](program[problem.entry_point])  # type: ignore[operator]


def test_a_stub_fails_every_test(problems: list[Problem]) -> None:
    for problem in problems:
        test: dict[str, object] = {}
        exec(problem.test, test)
        with pytest.raises(Exception):  # noqa: B017 - tests index and compare what they get
            test["check"](lambda *a, **k: None)  # type: ignore[operator]


def test_a_changed_file_is_refused(tmp_path: Path, problems: list[Problem]) -> None:
    record = {"task_id": "HumanEval/0", "prompt": "", "entry_point": "f", "canonical_solution": "", "test": ""}
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(record).encode()))
    with pytest.raises(DataError, match="is not the official file's"):
        humaneval.build(humaneval.Config(path=str(tmp_path))).problems()


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"task_id": "HumanEval/0", "prompt": "def f(): ..."}\n')
    with pytest.raises(DataError, match="task HumanEval/0: field 'entry_point' is missing"):
        humaneval.build(humaneval.Config(path=str(tmp_path / "x.jsonl"), verify=False)).problems()


# --------------------------------------------------------------------------- categories


def test_the_four_categories_have_the_documented_sizes(problems: list[Problem]) -> None:
    assert Counter(p.category for p in problems) == CATEGORIES


@pytest.mark.parametrize(
    ("call", "body", "category"),
    [
        ("candidate('abc')", "return x", "string manipulation"),
        ("candidate(['a', 'b'], 2)", "return x", "string manipulation"),
        ("candidate(3, 4.5)", "while x: x -= 1", "arithmetic"),
        ("candidate([1, 2])", "return x[0]", "data structures"),
        ("candidate({'a': 1})", "return len(x)", "data structures"),
        ("candidate([1, 2])", "return sorted(x)", "algorithms"),
        ("candidate([1, 2])", "return f(x[1:])", "algorithms"),
        ("candidate([1, 2])", "for a in x:\n        for b in x: pass", "algorithms"),
        ("candidate([]); candidate(['a'])", "return x", "string manipulation"),
    ],
)
def test_the_category_rule(call: str, body: str, category: str) -> None:
    reference = f"def f(x, y=None):\n    {body}\n"
    assert _categories.categorise(reference=reference, entry_point="f", test=call) == category


# --------------------------------------------------------------------------- split


def test_the_default_split_is_the_registered_one(problems: list[Problem]) -> None:
    """Changing the rule changes what every published number was measured on: this must fail then."""
    ids = [p.task_id for p in held_out(splits.split(problems, held_out=25, seed=0))]
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] == "55e9318f4971baff"


def test_the_split_is_stratified_by_largest_remainder(problems: list[Problem]) -> None:
    for count in (20, 25, 30):
        chosen = held_out(splits.split(problems, held_out=count, seed=3))
        assert len(chosen) == count
        shares = Counter(p.category for p in chosen)
        for name, size in CATEGORIES.items():
            assert abs(shares[name] - count * size / 164) < 1.2, name


def test_the_same_seed_gives_the_same_split_and_another_seed_another(problems: list[Problem]) -> None:
    first = splits.split(problems, held_out=25, seed=1)
    assert splits.split(list(problems), held_out=25, seed=1) == first
    assert held_out(splits.split(problems, held_out=25, seed=2)) != held_out(first)
    shuffled = splits.split(problems[::-1], held_out=25, seed=1)
    assert {p.task_id for p in held_out(shuffled)} == {p.task_id for p in held_out(first)}


def test_no_held_out_task_has_a_near_relative_in_training(problems: list[Problem]) -> None:
    related = {problems[i].task_id for group in exclusion.relatives(problems) if len(group) > 1 for i in group}
    assert {"HumanEval/56", "HumanEval/61"} <= related  # the two correct_bracketing tasks
    for seed in range(20):
        assert not related & {p.task_id for p in held_out(splits.split(problems, held_out=25, seed=seed))}


@pytest.mark.parametrize("count", [-1, 164, 1000])
def test_an_impossible_split_is_refused(problems: list[Problem], count: int) -> None:
    with pytest.raises(ConfigError, match="cannot hold out"):
        splits.split(problems, held_out=count, seed=0)


def test_six_folds_hold_every_task_out_once_with_its_relatives(problems: list[Problem]) -> None:
    parts = splits.deal(problems, k=6, seed=0)
    assert sorted(t for part in parts for t in part) == sorted(p.task_id for p in problems)
    assert max(map(len, parts)) - min(map(len, parts)) <= 4
    of = {task: number for number, part in enumerate(parts) for task in part}
    for group in exclusion.relatives(problems):
        assert len({of[problems[i].task_id] for i in group}) == 1
    for name, size in CATEGORIES.items():
        counts = [sum(p.category == name and of[p.task_id] == k for p in problems) for k in range(6)]
        assert max(counts) - min(counts) <= 2, (name, size, counts)


def test_a_fold_marks_exactly_its_tasks(problems: list[Problem]) -> None:
    parts = splits.deal(problems, k=6, seed=0)
    marked = splits.hold_out_fold(problems, fold=2, folds=6, seed=0)
    assert [p.task_id for p in held_out(marked)] == [p.task_id for p in problems if p.task_id in set(parts[2])]


def test_a_benchmarks_own_evaluation_tasks_never_train(problems: list[Problem]) -> None:
    from dataclasses import replace

    own = [replace(p, split=Split.HELD_OUT if i < 40 else Split.TRAIN) for i, p in enumerate(problems)]
    marked = splits.split(own, held_out=10, seed=0)
    evaluation = {p.task_id for p in own[:40]}
    assert len(held_out(marked)) == 10
    assert {p.task_id for p in held_out(marked)} <= evaluation
    assert not evaluation & {p.task_id for p in marked if p.split is Split.TRAIN}
    assert splits.split(own, held_out=0, seed=0) == own
