"""Which habits a program carries: counted by hand on a few programs."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from rune.benchmarks import families
from rune.types import Problem, Sample, Split

STUDY = Path(__file__).parents[2] / "studies" / "private-conventions"


@pytest.fixture
def habits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module("habits")


def sample(problem: Problem, arm: str, program: str) -> Sample:
    return Sample(
        task_id=problem.task_id, condition=arm, draw=0, seed=0, completion=program, program=program, num_tokens=1,
        finish_reason="stop",
    )  # fmt: skip


def test_known_and_new_habits_are_counted_apart_and_what_stands_in_a_new_ones_place(habits: ModuleType) -> None:
    problems = families.generate(families.Config(seed=0, families=60, held_out=6, tasks=1, split="atom"))
    held = [p for p in problems if p.split is Split.HELD_OUT]
    shown = [label for p in problems if p.split is Split.TRAIN for label in habits.conventions.parse(p.domain).labels]
    new = {p.task_id: habits.conventions.parse(p.domain).labels - set(shown) for p in held}
    assert all(new.values())
    found = habits.shares(problems, [sample(p, "reference", p.reference) for p in held])["arms"]["reference"]
    every = sum(len(habits.conventions.parse(p.domain).labels) for p in held)
    fresh = sum(map(len, new.values()))
    assert found["new"] == [100.0, fresh] and found["known"] == [100.0, every - fresh] and found["all known"] == 100.0
    assert found["another known one in a new one's place"] == [0.0, fresh]
    bare = habits.shares(problems, [sample(p, "bare", f"def {p.entry_point}(data):\n    return data\n") for p in held])
    assert bare["arms"]["bare"]["new"] == [0.0, fresh] and bare["arms"]["bare"]["all known"] < 100.0


def test_a_known_habit_in_a_new_ones_place_is_seen(habits: ModuleType) -> None:
    def of(domain: str, split: Split, reference: str = "") -> Problem:
        return Problem(
            task_id=f"families/{domain}/0", benchmark="families", prompt="", entry_point="f", test="", domain=domain,
            reference=reference, split=split,
        )  # fmt: skip

    known = of("text.last.half.upper._", Split.TRAIN)
    held = of("text.last.half.hexed._", Split.HELD_OUT)
    lines = [habits.wanted(habits.conventions.parse(known.domain), d) for d in ("input", "error", "value")]
    program = "\n".join(sorted(set.union(*lines)))
    arms = habits.shares([known, held], [replace(sample(held, "made", program))])["arms"]
    assert arms["made"]["known"] == [100.0, 2] and arms["made"]["new"] == [0.0, 1]
    assert arms["made"]["another known one in a new one's place"] == [100.0, 1]
