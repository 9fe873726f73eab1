"""tuned and its controls: one LoRA a set of trajectories, trained beside others as if alone; another's; the mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rune.adapters.factors import Factors
from rune.adapters.folders import Folders
from rune.adapters.peft import Adapter, read_peft, stack
from rune.benchmarks import families
from rune.conditions import _tuned
from rune.errors import DataError
from rune.hypernet import base as bases
from rune.hypernet import side_by_side
from rune.hypernet.settings import Schedule
from rune.types import ModelRef, Trajectory, Treatment
from tests.conditions.test_bounds import make_arm_inputs, treat, weights

STEPS = {"steps": 3, "rank": 2, "alpha": 4.0, "rows": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def lessons() -> list[Trajectory]:
    return families.trajectories(families.generate(families.Config(families=3, held_out=0, tasks=2, seed=3)), None)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    _tuned._train.cache_clear()


def read(folder: Path, treatment: Treatment) -> Adapter:
    assert treatment.adapter is not None
    return read_peft(Folders(folder / "adapters").folder(treatment.adapter))


def test_tasks_that_are_given_the_same_wear_the_same_lora_which_others_in_its_batch_do_not_change(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    a, b, c, *_ = lessons
    hits = {"T/1": [a], "T/2": [a], "T/3": [b, c]}
    together = treat("tuned", make_arm_inputs(tmp_path / "all", tiny_model, lessons, hits), **STEPS)
    assert weights(together["T/1"]) == weights(together["T/2"]) != weights(together["T/3"])
    assert together["T/3"].trajectory_ids == (b.trajectory_id, c.trajectory_id)
    apart = treat("tuned", make_arm_inputs(tmp_path / "apart", tiny_model, lessons, hits), **{**STEPS, "together": 1})
    for task in hits:  # the batch is padded otherwise, so equal up to rounding
        one, other = read(tmp_path / "all", together[task]), read(tmp_path / "apart", apart[task])
        assert all(torch.allclose(one.pairs[n].b, other.pairs[n].b, atol=2e-4) for n in one.pairs)
        assert any(one.pairs[n].b.abs().max() > 1e-3 for n in one.pairs)
    seed = treat("tuned", make_arm_inputs(tmp_path / "seed", tiny_model, lessons, hits, seed=1), **STEPS)
    assert weights(seed["T/1"]) != weights(together["T/1"])


def test_it_learns_its_own_solution_and_every_setting_reaches_the_training(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    hits = {"T/1": lessons[:1], "T/2": lessons[2:3]}
    found = treat("tuned", make_arm_inputs(tmp_path, tiny_model, lessons, hits), **{**STEPS, "steps": 25})
    base = bases.load(tiny_model, device="cpu", dtype="float32")

    def log_prob(solution: Trajectory, worn: Treatment) -> float:
        rows = base.rows([base.encode(solution.prompt, solution.solution)])
        with torch.no_grad():
            return float(base.log_prob(rows, stack([read(tmp_path, worn)])).mean())

    for task, foreign in (("T/1", "T/2"), ("T/2", "T/1")):
        assert log_prob(hits[task][0], found[task]) > log_prob(hits[task][0], found[foreign]) + 0.02
    made = {
        weights(treat("tuned", make_arm_inputs(tmp_path / str(i), tiny_model, lessons, hits), **STEPS | change)["T/1"])
        for i, change in enumerate(
            [{}, {"steps": 4}, {"rank": 3}, {"alpha": 8.0}, {"learning_rate": 2e-2}, {"rows": 1}]
        )
    }
    assert len(made) == 6
    with pytest.raises(DataError, match="has a solution of at most 5 tokens; raise max_tokens"):
        treat("tuned", make_arm_inputs(tmp_path / "short", tiny_model, lessons, hits), **STEPS, max_tokens=5)
    with pytest.raises(ValueError, match="must be at least 1, and alpha above 0"):
        _tuned.Config(together=0)


def test_the_wrong_one_is_a_lora_of_the_tuned_arm_that_shares_no_solution_with_the_task(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    a, b, c, d, *_ = lessons
    hits = {"T/1": [a], "T/2": [a], "T/3": [b], "T/4": [a, b], "T/5": [c], "T/6": [d]}
    arm_inputs = make_arm_inputs(tmp_path, tiny_model, lessons, hits)
    own, wrong = treat("tuned", arm_inputs, **STEPS), treat("tuned_wrong", arm_inputs, **STEPS)
    assert {weights(t) for t in wrong.values()} <= {weights(t) for t in own.values()}
    solution = {t.trajectory_id: t.solution for t in lessons}
    for task, treatment in wrong.items():
        assert not {solution[i] for i in treatment.trajectory_ids} & {t.solution for t in hits[task]}
    assert weights(wrong["T/1"]) == weights(wrong["T/2"])
    assert _tuned.others(arm_inputs) == _tuned.others(arm_inputs)
    alone = make_arm_inputs(tmp_path / "alone", tiny_model, lessons, {"T/1": [a], "T/2": [a]})
    with pytest.raises(DataError, match="no other task is given anything but"):
        treat("tuned_wrong", alone, **STEPS)
    nothing = make_arm_inputs(tmp_path / "nothing", tiny_model, lessons, {"T/1": []})
    with pytest.raises(DataError, match="T/1: no trajectory is retrieved for it"):
        treat("tuned", nothing, **STEPS)


def test_the_mean_is_the_mean_of_their_delta_w_for_every_task(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    hits = {"T/1": lessons[:1], "T/2": lessons[2:3], "T/3": lessons[4:5]}
    arm_inputs = make_arm_inputs(tmp_path, tiny_model, lessons, hits)
    own = treat("tuned", arm_inputs, **STEPS)
    mean = treat("tuned_mean", arm_inputs, **STEPS, mean_rank=6)  # of three LoRAs of rank 2: nothing is cut
    assert len({weights(t) for t in mean.values()}) == 1
    every, one = [read(tmp_path, t) for t in own.values()], read(tmp_path, mean["T/1"])
    for name, pair in one.pairs.items():
        expected = sum(a.scale * a.pairs[name].a @ a.pairs[name].b for a in every) / len(every)
        assert torch.allclose(one.scale * pair.a @ pair.b, torch.as_tensor(expected), atol=1e-5)
    smaller = treat("tuned_mean", make_arm_inputs(tmp_path / "r", tiny_model, lessons, hits), **STEPS, mean_rank=3)
    assert smaller["T/1"].adapter is not None and smaller["T/1"].adapter.rank == 3


def test_losses_fall_for_every_lora_of_a_batch(tiny_model: ModelRef, lessons: list[Trajectory]) -> None:
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    some = [side_by_side.Lesson(t.trajectory_id, (base.encode(t.prompt, t.solution),)) for t in lessons[:3]]
    schedule = Schedule(steps=20, learning_rate=1e-2, checkpoint_every=20)
    made, curve = side_by_side.train(base, some, schedule, rank=2, alpha=4.0, rows=1, seed=0)
    assert len(curve) == 20 and all(last < first - 0.1 for first, last in zip(curve[0], curve[-1], strict=True))
    assert {f.down_YNRI.shape[1] for f in made.values()} == {3}


def test_a_common_start_is_common_and_what_is_worn_below_stays_and_is_part_of_the_result(
    tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    some = [side_by_side.Lesson(t.trajectory_id, (base.encode(t.prompt, t.solution),)) for t in lessons[:2]]
    schedule = Schedule(steps=1, learning_rate=1e-9)  # stays where it starts

    def made(**settings: Any) -> tuple[dict[str, Factors], list[list[float]]]:
        return side_by_side.train(base, some, schedule, rank=2, alpha=4.0, rows=1, seed=0, **settings)

    own, common = made()[0]["q_proj"].down_YNRI, made(start="common")[0]["q_proj"].down_YNRI
    assert not torch.allclose(own[:, 0], own[:, 1], atol=1e-3)
    assert torch.allclose(common[:, 0], common[:, 1], atol=1e-6)
    size = base.layout(("down_proj",)).sizes["down_proj"]
    below = {"down_proj": Factors(torch.randn(2, 2, 3, size.inputs), torch.randn(2, 2, 3, size.outputs))}
    both, curve = made(under=below)
    assert torch.equal(both["down_proj"].down_YNRI[:, :, :3], below["down_proj"].down_YNRI)
    assert (both["down_proj"].down_YNRI.shape[2], both["q_proj"].down_YNRI.shape[2]) == (5, 2)
    worn = [float(-base.log_prob(base.rows(t.texts), {m: Factors(*(x[:, n : n + 1] for x in f)) for m, f in
            below.items()}).mean()) for n, t in enumerate(some)]  # fmt: skip
    assert curve[0] == pytest.approx(worn, rel=1e-4)  # learned from where they leave the model
