"""A study is a config and its parts: a new benchmark, a new arm, two seeds × two folds by domain × a grid of two.

Once for programs that count if they need what has changed, once for values that are read and never executed. Not for
plain execution: nearly every other test of an experiment is that.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

import rune.benchmarks
import rune.conditions
from rune.benchmarks import code_update_arena
from rune.cli.main import main
from rune.runs import store
from rune.types import Decision, ModelRef, Outcome, Problem, Sample, Split, Trajectory, Treatment, Verdict
from tests.pipeline.experiment import settings, write

PROGRAMS = '''
"""Tasks that want a changed statistics.mean: every domain is another new argument."""
from dataclasses import dataclass
from rune.benchmarks.scorers.execution_with_and_without import prelude
from rune.types import Problem, Scorer

@dataclass(frozen=True, kw_only=True)
class Config:
    domains: int = 4

class Changed:
    def __init__(self, config):
        self.config = config

    def problems(self):
        return [
            Problem(
                task_id=f"changed/{m}.{i}",
                benchmark="of_domains",
                prompt=f"Write task_{m}_{i}(x), the mean of x raised by {i + 1} as statistics does it now, way {m}.\\n",
                entry_point=f"task_{m}_{i}",
                test=f"def check(candidate):\\n    assert candidate([1, 3]) == {3 + i}\\n",
                reference="import statistics\\n\\n"
                + f"def task_{m}_{i}(x):\\n    return statistics.mean(x, by_{m}={i + 1})\\n",
                prelude=prelude(
                    "import statistics\\nold = statistics.mean\\n"
                    f"statistics.mean = lambda data, by_{m}=0: old(data) + by_{m}\\n"
                ),
                domain=f"by_{m}",
                scorer=Scorer.EXECUTION_WITH_AND_WITHOUT,
            )
            for m in range(self.config.domains)
            for i in range(2)
        ]

def build(config):
    return Changed(config)
'''
VALUES = '''
"""What functions that nobody knows return."""
from dataclasses import dataclass
from rune.types import Problem, Scorer

@dataclass(frozen=True, kw_only=True)
class Config:
    domains: int = 4

class Returned:
    def __init__(self, config):
        self.config = config

    def problems(self):
        return [
            Problem(
                task_id=f"returned/{m}.{i}",
                benchmark="of_domains",
                prompt=f"What is task_{m}_{i}(1)?\\n",
                entry_point="",
                test=f"[{m}, {i}]",
                reference=f"[{m}, {i}]",
                domain=f"module_{m}",
                scorer=Scorer.EXACT_VALUE,
            )
            for m in range(self.config.domains)
            for i in range(2)
        ]

def build(config):
    return Returned(config)
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


DO_NOT_COUNT = ("CodeUpdateArena/math.pow:add-argument-default_value(s):0/6",)  # results/references-*.json says why


class Kind(NamedTuple):
    """One of the two benchmarks: its file, and a model's answers to task (m, i), the right one first."""

    benchmark: str
    scorer: str
    measure: str
    answers: tuple[str, ...]
    kinds: tuple[str, ...]  # of failure, of each answer


KINDS = [
    Kind(
        PROGRAMS,
        "execution_with_and_without",
        "UPass@1",
        (
            "import statistics\ndef task_{m}_{i}(x):\n    return statistics.mean(x, by_{m}={j})\n```\n",
            "def task_{m}_{i}(x):\n    return sum(x) / len(x) + {j}\n```\n",
            "import statistics\ndef task_{m}_{i}(x):\n    return statistics.mean(x, by={j})\n```\n",
        ),
        ("", "NotNeeded", "Raised"),
    ),
    Kind(
        VALUES,
        "exact_value",
        "pass@1",
        ("[{m}, {i}]\n```\n", "[{m} + 0, {i}]\n```\n", "[{m}, {j}]\n```\n"),
        ("", "BadValue", "WrongAnswer"),
    ),
]


