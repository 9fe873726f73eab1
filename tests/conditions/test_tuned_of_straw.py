"""Which sets are fine-tuned, in which batches, and who wears which: the training is straw, the choosing real."""

from __future__ import annotations

import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rune.adapters.factors import Factors
from rune.conditions import _tuned, tuned, tuned_mean, tuned_wrong
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.errors import DataError
from rune.types import AdapterRef, Attempt, Hit, ModelRef, Outcome, Problem, Trajectory, Treatment


def trajectory(name: str, solution: str = "") -> Trajectory:
    solution = "" if solution == "none" else solution or f"solution {name}"
    outcome = Outcome.PASSED if solution else Outcome.FAILED
    return Trajectory(
        trajectory_id=name, task_id=f"task {name}", benchmark="t", prompt=f"Do {name}.",
        attempts=(Attempt(code=solution, outcome=outcome),), solution=solution,
    )  # fmt: skip


def inputs(hits: dict[str, Sequence[Trajectory]], kept: list[Any] | None = None, **changes: Any) -> ArmInputs:
    def keep(arm: str, key: str, factors: Any, layout: Any) -> AdapterRef:
        if kept is not None:
            kept.append((arm, key, factors, layout))
        return AdapterRef(adapter_id=f"{arm} {key}", base_model="d", rank=1, delta_w_norm=1.0)

    given: dict[str, Any] = {
        "model": ModelRef(name="m", path="/m", digest="d", source="local"), "device": "cpu", "dtype": "float32",
        "seed": 4, "trajectories": (), "checkpoints": Path("c"), "keep": keep, "adapters": Path("a"),
        "hits": {t: tuple(Hit(trajectory=x, snippet="", score=1.0) for x in found) for t, found in hits.items()},
    }  # fmt: skip
    return ArmInputs(**{**given, **changes})


A, B, C, D = (trajectory(n) for n in "abcd")
SAME = trajectory("same", "solution a")  # of another task, and of A's words


class Hooks:
    removed = 0  # of all bases

    def remove(self) -> None:
        Hooks.removed += 1


