"""The wrong trajectory: another task's set, nothing of the same lesson in it, drawn once from the run's seed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rune.conditions import _adapters
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.errors import DataError
from rune.types import Hit, ModelRef, Trajectory
from tests.conditions.keep import no_adapters


def tried(name: str, task: str, *, domain: str = "", solved: bool = True) -> Trajectory:
    return Trajectory(
        trajectory_id=name, task_id=task, benchmark="t", prompt=name, attempts=(), solution="x" if solved else "",
        domain=domain,
    )  # fmt: skip


def arm_inputs(
    own: Mapping[str, Sequence[Trajectory]], corpus: Sequence[Trajectory] | None = None, *, seed: int = 0
) -> ArmInputs:
    found = corpus if corpus is not None else list(dict.fromkeys(itertools.chain.from_iterable(own.values())))
    return ArmInputs(
        model=ModelRef(name="none", path="", digest="", source="local"),
        device="cpu",
        dtype="float32",
        seed=seed,
        trajectories=tuple(found),
        hits={task: tuple(Hit(trajectory=t, snippet="", score=1.0) for t in some) for task, some in own.items()},
        checkpoints=Path(),
        keep=no_adapters,
        adapters=Path(),
    )


def lessons(some: Sequence[Trajectory]) -> set[str]:
    return {t.domain or t.task_id for t in some}


@pytest.mark.parametrize("seed", range(10))
def test_siblings_with_ids_of_their_own_are_of_the_same_family(seed: int) -> None:
    """Two tasks a family, each given its siblings: no id is in two sets, but the lesson is."""
    own = {
        f"{family}/{i}": [tried(f"{family}{i}{j}", f"{family}/s{i}{j}", domain=family) for j in range(2)]
        for family in "abc"
        for i in range(2)
    }
    for task, wrong in _adapters.permuted(arm_inputs(own, seed=seed)).items():
        assert not lessons(wrong) & lessons(own[task]) and len(wrong) == 2


@pytest.mark.parametrize("seed", range(10))
def test_two_tries_at_one_training_task_are_the_same_lesson(seed: int) -> None:
    """`keep_per_task = 2`: each held-out task has one try of its neighbour, its twin has the other."""
    own = {f"T/{n}{i}": [tried(f"{n}{i}", f"train/{n}")] for n in range(3) for i in range(2)}
    for task, wrong in _adapters.permuted(arm_inputs(own, seed=seed)).items():
        assert lessons(wrong) and not lessons(wrong) & lessons(own[task])


def test_a_training_task_under_another_benchmarks_name_is_the_same_lesson() -> None:
    own = {"T/1": [tried("a", "HumanEval/3")], "T/2": [tried("b", "Python/3")], "T/3": [tried("c", "HumanEval/4")]}
    for seed in range(10):
        wrong = _adapters.permuted(arm_inputs(own, seed=seed))
        assert wrong["T/1"][0].trajectory_id == wrong["T/2"][0].trajectory_id == "c"


@pytest.mark.parametrize("seed", range(5))
def test_one_common_lesson_of_two_is_enough_to_refuse_a_set(seed: int) -> None:
    shared = tried("shared", "train/0")
    own = {
        f"T/{i}": [shared if i < 3 else tried(f"x{i}", f"train/x{i}"), tried(f"y{i}", f"train/y{i}")] for i in range(9)
    }
    for task, wrong in _adapters.permuted(arm_inputs(own, seed=seed)).items():
        assert not lessons(wrong) & lessons(own[task]), task


def test_where_all_are_strangers_it_is_a_permutation_of_whole_sets() -> None:
    own = {f"T/{i}": [tried(f"{i}{j}", f"train/{i}{j}") for j in range(2)] for i in range(20)}
    wrong = _adapters.permuted(arm_inputs(own))
    assert set(wrong) == set(own)
    sets = {tuple(some) for some in own.values()}
    given = list(wrong.values())
    assert set(given) <= sets and len(set(given)) >= len(own) - 1
    assert all(wrong[task] != tuple(own[task]) for task in own)


def test_it_is_drawn_for_all_tasks_at_once_from_the_runs_seed() -> None:
    own = {f"T/{i}": [tried(f"{i}", f"train/{i}")] for i in range(12)}
    corpus = [one for (one,) in own.values()]
    first = _adapters.permuted(arm_inputs(own, corpus))
    assert first == _adapters.permuted(arm_inputs(dict(reversed(own.items())), corpus))  # in whatever order they come
    assert first != _adapters.permuted(arm_inputs(own, corpus, seed=1))


@pytest.mark.parametrize("seed", range(5))
def test_a_near_one_is_a_stranger_of_the_tasks_own_category_where_there_is_one(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(domain: str, category: str, number: int) -> Trajectory:
        one = tried(f"{domain}{number}", f"train/{domain}{number}")
        return dataclasses.replace(one, domain=domain, category=category)

    places = {
        "numpy.a": "numpy",
        "numpy.b": "numpy",
        "math.a": "math",
        "math.b": "math",
        "math.c": "math",
        "re.a": "re",
    }
    own = {f"T/{d}/{n}": [of(d, c, n)] for d, c in places.items() for n in range(3)}
    wrong = _adapters.permuted(arm_inputs(own, seed=seed), near=True)
    for task, (given,) in wrong.items():
        (mine,) = own[task]
        assert given.domain != mine.domain, task
        assert given.category == mine.category or mine.category == "re", task
    assert {one.domain for task, (one,) in wrong.items() if task.startswith("T/math.a")} <= {"math.b", "math.c"}
    far = _adapters.permuted(arm_inputs(own, seed=seed))
    assert any(one.category != own[task][0].category for task, (one,) in far.items())
    plain = {f"T/{n}": [tried(f"{n}", f"train/{n}")] for n in range(9)}  # without categories nothing is near
    capsys.readouterr()
    assert _adapters.permuted(arm_inputs(plain, seed=seed), near=True) == _adapters.permuted(
        arm_inputs(plain, seed=seed)
    )
    assert "near = true, and 9 of 9 tasks have no other's trajectories of their category" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 2])
def test_a_task_that_no_other_set_suits_gets_as_many_solved_strangers_of_the_corpus(size: int) -> None:
    mine = [tried("a1", "train/a"), tried("b1", "train/b")][:size]
    alike = [tried("a2", "train/a"), tried("b2", "train/b")][:size]
    strangers = [tried(f"s{i}", f"train/s{i}") for i in range(3)]
    corpus = [*mine, *alike, *strangers, tried("lost", "train/l", solved=False)]
    for seed in range(10):
        for wrong in _adapters.permuted(arm_inputs({"T/1": mine, "T/2": alike}, corpus, seed=seed)).values():
            assert len(wrong) == len(set(wrong)) == size and set(wrong) <= set(strangers)


def test_a_corpus_of_one_lesson_is_refused() -> None:
    only = [tried("a1", "train/a"), tried("a2", "train/a")]
    with pytest.raises(DataError, match="every trajectory of the corpus belongs to T/1; collect more tasks"):
        _adapters.permuted(arm_inputs({"T/1": only[:1], "T/2": only[1:]}, only))


def test_a_lesson_is_a_family_or_else_a_task() -> None:
    one = tried("a", "HumanEvalFix/7")
    assert _adapters.domain_key(one) == _adapters.domain_key(tried("b", "HumanEval/7"))
    assert _adapters.domain_key(dataclasses.replace(one, domain="f")) == "f"


@pytest.mark.parametrize("seed", range(10))
def test_a_composition_is_no_stranger_to_its_functions(seed: int) -> None:
    """It is a domain of its own and is given the trajectories of both under that domain's name."""
    own = {name: [tried(name, f"def/{name}", domain=name)] for name in "fghk"}
    own["f.g"] = [tried(f"f.g {name}", f"def/{name}", domain="f.g") for name in "fg"]
    for task, wrong in _adapters.permuted(arm_inputs(own, seed=seed)).items():
        assert not {t.task_id for t in wrong} & {t.task_id for t in own[task]}
