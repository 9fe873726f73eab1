"""Phase 2 with a tiny model: bfloat16, its adapters on NF4, and all of it on NF4; decided by what is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rune.cli.main import main
from rune.runs import store
from rune.runs.store import RunDir
from rune.types import ModelRef, Treatment
from tests.pipeline.experiment import settings, write

pytest.importorskip("bitsandbytes", reason="NF4 needs bitsandbytes: pip install 'rune-lora[qlora]'")
NAMES = ("bf16", "carried", "nf4")


@pytest.mark.check
def test_three_variants_share_tasks_and_adapters_and_are_decided_by_the_loss(
    tmp_path: Path, tiny_model: ModelRef
) -> None:
    raw = settings(
        tmp_path,
        tiny_model,
        phase={"number": 2, "override": "a test"},
        design={
            "held_out": 4,
            "scored": 2,
            "tasks": 8,
            "variants": {"bf16": {}, "carried": {"sample.quantize": "nf4"}, "nf4": {"model.quantize": "nf4"}},
        },
        collect={"tasks": 4},
        adapt={"arms": ["vanilla", "hypernet"]},
        sample={"n": 2},
        gate={"n": 2, "simulations": 100, "resamples": 100, "floor": 0.0, "ceiling": 1.0, "most_loss": 10.0},
    )
    assert main(["run", str(write(tmp_path, raw))]) == 0  # the scripted engine says the same whatever the base
    (folder,) = (tmp_path / "runs").iterdir()
    cells = {name: RunDir(folder / "cells" / f"{name}.seed-3.held-out") for name in NAMES}
    made = {n: [t for t in store.read_jsonl(c / "treatments.jsonl", Treatment) if t.adapter] for n, c in cells.items()}
    assert [t.adapter for t in made["bf16"]] == [t.adapter for t in made["carried"]]
    bases = {n: {t.adapter.base_model for t in found if t.adapter} for n, found in made.items()}
    assert bases["bf16"] == {tiny_model.digest} != bases["nf4"]
    assert cells["carried"].manifest()["model"]["sha256"] == tiny_model.digest
    assert cells["carried"].manifest()["drawn_from"]["quantize"] == "nf4"
    assert cells["nf4"].manifest()["model"]["quantize"] == "nf4" and "drawn_from" not in cells["nf4"].manifest()
    assert {cells["nf4"].manifest()["model"]["sha256"]} == bases["nf4"]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert {(one["condition"], one["variant"]) for one in result["losses"]} == {
        (arm, name) for arm in ("vanilla", "hypernet") for name in ("carried", "nf4")
    }
    assert all(one["percent"] == 0 for one in result["losses"])
    page = (folder / "result.md").read_text(encoding="utf-8")
    assert "## What each arm loses" in page and "pass@1 may lose less than 10 %" in page
    decision = json.loads((folder / "decision.json").read_text(encoding="utf-8"))
    assert decision["passed"] and decision["evidence"].startswith("The rule is a loss below 10 %: hypernet loses 0.0 %")
    promised = json.loads((folder / "preregistration.json").read_text(encoding="utf-8"))
    assert promised["hypothesis"]["gate"].startswith("passed if hypernet loses less than 10 % of its pass@1")
    assert main(["gate", str(folder)]) == 0
