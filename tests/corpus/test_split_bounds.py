"""How many tasks, domains or folds can be held out: the last number that is taken, and the first that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rune.corpus import splits
from rune.errors import ConfigError
from rune.types import Problem, Split

WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima"]


def task(number: int, name: str = "", split: Split = Split.TRAIN) -> Problem:
    """Tasks of no near relative: other words, and a body of its own."""
    word = name or WORDS[number]
    lines = "\n".join(f"    {word}{i} = {word} {'+-*'[(number + i) % 3]} {i}" for i in range(3 + number))
    return Problem(
        task_id=f"T/{number}", benchmark="t", prompt=" ".join(f"{word}{i}" for i in range(20)), entry_point=word,
        test="", reference=f"def {word}({word}):\n{lines}\n    return {word}0\n", split=split, domain=f"d{number % 4}",
        category="ab"[number % 2],
    )  # fmt: skip


TASKS = [task(i) for i in range(8)]
MARKED = [replace(p, split=Split.HELD_OUT) if i in (1, 2, 5) else p for i, p in enumerate(TASKS)]


def held_out(problems: list[Problem]) -> list[str]:
    return [p.task_id for p in problems if p.split is Split.HELD_OUT]


def test_all_but_one_task_may_be_held_out() -> None:
    for count in (1, 4, 7):
        found = splits.split(TASKS, held_out=count, seed=0)
        assert len(held_out(found)) == count and [p.task_id for p in found] == [p.task_id for p in TASKS]
    for count in (-1, 8, 9):
        with pytest.raises(ConfigError, match=rf"cannot hold out {count} of 8 tasks \(8 have no near relative"):
            splits.split(TASKS, held_out=count, seed=0)
    assert splits.split(TASKS, held_out=0, seed=0) == TASKS


def test_of_tasks_that_the_benchmark_marks_as_many_as_there_are_and_the_others_are_left_out() -> None:
    assert splits.split(MARKED, held_out=0, seed=0) == MARKED
    for count in (1, 2, 3):
        found = splits.split(MARKED, held_out=count, seed=0)
        assert len(held_out(found)) == count and set(held_out(found)) <= {"T/1", "T/2", "T/5"}
        assert len(found) == 5 + count
    with pytest.raises(ConfigError, match="cannot hold out 4 of 8 tasks"):
        splits.split(MARKED, held_out=4, seed=0)
    alone = [replace(p, split=Split.HELD_OUT) for p in TASKS]
    assert len(held_out(splits.split(alone, held_out=8, seed=0))) == 8


def test_domains_are_held_out_whole() -> None:
    for count in (1, 2, 3):
        found = splits.split(TASKS, held_out=count, seed=0, by="domain")
        assert len(found) == 8 and len(held_out(found)) == 2 * count
        assert len({p.domain for p in found if p.split is Split.HELD_OUT}) == count
    with pytest.raises(ConfigError, match="cannot hold out 4 of 4 domains; give 1 to 3"):
        splits.split(TASKS, held_out=4, seed=0, by="domain")
    some = splits.split(MARKED, held_out=1, seed=0, by="domain")
    (domain,) = {p.domain for p in some if p.split is Split.HELD_OUT}
    assert domain in ("d1", "d2") and all(p.split is Split.TRAIN or p.domain == domain for p in some)
    assert len(held_out(splits.split(MARKED, held_out=2, seed=0, by="domain"))) == 4 - 1 + 1
    assert splits.split(MARKED, held_out=0, seed=0, by="domain") == MARKED


@pytest.mark.parametrize("folds", [2, 3, 8])
def test_every_task_is_in_one_fold_and_there_are_no_others(folds: int) -> None:
    each = [held_out(splits.hold_out_fold(TASKS, fold=f, folds=folds, seed=1)) for f in range(folds)]
    assert sorted(t for found in each for t in found) == [p.task_id for p in TASKS]
    assert max(map(len, each)) - min(map(len, each)) <= 1
    for fold in (-1, folds, folds + 1):
        with pytest.raises(ConfigError, match=rf"fold must be 0 to {folds - 1}, found {fold}"):
            splits.hold_out_fold(TASKS, fold=fold, folds=folds, seed=1)
