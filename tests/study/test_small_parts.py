"""Small parts of a study, each by itself: a rule at its limit, a bar that counts once, words that hang on a number."""

from __future__ import annotations

import json
import subprocess
import types
from pathlib import Path
from typing import Any

import pytest

from rune import console
from rune.analysis.relative import Loss
from rune.errors import ConfigError
from rune.stages import adapt, score
from rune.study import cells, combine, measuring, tables, workers
from rune.study.config import Design
from rune.types import AdapterRef, Attempt, Interval, ModelRef, Outcome, Problem, Scorer, Split, Trajectory
from tests.gate import test_gate as gates


def loss(variant: str, percent: float, condition: str = "hypernet") -> Loss:
    return Loss(
        variant=variant, condition=condition, reference_pass_at_1=0.5, pass_at_1=0.4, percent=percent,
        interval=Interval(low=-1.0, high=5.0, level=0.95, over="tasks"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "passed"),
    [
        ([loss("nf4", 1.99)], True),
        ([loss("nf4", 2.0)], False),  # "less than"
        ([loss("nf4", 0.5), loss("int8", 2.5)], False),
        ([loss("nf4", -3.0), loss("nf4", 9.0, "vanilla")], True),
        ([loss("nf4", 0.0, "vanilla")], False),
        ([], False),
    ],
)
def test_variants_pass_by_losing_less_than_the_rule_says(losses: list[Loss], passed: bool) -> None:
    settings = gates.gate.Config(resamples=500, simulations=100, most_loss=2.0)
    before = gates.decide(gates.both(gates.FIVE, gates.BASE))
    found = combine._by_loss(before, losses, settings)
    assert (found.passed, found.answer) == (passed, "Gate PASSED" if passed else "Gate FAILED — reassessing")
    assert found.reasons[1:] == before.reasons and found.reasons[0].startswith("The rule is a loss below 2 %: ")
    assert found.evidence == f"{found.reasons[0]} Beside it, by the points rule on the first variant: {before.evidence}"
    assert len(found.details["losses"]) == len(losses) and found.effect_points == before.effect_points
    if len(losses) == 1 and losses[0].condition == "hypernet":
        said = f"hypernet loses {losses[0].percent:.1f} % of its pass@1 in nf4, interval [−1.0, +5.0]."
        assert found.reasons[0].endswith(said)


def test_how_tasks_were_held_out_is_said() -> None:
    assert tables._how({"folds": 2}) == "2 folds, every task held out once"
    assert tables._how({"folds": 1}) == tables._how({"folds": 0}) == "one held-out split"


def test_a_bar_counts_a_cell_once() -> None:
    steps: list[int] = []
    done: set[str] = set()

    def place(name: str) -> Any:
        return types.SimpleNamespace(
            folder=types.SimpleNamespace(stage_done=lambda stage: stage == "score" and name in done)
        )

    bar = workers._Bar(types.SimpleNamespace(advance=lambda: steps.append(1)), [place("a"), place("b"), place("c")])  # type: ignore[arg-type]
    for now, count in ((set(), 0), ({"a"}, 1), ({"a"}, 1), ({"a", "b", "c"}, 3), ({"a", "b", "c"}, 3)):
        done |= now
        bar.look()
        assert len(steps) == count


def test_a_worker_elsewhere_says_its_last_line_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run(command: list[str], **more: Any) -> Any:
        asked.update(more, command=command)
        return subprocess.CompletedProcess(command, code, stderr="first\nlast words\n\n")

    monkeypatch.setattr(workers.subprocess, "run", run)
    code = 0
    assert workers._in_ray("/f", ["a", "b"], "/here") == ""
    code = 3
    assert workers._in_ray("/f", ["a", "b"], "/here") == "a worker of cells a, b ended with 3: last words"
    assert asked["command"][1:5] == ["-m", "rune", "run", "/f"] and asked["command"][-3:] == ["--worker", "a", "b"]
    assert asked["command"][asked["command"].index("--together") + 1] == "1"
    del asked["command"]
    assert asked == {"cwd": "/here", "capture_output": True, "text": True, "errors": "replace", "check": False}


def problem(number: int, split: Split = Split.TRAIN) -> Problem:
    return Problem(task_id=f"T/{number}", benchmark="t", prompt="", entry_point="f", test="", split=split)


def test_a_benchmark_with_a_split_of_its_own_is_not_cross_fitted() -> None:
    with pytest.raises(ConfigError, match="folds: t marks its own evaluation tasks"):
        cells.split([problem(1), problem(2, Split.HELD_OUT)], Design(folds=2), 0)


