"""The study's rules and its training step: what chooses, who is held out, what a step asks for."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rune.adapters.factors import Factors
from rune.hypernet import base as bases
from rune.hypernet.base import Base
from rune.hypernet.outer_products import MODULES, OuterProducts, observe
from rune.runs import store
from rune.types import Attempt, ModelRef, Outcome, Problem, Trajectory

STUDY = Path(__file__).parents[2] / "studies" / "updates-distilled"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module("distilled")


@pytest.fixture
def base(tiny_model: ModelRef) -> Iterator[Base]:
    loaded = bases.load(tiny_model, device="cpu", dtype="float32")
    yield loaded
    loaded.hooks.remove()


def verdicts(**upass: int) -> list[dict[str, Any]]:
    """Ten draws an arm, `upass` of them counted."""
    return [{"arm": arm, "used": n < hits} for arm, hits in upass.items() for n in range(10)]


def test_what_the_trajectory_does_counts_twice_and_of_equals_the_first_is_chosen(study: ModuleType) -> None:
    arms = [("soft", "a", "a_wrong"), ("hard", "b", "b_wrong"), ("same", "c", "c_wrong")]
    found, scores = study.choose(verdicts(a=3, a_wrong=1, b=4, b_wrong=4, c=3, c_wrong=1), arms)
    assert (found, scores) == ("soft", {"a": 50.0, "b": 40.0, "c": 50.0})
    assert study.choose(verdicts(a=2, a_wrong=1, b=4, b_wrong=4, c=4, c_wrong=1), arms)[0] == "same"


def test_nothing_is_chosen_where_a_setting_was_not_judged(study: ModuleType) -> None:
    assert study.choose(verdicts(a=3, a_wrong=1, b=4), [("soft", "a", "a_wrong"), ("hard", "b", "b_wrong")])[0] is None


def test_doses_stand_from_weak_to_strong(study: ModuleType) -> None:
    settings = [setting for setting, _, _ in study.dose_arms()]
    assert settings[0] == [10, 0.3]
    assert settings[-1] == [40, 1.0]
    assert len(settings) == 9


def test_no_function_is_in_two_parts(study: ModuleType, data_dir: Path) -> None:
    problems = study.updates._benchmark(argparse.Namespace(data=data_dir), fold=0).problems()
    lessons = [
        Trajectory(
            trajectory_id=p.task_id, task_id=p.task_id, benchmark=p.benchmark, prompt=p.prompt,
            attempts=(Attempt(code=p.reference, outcome=Outcome.PASSED),), solution=p.reference, category=p.category,
            domain=p.domain,
        )
        for p in problems
    ]  # fmt: skip
    parts = study.parts_of(problems, lessons)
    functions = [{study.updates._function(c.problem.domain) for c in part} for part in parts]
    assert all(functions)
    assert sum(map(len, functions)) == len(set().union(*functions))
    assert len({c.problem.domain for c in parts.validation}) >= study.VALIDATION
    assert all(c.problem.split == "held_out" for c in parts.held)
    shown = {t.domain for part in parts[:2] for c in part for t in (*c.siblings, *c.wrong)}
    assert not shown & {c.problem.domain for c in parts.held}


def test_the_right_donor_first_or_last_among_donors_of_other_functions(study: ModuleType) -> None:
    targets = [
        f"CodeUpdateArena/{u}/0" for u in ("math.log:add:0", "math.log:add:1", "math.sqrt:add:0", "re.sub:add:0")
    ]
    best = np.full((4, 4), -5.0)
    np.fill_diagonal(best, -1.0)
    first = study.shares({"targets": targets, "nats": best.tolist()})
    last = study.shares({"targets": targets, "nats": (-best).tolist()})
    assert first["lead_nats"] == 4.0
    assert last["lead_nats"] == -4.0
    # Of 2, 2, 3 and 3 donors of other functions; in the package 1, 1, 2 and none.
    assert first["all"] == pytest.approx(np.mean([0.5 / 3, 0.5 / 3, 0.5 / 4, 0.5 / 4]))
    assert last["package"] == pytest.approx(np.mean([1.5 / 2, 1.5 / 2, 2.5 / 3]))


def test_a_wrong_donor_of_the_same_function_is_counted_and_the_rule_told_without_it(
    study: ModuleType, tmp_path: Path
) -> None:
    updates = ("math.log:add:0", "math.log:rename:0", "re.sub:add:0", "re.sub:rename:0", "re.split:add:0")
    tasks = [f"CodeUpdateArena/{update}/0" for update in updates]
    problems = [
        Problem(
            task_id=t, benchmark="x", prompt="", entry_point="f", test="", reference="", domain=u,
            category=u.partition(".")[0],
        )
        for t, u in zip(tasks, updates, strict=True)
    ]  # fmt: skip
    rows = [{"part": "dose", "steps": steps, "key": f"oracle/{t}", "lessons": []} for steps in (10, 20) for t in tasks]
    store.write_jsonl(tmp_path / "training.jsonl", rows)

    def seen(task: str, arm: str) -> bool:
        if arm == "oracle 40 × 0.5":  # best by far on the functions that have no other in their package
            return "math" in task
        return arm == "oracle 10 × 0.3" and task.endswith("re.split:add:0/0")

    arms = [arm for _, right, wrong in study.dose_arms() for arm in (right, wrong)]
    verdicts = [{"task": t, "arm": arm, "used": seen(t, arm)} for t in tasks for arm in arms]
    found = study._by_donor("dose", problems, tmp_path, verdicts)["wrong_donors"]
    assert (found["of"], found["same_update"], found["same_function"], found["other_package"]) == (5, 0, 2, 0)
    assert study.choose(verdicts, study.dose_arms())[0] == [40, 0.5]
    assert found["chosen_without_same_function"] == [10, 0.3]
    assert study._by_donor("dose", problems, tmp_path, verdicts[1:][len(arms) :]) == {}


def test_the_page_of_examples_shows_two_gains_of_two_updates_and_the_greatest_loss(study: ModuleType) -> None:
    counts = {"a:x:0/0": (5, 0), "a:x:0/1": (4, 0), "b:y:0/0": (3, 0), "c:z:0/0": (2, 2), "d:w:0/0": (0, 4)}
    verdicts, samples, problems = [], [], []
    for task, hits in counts.items():
        problems.append(
            Problem(task_id=task, benchmark="x", prompt=f"Ask {task}", entry_point="f", test="", reference="")
        )
        for arm, count in zip(("generated", "generated_wrong"), hits, strict=True):
            verdicts += [{"task": task, "arm": arm, "used": n < count} for n in range(5)]
            samples += [
                {"task_id": task, "condition": arm, "draw": n, "program": f"{arm} {task} draw {n}"} for n in range(5)
            ]
    page = study.examples(problems, [], {}, samples, verdicts)
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## `a:x:0/0` (gain)", "## `b:y:0/0` (gain)", "## `d:w:0/0` (loss)",
    ]  # fmt: skip
    assert "ahead of `generated_wrong` in 3, level in 1, behind in 1." in page
    assert "Draws of 5 that count: generated 0, generated_wrong 4" in page
    assert "generated a:x:0/0 draw 0" in page
    assert "draw 1" not in page


def examples(study: ModuleType, base: Base) -> list[Any]:
    codes = ["return blorp(x)", "return x.zibble", "return snurg + x"]
    texts = [base.encode(f"Write f{n}.\n", f"def f{n}(x):\n    {code}\n") for n, code in enumerate(codes)]
    return [study.Example((t,), t, f"update-{n}", f"job-{n}") for n, t in enumerate(texts)]


def model_for(base: Base, found: list[Any]) -> OuterProducts:
    model = OuterProducts(base.layout(MODULES), correction=4, gain=0.01)
    model.calibrate(base, observe(base, [e.sources for e in found], tokens=16))
    return model


def test_a_generator_that_writes_nothing_moves_no_stranger_and_one_that_writes_does(
    study: ModuleType, base: Base
) -> None:
    found = examples(study, base)
    model = model_for(base, found)
    take = study.training_step(SimpleNamespace(base=base), model, lambda rng: found, {}, 1.0, "x")
    loud = take(0)
    with torch.no_grad():
        for gain_SY in model.log_gain_SY.values():
            gain_SY.fill_(-60.0)
    silent = take(0)
    assert float(silent.terms["kl_foreign"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(loud.terms["kl_foreign"].detach()) > 1e-3
    assert float(loud.terms["cross_entropy"].detach()) < float(silent.terms["cross_entropy"].detach())
    assert float(loud.loss.detach()) == pytest.approx(
        float((loud.terms["cross_entropy"] + loud.terms["kl_foreign"]).detach())
    )


def test_neighbours_of_one_update_are_no_strangers(study: ModuleType, base: Base) -> None:
    one, two, three = examples(study, base)
    same = [one, two._replace(domain=one.domain), three]
    model = model_for(base, same)
    rows = []
    for found in ([one, two, three], same):
        take = study.training_step(SimpleNamespace(base=base), model, lambda rng, found=found: found, {}, 1.0, "x")
        rows.append(take(0).terms["kl_foreign"].detach())
    assert float(rows[0]) != pytest.approx(float(rows[1]))


def test_the_distance_to_the_oracle_is_none_where_the_generator_writes_what_the_oracle_wears(
    study: ModuleType, base: Base
) -> None:
    found = examples(study, base)
    model = model_for(base, found)
    with torch.no_grad():
        made = model(observe(base, [e.sources for e in found], tokens=study.RANK))
    teachers = {
        e.teacher: {m: Factors(f.down_YNRI[:, n : n + 1], 2.0 * f.up_YNRO[:, n : n + 1]) for m, f in made.items()}
        for n, e in enumerate(found)
    }
    distance = []
    for strength in (0.5, 1.0):
        take = study.training_step(SimpleNamespace(base=base), model, lambda rng: found, teachers, strength, "x")
        distance.append(float(take(0).terms["kl_oracle"].detach()))
    assert distance[0] == pytest.approx(0.0, abs=1e-5)
    assert distance[1] > 1e-3
