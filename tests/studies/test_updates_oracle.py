"""The oracle's LoRAs are trained side by side; the study says each is what it would be alone."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from rune.hypernet import base as bases
from rune.hypernet.settings import Schedule
from rune.types import Attempt, ModelRef, Outcome, Problem, Trajectory

STUDY = Path(__file__).parents[2] / "studies" / "updates-oracle"


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDY.with_name("updates-exploration")))
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module("updates_oracle")


def lesson(number: int, code: str) -> Trajectory:
    return Trajectory(
        trajectory_id=f"t{number}",
        task_id=f"T/{number}",
        benchmark="test",
        prompt=f"Write f{number}.\n",
        attempts=(Attempt(code=code, outcome=Outcome.PASSED),),
        solution=code,
        domain=f"update-{number // 2}",
    )


def jobs_of(oracle: ModuleType) -> list[object]:
    """Three LoRAs with one to three solutions, of different lengths."""
    lessons = [lesson(n, f"def f{n}(x):\n    return {' + '.join(['x'] * (n + 1))}\n") for n in range(6)]
    found = []
    for number, shown in enumerate((lessons[:1], lessons[1:3], lessons[3:])):
        problem = Problem(
            task_id=f"T/9{number}", benchmark="test", prompt="Write g.\n", entry_point="g", test="", reference=""
        )
        case = oracle.updates.Case(problem, lesson(90 + number, "pass"), tuple(shown), ())
        found.append(oracle.Job("oracle", case, tuple(shown)))
    return found


def test_a_lora_trained_beside_others_is_the_one_it_would_be_alone(oracle: ModuleType, tiny_model: ModelRef) -> None:
    base = bases.load(tiny_model, device="cpu", dtype="float32")
    jobs = jobs_of(oracle)
    schedule = Schedule(steps=6, learning_rate=1e-2, clip=0.05)  # so low that every gradient is cut
    together, curves = oracle.train(base, jobs, schedule)
    for n, job in enumerate(jobs):
        alone, curve = oracle.train(base, [job], schedule)
        for module, factors in alone.items():
            torch.testing.assert_close(
                together[module].down_YNRI[:, n : n + 1], factors.down_YNRI, rtol=1e-3, atol=1e-5
            )
            torch.testing.assert_close(together[module].up_YNRO[:, n : n + 1], factors.up_YNRO, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close([step[n] for step in curves], [step[0] for step in curve], rtol=1e-4, atol=1e-5)
        assert curve[-1][0] < curve[0][0]
    base.hooks.remove()


def test_the_wrong_donor_is_of_another_function_of_the_same_package_where_there_is_one(oracle: ModuleType) -> None:
    jobs = []
    updates = ("math.log:add:0", "math.log:rename:0", "math.sqrt:add:0", "re.split:add:0")
    for number, update in enumerate(updates):
        for job in jobs_of(oracle)[:1]:
            problem = dataclasses.replace(
                job.case.problem, task_id=f"{update}/{number}", domain=update, category=update.partition(".")[0]
            )
            jobs.append(job._replace(case=job.case._replace(problem=problem)))
    donors = {j.case.problem.domain: d.case.problem.domain for j, d in oracle.partners(jobs)}
    assert donors["math.log:add:0"] == donors["math.log:rename:0"] == "math.sqrt:add:0"
    assert donors["math.sqrt:add:0"].startswith("math.log")
    assert donors["re.split:add:0"].startswith("math")