def test_tasks_come_in_an_order_of_the_seed_that_another_task_does_not_change() -> None:
    def order(seed: int, numbers: range) -> list[str]:
        evolve = types.SimpleNamespace(evolve=types.SimpleNamespace(seed=seed))
        found = measuring.EngineEvaluator._in_order(
            types.SimpleNamespace(_settings=evolve), [problem(i) for i in numbers]
        )  # type: ignore[arg-type]
        return [p.task_id for p in found]

    six = order(1, range(6))
    assert sorted(six) == [f"T/{i}" for i in range(6)] and six != sorted(six)
    assert order(1, range(5, -1, -1)) == six
    assert [t for t in order(1, range(7)) if t != "T/6"] == six
    assert order(2, range(6)) != six


def test_what_the_cache_knew_is_told_and_nothing_where_it_knew_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "note", said.append)
    twice = Problem(
        task_id="T", benchmark="t", prompt="", entry_point="f", test="", scorer=Scorer.EXECUTION_WITH_AND_WITHOUT
    )
    for hits, before, judged in ((5, 5, [problem(1)]), (0, 0, [])):
        score.say_cached(types.SimpleNamespace(hits=hits), before, judged)  # type: ignore[arg-type]
    score.say_cached(object(), 0, [problem(1)])  # type: ignore[arg-type]
    assert said == []
    score.say_cached(types.SimpleNamespace(hits=7), 5, [problem(1)] * 4)  # type: ignore[arg-type]
    score.say_cached(types.SimpleNamespace(hits=3), 0, [problem(1), twice])  # type: ignore[arg-type]
    assert said == [
        "score: 2 of 4 verdicts known from the cache (same program, test and limits)",
        "score: 3 runs, one or two a verdict, known from the cache (same program, test and limits)",
    ]


def test_how_each_phase_of_training_went_is_read_from_its_own_losses(tmp_path: Path) -> None:
    assert adapt._training(tmp_path / "none.jsonl") == {}
    rows = [{"phase": p, "loss": float(loss)} for loss in range(9, 0, -1) for p in ("warm", "main")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    from rune.hypernet.diagnostics import convergence

    found = adapt._training(tmp_path / "m.jsonl")
    down = [float(n) for n in range(9, 0, -1)]
    assert found == {"warm": convergence(down), "main": convergence(down[:-1])}


CARD = """---
base_model: "Qwen/Qwen2.5-Coder-0.5B-Instruct"
library_name: peft
tags: [lora, hypernetwork, rune]
---

# A LoRA of rank 8 that a hypernetwork generated from coding trajectories

Base: `Qwen/Qwen2.5-Coder-0.5B-Instruct`REVISION, weights sha256 `abc`. \
Adapter id `id0`, ‖ΔW‖_F 1.235, strength λ = 0.5.

Made by rune VERSION with the hypernetwork `hyper`WEIGHTS, in one forward pass, from

- `T/1`, 1 attempts, solved
- `T/2`, 2 attempts, not solved

## What this hypernetwork was measured to do

The controls are the wrong trajectory, an empty one, and the constant part alone; \
what it does on your tasks has not been measured.

MEASURED
"""


def test_a_card_says_what_it_was_made_from_and_what_was_measured(tmp_path: Path) -> None:
    import hashlib

    import rune
    from rune.models import registry

    base = "qwen2.5-coder-0.5b-instruct"
    name, revision = registry.hub_name(base)
    model = ModelRef(name=base, path="/m", digest="abc", source="local")
    ref = AdapterRef(adapter_id="id0", base_model="abc", rank=8, delta_w_norm=1.23456)
    failed = Attempt(code="x", outcome=Outcome.FAILED)
    stories = [
        Trajectory(trajectory_id="1", task_id="T/1", benchmark="t", prompt="", attempts=(failed,), solution="y"),
        Trajectory(trajectory_id="2", task_id="T/2", benchmark="t", prompt="", attempts=(failed, failed)),
    ]
    folder = tmp_path / "hyper"
    folder.mkdir()
    card = CARD.replace("Qwen/Qwen2.5-Coder-0.5B-Instruct", name).replace("VERSION", rune.__version__)
    card = card.replace("REVISION", f" at `{revision}`" if revision else "")
    bare = card.replace("WEIGHTS", "").replace("MEASURED", "Not measured: no result.md there.")
    assert adapt._card(stories, folder, model, ref, 0.5, "in one forward pass") == bare
    (folder / "model.safetensors").write_bytes(b"w")
    (folder / "result.md").write_text("\n# It was\n\n")
    digest = hashlib.sha256(b"w").hexdigest()[:12]
    whole = card.replace("WEIGHTS", f" (sha256 `{digest}`)").replace("MEASURED", "# It was")
    assert adapt._card(stories, folder, model, ref, 0.5, "in one forward pass") == whole
