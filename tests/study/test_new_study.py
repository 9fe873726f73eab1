"""A study is a config and its parts: a new benchmark, a new arm, two seeds × two folds × a grid of two."""

from __future__ import annotations

from pathlib import Path

import pytest

import rune.benchmarks
import rune.conditions
from rune.cli.main import main
from rune.runs import store
from rune.types import ModelRef, Problem, Split, Trajectory, Treatment
from tests.pipeline.experiment import settings, write

BENCHMARK = '''
"""Tasks of a library that nobody knows: a number and what each module makes of it."""
from dataclasses import dataclass
from rune.types import Problem

@dataclass(frozen=True, kw_only=True)
class Config:
    modules: int = 4

class Library:
    def __init__(self, config):
        self.config = config

    def problems(self):
        return [
            Problem(
                task_id=f"library/{m}.{i}",
                benchmark="unknown_library",
                prompt=f"Write module_{m}_task_{i}(x), which is x times {m + 2} plus {i}.\\n",
                entry_point=f"module_{m}_task_{i}",
                test=f"def check(candidate):\\n    assert candidate(5) == {5 * (m + 2) + i}\\n",
                reference=f"def module_{m}_task_{i}(x):\\n    return x * {m + 2} + {i}\\n",
                domain=f"module_{m}",
            )
            for m in range(self.config.modules)
            for i in range(2)
        ]

def build(config):
    return Library(config)
'''
ARM = '''
"""A line of advice before every task."""
from dataclasses import dataclass
from rune.types import Treatment

@dataclass(frozen=True, kw_only=True)
class Config:
    text: str

class Hint:
    def __init__(self, config):
        self.config = config

    def treat(self, problems, on_done):
        for p in problems:
            on_done(Treatment(task_id=p.task_id, condition="hint", context=self.config.text))

def build(config, workshop):
    return Hint(config)
'''


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files in the folders of parts."""
    for package, name, text in ((rune.benchmarks, "unknown_library", BENCHMARK), (rune.conditions, "hint", ARM)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


@pytest.mark.usefixtures("parts")
def test_a_study_of_new_parts_is_one_config(tmp_path: Path, tiny_model: ModelRef) -> None:
    answers = {
        f"module_{m}_task_{i}(": [
            f"def module_{m}_task_{i}(x):\n    return x * {m + 2} + {i}\n```\n",
            f"def module_{m}_task_{i}(x):\n    return 0\n```\n",
        ]
        for m in range(4)
        for i in range(2)
    }
    raw = settings(
        tmp_path,
        tiny_model,
        benchmark={"name": "unknown_library", "settings": {"modules": 4}},
        design={
            "scored": 0,
            "folds": 2,
            "by": "domain",
            "seeds": [0, 1],
            "grid": {"train.hypernet.schedule.steps": [2, 3]},
        },
        adapt={"arms": ["vanilla", "hint", "hypernet"], "settings": {"hint": {"text": "Think."}}, "swap_tasks": 0},
        engine={"settings": {"answers": answers, "read_adapters": True, "default": ["pass"]}},
    )
    assert main(["run", str(write(tmp_path, raw))]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    cells = sorted((folder / "cells").iterdir())
    assert len(cells) == 2 * 2 * 2
    for cell in cells:
        problems = store.read_jsonl(cell / "problems.jsonl", Problem)
        sides = [{p.domain for p in problems if p.split is s} for s in Split]
        assert all(sides) and not sides[0] & sides[1]  # no domain on both sides
        corpus = store.read_jsonl(cell / "trajectories.jsonl", Trajectory)
        assert corpus and {t.domain for t in corpus} <= sides[list(Split).index(Split.TRAIN)]
        arms = {t.condition: t for t in store.read_jsonl(cell / "treatments.jsonl", Treatment)}
        assert set(arms) == {"vanilla", "hint", "hypernet"} and arms["hint"].context == "Think."
    result = store.read_json(folder / "result.json")
    assert list(result["variants"]) == ["steps-2", "steps-3"]
    assert result["variants"]["steps-3"]["settings"] == {"train.hypernet.schedule.steps": 3}
    longer = [sum(1 for _ in store.read_lines(c / "checkpoints" / "metrics.jsonl")) for c in cells]
    assert len(set(longer)) == 2  # the grid reached the training
    for found in result["variants"].values():
        decision = found["pooled"]["decision"]
        assert len(decision["details"]["tasks"]) == 8 and decision["details"]["n"] == 4 * 2