class Base:
    def __init__(self) -> None:
        self.hooks = Hooks()

    def encode(self, prompt: str, solution: str, *, answer: Any) -> Any:
        return types.SimpleNamespace(ids=list(range(len(solution))), of=(prompt, solution, answer))

    def layout(self, modules: Any) -> str:
        return "layout"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was trained, batch by batch; the n-th LoRA of a process holds the number n."""
    from rune.hypernet import base as bases
    from rune.hypernet import side_by_side

    _tuned._train.cache_clear()
    Hooks.removed = 0
    heard: list[Any] = []
    made = [0]

    def train(base: Base, lessons: Sequence[Any], schedule: Any, **how: Any) -> Any:
        heard.append(([(one.name, [t.of for t in one.texts]) for one in lessons], schedule, how))
        numbers = torch.arange(made[0], made[0] + len(lessons)).float().view(1, -1, 1, 1)
        made[0] += len(lessons)
        return {"q": Factors(numbers, -numbers)}, [[9.0], [1.0] * len(lessons)]

    base = Base()
    monkeypatch.setattr(bases, "load", lambda model, device, dtype: heard.append((model.name, device, dtype)) or base)
    monkeypatch.setattr(side_by_side, "Lesson", lambda name, texts: types.SimpleNamespace(name=name, texts=texts))
    monkeypatch.setattr(side_by_side, "train", train)
    return heard


def numbers(found: _tuned.Tuned) -> dict[tuple[str, ...], tuple[float, float]]:
    return {k: (float(f["q"].down_YNRI.squeeze()), float(f["q"].up_YNRO.squeeze())) for k, f in found.by_set.items()}


def test_each_set_is_trained_once_in_batches_of_so_many(trained: list[Any]) -> None:
    arm_inputs = inputs({"T/1": [B], "T/2": [A, C], "T/3": [B], "T/4": [D]})
    how = tuned.Config(rank=3, alpha=6.0, steps=7, learning_rate=0.25, rows=2, together=2, max_tokens=50)
    found = _tuned.made(how, arm_inputs)
    assert numbers(found) == {("a", "c"): (0.0, 0.0), ("b",): (1.0, -1.0), ("d",): (2.0, -2.0)}
    assert found.layout == "layout"  # type: ignore[comparison-overlap]
    assert Hooks.removed == 1  # nothing is left on a model that others use
    text = {t.trajectory_id: (t.prompt, t.solution, t.answer) for t in (A, B, C, D)}
    assert trained[0] == ("m", "cpu", "float32")
    assert [lessons for lessons, _, _ in trained[1:]] == [
        [("a c", [text["a"], text["c"]]), ("b", [text["b"]])], [("d", [text["d"]])],
    ]  # fmt: skip
    for _, schedule, asked in trained[1:]:
        assert (schedule.steps, schedule.learning_rate, schedule.checkpoint_every) == (7, 0.25, 7)
        assert asked == {"rank": 3, "alpha": 6.0, "rows": 2, "seed": 4}


def test_arms_of_one_process_share_what_was_made_of_the_same(trained: list[Any]) -> None:
    hits = {"T/1": [A], "T/2": [B]}
    one = _tuned.made(tuned.Config(), inputs(hits))
    assert _tuned.made(tuned.Config(), inputs(hits, adapters=Path("elsewhere"))) is one and len(trained) == 2
    for changes in (
        {"seed": 5}, {"dtype": "bfloat16"}, {"device": "meta"},
        {"model": ModelRef(name="m", path="/m", digest="e", source="local")},
    ):  # fmt: skip
        assert _tuned.made(tuned.Config(), inputs(hits, **changes)) is not one  # type: ignore[arg-type]
    assert _tuned.made(tuned.Config(rank=4), inputs(hits)) is not one
    assert _tuned._Base(inputs(hits)) != "no base" and _tuned._Base(inputs(hits)) == _tuned._Base(inputs({}))


def test_what_is_not_solved_or_too_long_teaches_nothing(trained: list[Any]) -> None:
    failed, long = trajectory("failed", "none"), trajectory("long", "x" * 21)
    _tuned.made(tuned.Config(max_tokens=20), inputs({"T/1": [failed, A, long]}))
    ((name, texts),) = trained[1][0]
    assert name == "failed a long" and [t[1] for t in texts] == ["solution a"]
    for nothing in ([failed], [long], [failed, long]):
        with pytest.raises(DataError, match=r"none of the trajectories (failed|long|failed, long) has .* at most 20 t"):
            _tuned.made(tuned.Config(max_tokens=20), inputs({"T/1": nothing}))
    _tuned.made(tuned.Config(max_tokens=21), inputs({"T/1": [long]}))


def test_a_task_that_is_given_nothing_cannot_be_tuned_for() -> None:
    with pytest.raises(DataError, match="T/2: no trajectory is retrieved for it, so nothing can be fine-tuned"):
        _tuned.sets(inputs({"T/1": [A], "T/2": []}))
    assert _tuned.sets(inputs({"T/2": [B, A], "T/1": [A, B], "T/3": [A, B]})) == {
        ("a", "b"): (A, B),
        ("b", "a"): (B, A),
    }


@pytest.mark.parametrize("seed", range(6))
def test_the_wrong_set_is_another_domains_and_shares_no_solution(seed: int) -> None:
    hits = {"T/1": [A], "T/2": [B, C], "T/3": [A], "T/4": [SAME], "T/5": [D]}
    found = _tuned.others(inputs(hits, seed=seed))
    assert set(found) == set(hits) and found["T/1"] == found["T/3"]
    for task, given in hits.items():
        assert not {t.solution for t in given} & {t.solution for t in found[task]}
        assert list(found[task]) in ([A], [B, C], [SAME], [D]) and list(found[task]) != list(given)
    again = _tuned.others(inputs(dict(reversed(hits.items())), seed=seed))
    assert again == found  # whatever order they come in


def test_the_wrong_set_is_the_next_one_in_a_circle_of_the_seed() -> None:
    hits = {f"T/{n}": [t] for n, t in enumerate((A, B, C, D))}
    circles = set()
    for seed in range(12):
        found = _tuned.others(inputs(hits, seed=seed))
        wears = {hits[t][0].trajectory_id: some[0].trajectory_id for t, some in found.items()}
        assert sorted(wears.values()) == list("abcd")
        at, path = "a", ""
        for _ in range(4):
            path, at = path + at, wears[at]
        assert at == "a" and len(set(path)) == 4  # one circle over all
        circles.add(path)
    assert len(circles) > 1


def test_without_a_foreign_set_there_is_no_wrong_one() -> None:
    for hits in ({"T/1": [A]}, {"T/1": [A], "T/2": [SAME]}):
        with pytest.raises(
            DataError, match=r"tuned_wrong: no other task is given anything but (a|same); hold out more"
        ):
            _tuned.others(inputs(hits))


@pytest.mark.parametrize("arm", [tuned, tuned_wrong])
def test_every_task_wears_the_lora_of_its_set_kept_once(trained: list[Any], arm: Any) -> None:
    kept: list[Any] = []
    arm_inputs = inputs({"T/1": [A], "T/2": [B, C], "T/3": [A]}, kept)
    done: list[Treatment] = []
    problems = [Problem(task_id=t, benchmark="t", prompt="", entry_point="f", test="") for t in ("T/3", "T/2", "T/1")]
    arm.build(arm.Config(), arm_inputs).treat(problems, done.append)
    own = {"T/1": ("a",), "T/2": ("b", "c"), "T/3": ("a",)}
    other = {"T/1": ("b", "c"), "T/2": ("a",), "T/3": ("b", "c")}
    wears, name = (own, "tuned") if arm is tuned else (other, "tuned_wrong")
    assert [(t.task_id, t.condition, t.trajectory_ids) for t in done] == [
        (p.task_id, name, wears[p.task_id]) for p in problems
    ]
    assert done[0].adapter == done[2].adapter != done[1].adapter and len(kept) == 2
    number = {("a",): 0.0, ("b", "c"): 1.0}
    for condition, key, factors, layout in kept:
        (set_of,) = {wears[t.task_id] for t in done if t.adapter and t.adapter.adapter_id == f"{condition} {key}"}
        assert float(factors["q"].down_YNRI.squeeze()) == number[set_of] and layout == "layout"


def test_the_mean_is_of_all_loras_and_of_its_own_rank(trained: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(
        tuned_mean._adapters, "mean", lambda *given, rank: heard.append((given[1], sorted(given[2]), given[3], rank))
    )
    arm_inputs = inputs({"T/1": [A], "T/2": [B, C]})
    problem = Problem(task_id="T/1", benchmark="t", prompt="", entry_point="f", test="")
    for settings, rank in (({}, 32), ({"mean_rank": 5, "rank": 3, "steps": 7}, 5)):
        arm = tuned_mean.build(tuned_mean.Config(**settings), arm_inputs)
        arm.treat([], lambda _: None)
        assert heard == [] and not [one for one in trained if len(one) == 3 and isinstance(one[2], dict)]
        arm.treat([problem], lambda _: None)
        assert heard == [("tuned_mean", [("a",), ("b", "c")], "layout", rank)]
        (batch,) = (one for one in trained if isinstance(one[2], dict))
        assert batch[1].steps == settings.get("steps", 40) and batch[2]["rank"] == settings.get("rank", 8)
        heard.clear()
        trained.clear()
    with pytest.raises(ValueError, match="rank, steps, rows, together and max_tokens must be at least 1"):
        tuned_mean.Config(steps=0)


@pytest.mark.parametrize("name", ["rank", "steps", "rows", "together", "max_tokens"])
def test_a_training_of_nothing_is_refused(name: str) -> None:
    assert getattr(tuned.Config(**{name: 1}), name) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be at least 1, and alpha above 0"):
        tuned.Config(**{name: 0})  # type: ignore[arg-type]
    assert tuned.Config(alpha=1e-9).alpha == 1e-9
    with pytest.raises(ValueError, match="alpha above 0"):
        tuned.Config(alpha=0.0)