@pytest.fixture(params=[KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.check)], ids=[kind.scorer for kind in KINDS])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """Two files in the folders of parts."""
    found: Kind = request.param
    for package, name, text in ((rune.benchmarks, "of_domains", found.benchmark), (rune.conditions, "hint", ARM)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / f"{name}.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(__import__("sys").modules, f"{package.__name__}.{name}", raising=False)
    return found


def test_a_study_of_new_parts_is_one_config(
    tmp_path: Path, tiny_model: ModelRef, kind: Kind, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = {
        f"task_{m}_{i}(": [text.format(m=m, i=i, j=i + 1) for text in kind.answers] for m in range(4) for i in range(2)
    }
    raw = settings(
        tmp_path,
        tiny_model,
        benchmark={"name": "of_domains", "settings": {"domains": 4}},
        design={
            "scored": 0,
            "folds": 2,
            "by": "domain",
            "seeds": [0, 1],
            "grid": {"train.hypernet.schedule.steps": [2, 3]},
        },
        adapt={"arms": ["vanilla", "hint", "hypernet"], "settings": {"hint": {"text": "Think."}}, "swap_tasks": 2},
        engine={"settings": {"answers": answers, "read_adapters": True, "default": ["pass"]}},
    )
    decided = main(["run", str(write(tmp_path, raw))])
    assert decided in (0, 10)
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
        _check_verdicts(cell, kind)
        _check_corpus(corpus, kind)
    result = store.read_json(folder / "result.json")
    assert list(result["variants"]) == ["steps-2", "steps-3"]
    assert result["variants"]["steps-3"]["settings"] == {"train.hypernet.schedule.steps": 3}
    longer = [sum(1 for _ in store.read_lines(c / "checkpoints" / "metrics.jsonl")) for c in cells]
    assert len(set(longer)) == 2  # the grid reached the training
    for found in result["variants"].values():
        decision = found["pooled"]["decision"]
        assert len(decision["details"]["tasks"]) == 8 and decision["details"]["n"] == 4 * 2
        assert decision["scorer"] == kind.scorer
    _check_words(folder, kind, capsys)
    _check_verbs(folder, cells, decided, capsys)


def _check_verdicts(cell: Path, kind: Kind) -> None:
    """Each answer has its verdict, and the records say who judged."""
    samples = {(s.condition, s.task_id, s.draw): s for s in store.read_jsonl(cell / "samples.jsonl", Sample)}
    verdicts = store.read_jsonl(cell / "verdicts.jsonl", Verdict)
    assert len(verdicts) == len(samples) == 3 * 4 * 4
    for verdict in verdicts:
        m, i = verdict.task_id.rpartition("/")[2].split(".")
        drawn = samples[verdict.condition, verdict.task_id, verdict.draw].completion
        which = [text.format(m=m, i=i, j=int(i) + 1) for text in kind.answers].index(f"{drawn}\n```\n")
        assert (verdict.error_kind, verdict.scorer) == (kind.kinds[which], kind.scorer)
        assert (verdict.outcome is Outcome.PASSED) == (which == 0)
    assert {v.error_kind for v in verdicts} == set(kind.kinds)


def _check_corpus(corpus: list[Trajectory], kind: Kind) -> None:
    """What the loop calls a solution is what counts, and it knows what was asked for."""
    for trajectory in corpus:
        m, i = trajectory.task_id.rpartition("/")[2].split(".")
        right = kind.answers[0].format(m=m, i=i, j=int(i) + 1).partition("```")[0].strip()
        assert trajectory.solution.strip() in (right, "")
        assert trajectory.answer == ("value" if kind.scorer == "exact_value" else "program")
    assert any(t.solved for t in corpus)


def _check_words(folder: Path, kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    """The promise, the pages and the terminal call it what it is."""
    promise = store.read_json(folder / "preregistration.json")
    assert promise["hypothesis"]["h0"].startswith(f"hypernet does not raise {kind.measure} over vanilla")
    assert promise["analysis"]["scorer"] == kind.scorer
    decision = store.decode(Decision, store.read_json(folder / "decision.json"), where="decision")
    assert decision.hypotheses[0].startswith(f"H0: hypernet does not raise {kind.measure} over vanilla")
    capsys.readouterr()
    assert main(["show", str(folder)]) == 0
    pages = [(folder / name).read_text() for name in ("report.html", "report.md", "result.md")]
    for text in (*pages, capsys.readouterr().out):
        assert kind.measure in text
        assert kind.measure == "pass@1" or "pass@1" not in text
    assert ("does not pass without it" if kind.measure == "UPass@1" else "expected value") in pages[0]


def _check_verbs(folder: Path, cells: list[Path], decided: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Made again, doubted, decided again, compared; and what was judged by another scorer is not decided."""
    assert main(["score", str(folder), "--audit", "all"]) == 0
    assert ", 0 differ and are explained, 0 are not" in capsys.readouterr().out
    assert store.read_json(folder / "audit.json")["passes"] > 0
    verdicts = cells[0] / "verdicts.jsonl"
    before = {(v.condition, v.task_id, v.draw): v.outcome for v in store.read_jsonl(verdicts, Verdict)}
    verdicts.unlink()
    assert main(["score", str(folder), "--again"]) == 0
    assert {(v.condition, v.task_id, v.draw): v.outcome for v in store.read_jsonl(verdicts, Verdict)} == before
    assert main(["gate", str(folder)]) == decided
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    assert main(["compare", str(folder), str(other)]) == 0
    rows = [json.loads(line) for line in verdicts.read_text().splitlines()]
    verdicts.write_text("".join(json.dumps({**row, "scorer": "execution"}) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["gate", str(folder)]) == 2
    assert "judged by execution, but the task asks for" in capsys.readouterr().err


@pytest.mark.check
def test_a_study_of_real_updates_is_a_config(
    tmp_path: Path, tiny_model: ModelRef, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CodeUpdateArena: every reference counts, what is written by hand does not, no function is on both sides."""
    config = code_update_arena.Config(path=str(data_dir))
    everything = code_update_arena.build(config).problems()
    left_out = [p.task_id for p in everything if p.category not in ("math", "re") or p.task_id in DO_NOT_COUNT]
    chosen = [p for p in everything if p.task_id not in left_out]
    stub = "def {}(*args, **options):\n    return None\n```\n"
    answers = {p.prompt.strip(): [f"{p.reference}\n```\n", stub.format(p.entry_point)] for p in chosen}
    raw = settings(
        tmp_path,
        tiny_model,
        benchmark={"name": "code_update_arena", "settings": {"path": str(data_dir), "leave_out": left_out}},
        design={"scored": 0, "tasks": 12, "folds": 2, "by": "domain", "seeds": [0]},
        collect={"tasks": 4},
        adapt={"arms": ["vanilla", "hypernet"], "swap_tasks": 0},
        score={"settings": {"packages": list(code_update_arena.LENT), "cpu_seconds": 30.0, "wall_seconds": 60.0}},
        engine={"settings": {"answers": answers, "read_adapters": True, "default": ["pass"]}},
    )
    raw["train"]["hypernet"]["pairs"] = {"recall": 1.0, "retrieved": 0.0}  # few of these tasks have a sibling
    assert main(["run", str(write(tmp_path, raw))]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    assert "UPass@1" in capsys.readouterr().out
    counted = 0
    for cell in sorted((folder / "cells").iterdir()):
        problems = {p.task_id: p for p in store.read_jsonl(cell / "problems.jsonl", Problem)}
        sides = [{p.domain.partition(":")[0] for p in problems.values() if p.split is s} for s in Split]
        assert all(sides) and not sides[0] & sides[1]
        samples = {(s.condition, s.task_id, s.draw): s for s in store.read_jsonl(cell / "samples.jsonl", Sample)}
        for verdict in store.read_jsonl(cell / "verdicts.jsonl", Verdict):
            drawn = samples[verdict.condition, verdict.task_id, verdict.draw].completion
            right = drawn != stub.format(problems[verdict.task_id].entry_point).partition("\n```")[0]
            assert (verdict.outcome is Outcome.PASSED) == right, verdict
            counted += right
    assert counted == 12 * 2 * 2  # half of four draws of each task, two arms
