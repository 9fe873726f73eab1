"""teacher and oracle, the two bounds: both know exactly what was retrieved for the task, all of it and nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rune import plugins, prompts
from rune.adapters.folders import Folders
from rune.adapters.peft import read_peft, stack
from rune.adapters.store import FolderStore
from rune.benchmarks import families
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.errors import DataError
from rune.hypernet import base as bases
from rune.runs import store
from rune.types import Attempt, Hit, ModelRef, Outcome, Problem, Trajectory, Treatment

STEPS = {"steps": 3, "rank": 2, "alpha": 4.0, "rows": 2, "learning_rate": 1e-2}


def trajectory(name: str, failures: int = 3) -> Trajectory:
    failed = [
        Attempt(code=f"{name}_code_{i}", outcome=Outcome.FAILED, error_kind="WrongAnswer", error=f"{name}_error_{i}")
        for i in range(failures)
    ]
    solution = f"{name}_solution"
    return Trajectory(
        trajectory_id=name,
        task_id=f"train/{name}",
        benchmark="test",
        prompt=f"{name}_prompt",
        attempts=(*failed, Attempt(code=solution, outcome=Outcome.PASSED)),
        solution=solution,
    )


def make_arm_inputs(
    folder: Path, model: ModelRef, corpus: Sequence[Trajectory], hits: dict[str, Sequence[Trajectory]], seed: int = 0
) -> ArmInputs:
    """Snippets are of no use to these two arms: they say so themselves."""
    return ArmInputs(
        model=model,
        device="cpu",
        dtype="float32",
        seed=seed,
        trajectories=tuple(corpus),
        hits={
            task: tuple(Hit(trajectory=t, snippet="a snippet", score=1.0) for t in found)
            for task, found in hits.items()
        },
        checkpoints=folder,
        keep=FolderStore(folder / "adapters", model, dtype="float32").put,
        adapters=folder / "adapters",
    )


def treat(name: str, arm_inputs: ArmInputs, tasks: Sequence[str] = (), **settings: object) -> dict[str, Treatment]:
    module = plugins.load("conditions", name)
    done: list[Treatment] = []
    problems = [
        Problem(task_id=task, benchmark="test", prompt="p", entry_point="f", test="def check(c): pass")
        for task in tasks or arm_inputs.hits
    ]
    module.build(module.Config(**settings), arm_inputs).treat(problems, done.append)
    assert [t.task_id for t in done] == [p.task_id for p in problems]
    assert {t.condition for t in done} <= {name}
    return {t.task_id: t for t in done}


# --------------------------------------------------------------------------- teacher


def test_the_teacher_shows_every_retrieved_trajectory_in_their_order_and_names_them(tmp_path: Path) -> None:
    a, b, c = trajectory("a"), trajectory("b"), trajectory("c")
    model = ModelRef(name="none", path="", digest="", source="local")
    arm_inputs = make_arm_inputs(tmp_path, model, [a, b, c], {"T/1": (b, a), "T/2": (c,), "T/3": ()})
    found = treat("teacher", arm_inputs)
    assert found["T/1"].context == "\n\n".join(prompts.render_trajectory(t) for t in (b, a))
    assert found["T/2"].context == prompts.render_trajectory(c)
    assert found["T/3"].context == ""
    assert [found[t].trajectory_ids for t in ("T/1", "T/2", "T/3")] == [("b", "a"), ("c",), ()]
    assert all(t.adapter is None for t in found.values())


@pytest.mark.parametrize("most", [1, 2, 3, 9])
def test_the_teacher_shows_the_last_failures_as_many_as_it_may_with_task_errors_and_solution(
    tmp_path: Path, most: int
) -> None:
    model = ModelRef(name="none", path="", digest="", source="local")
    shown = trajectory("a"), trajectory("b")
    arm_inputs = make_arm_inputs(tmp_path, model, shown, {"T/1": shown})
    context = treat("teacher", arm_inputs, max_attempts=most)["T/1"].context
    for name, i in itertools.product(("a", "b"), range(3)):
        seen = i >= 3 - most
        assert (f"{name}_code_{i}\n" in context) is seen and (f"{name}_error_{i}\n" in context) is seen
    for name, part in itertools.product(("a", "b"), ("prompt", "solution")):
        assert context.count(f"{name}_{part}\n") == 1
    assert "a snippet" not in context


# --------------------------------------------------------------------------- oracle


@pytest.fixture(scope="module")
def lessons() -> list[Trajectory]:
    problems = families.generate(families.Config(families=3, held_out=0, tasks=2, seed=3))
    return families.trajectories(problems, None)


def weights(treatment: Treatment) -> str:
    """Adapter ids are content hashes: equal ids are equal weights."""
    assert treatment.adapter is not None
    return treatment.adapter.adapter_id


def test_the_oracle_of_a_task_is_trained_on_what_was_retrieved_for_it_and_nothing_else(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    """More corpus changes nothing; another retrieved trajectory changes the weights; the record names the set."""
    a, b, c, *_ = lessons

    def oracle(name: str, corpus: Sequence[Trajectory], hits: Sequence[Trajectory]) -> Treatment:
        arm_inputs = make_arm_inputs(tmp_path / name, tiny_model, corpus, {"T/1": hits})
        return treat("oracle", arm_inputs, **STEPS)["T/1"]

    small, large = oracle("small", [a, b], [a]), oracle("large", lessons, [a])
    assert weights(small) == weights(large)
    assert small.trajectory_ids == (a.trajectory_id,)
    other, pair = oracle("other", lessons, [c]), oracle("pair", lessons, [a, b])
    assert len({weights(t) for t in (small, other, pair)}) == 3
    assert pair.trajectory_ids == (a.trajectory_id, b.trajectory_id)
    assert small.context == ""


def test_an_oracles_adapter_depends_on_task_and_seed_not_on_what_was_treated_before(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    hits = {"T/1": lessons[:2], "T/2": lessons[2:4], "T/3": lessons[:2]}
    together = treat("oracle", make_arm_inputs(tmp_path / "all", tiny_model, lessons, hits), **STEPS)
    alone = treat("oracle", make_arm_inputs(tmp_path / "one", tiny_model, lessons, hits), ["T/2"], **STEPS)
    assert weights(together["T/2"]) == weights(alone["T/2"])
    assert weights(together["T/1"]) != weights(together["T/3"])  # the same set, another start
    again = treat("oracle", make_arm_inputs(tmp_path / "seed", tiny_model, lessons, hits, seed=1), ["T/2"], **STEPS)
    assert weights(again["T/2"]) != weights(alone["T/2"])


def test_an_oracle_knows_its_own_solutions_better_than_the_base_and_than_anothers(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    """Its rank is the one asked for, and its seconds stand beside it."""
    hits = {"T/1": lessons[:1], "T/2": lessons[2:3]}
    arm_inputs = make_arm_inputs(tmp_path, tiny_model, lessons, hits)
    found = treat("oracle", arm_inputs, **{**STEPS, "steps": 25, "rank": 3, "alpha": 9.0})
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    folders = Folders(arm_inputs.adapters)

    def log_prob(solution: Trajectory, worn: Treatment | None) -> float:
        rows = base.rows([base.encode(solution.prompt, solution.solution)])
        pairs = stack([read_peft(folders.folder(worn.adapter))]) if worn is not None and worn.adapter else None
        with torch.no_grad():
            return float(base.log_prob(rows, pairs).mean())

    for task, foreign in (("T/1", "T/2"), ("T/2", "T/1")):
        (own,) = hits[task]
        assert log_prob(own, found[task]) > log_prob(own, None) + 0.1
        assert log_prob(own, found[task]) > log_prob(own, found[foreign]) + 0.02
        adapter = found[task].adapter
        assert adapter is not None and adapter.rank == 3
        assert store.read_json(folders.folder(adapter) / "seconds.json")["seconds"] >= 0


def test_every_setting_of_the_oracle_reaches_its_training(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    changes: list[dict[str, object]] = [
        {}, {"steps": 4}, {"rank": 3}, {"alpha": 8.0}, {"learning_rate": 2e-2}, {"rows": 1}
    ]  # fmt: skip
    made = set()
    for i, change in enumerate(changes):
        arm_inputs = make_arm_inputs(tmp_path / str(i), tiny_model, lessons, {"T/1": lessons[:2]})
        made.add(weights(treat("oracle", arm_inputs, **{**STEPS, **change})["T/1"]))
    assert len(made) == len(changes)
    with pytest.raises(DataError, match="none of 2 trajectories has a solution of at most 20 tokens"):
        treat("oracle", arm_inputs, **STEPS, max_tokens=20)


def test_the_oracle_trains_on_the_base_that_the_process_holds_and_leaves_it_as_it_was(
    tmp_path: Path, tiny_model: ModelRef, lessons: list[Trajectory]
) -> None:
    """A second copy of a 7B base is 15 GB; here the files of another copy are not there to be read."""
    own = treat("oracle", make_arm_inputs(tmp_path / "a", tiny_model, lessons, {"T/1": lessons[:2]}), **STEPS)
    held = bases.load(tiny_model, device="cpu", dtype="float32")
    gone = replace(tiny_model, path=str(tmp_path / "gone"))
    arm_inputs = replace(make_arm_inputs(tmp_path / "b", gone, lessons, {"T/1": lessons[:2]}), base=lambda: held)
    assert weights(treat("oracle", arm_inputs, **STEPS)["T/1"]) == weights(own["T/1"])
    assert all(linear._forward_hooks for linear in held.hooks.linears.values())
    held.hooks.remove()


def test_a_base_that_was_loaded_for_a_block_is_unhooked_whatever_happens_in_it(tiny_model: ModelRef) -> None:
    with pytest.raises(KeyError), bases.lent(None, tiny_model, device="cpu", dtype="float32") as base:
        linears = list(base.hooks.linears.values())
        assert all(linear._forward_hooks for linear in linears)
        raise KeyError
    assert not any(linear._forward_hooks for linear in linears)
