"""Whole runs with a hypernetwork of outer products: a trained one, so that nothing trains, and one that they train."""

from __future__ import annotations

from pathlib import Path

import pytest

from rune import config
from rune.cli.main import main
from rune.errors import ConfigError
from rune.reporting import tracking
from rune.runs import store
from rune.study import checks
from rune.study.config import load
from rune.types import ModelRef, Treatment
from tests.study.test_shown import small, tool
from tests.train.outer_products import SMALL, outer_products

ARMS = ["teacher", "hypernet", "wrong_trajectory", "hypernet_mean", "hypernet_centred"]


def test_a_run_takes_a_hypernetwork_of_another_kind_as_it_is(tmp_path: Path, tiny_model: ModelRef) -> None:
    path = small(tmp_path, tiny_model)
    tool("studies/private-conventions/corpus.py").write(load(path))
    outer_products(tmp_path / "net", tiny_model)
    raw = config.parse(path.read_text(encoding="utf-8"), where="config")
    raw["design"].pop("variants", None)
    raw["train"]["use"] = "net"
    raw["adapt"] |= {"arms": ARMS, "rank_tasks": 4, "settings": {"wrong_trajectory": {"near": True}}}
    path.write_text(config.dump_toml(raw), encoding="utf-8")
    assert main(["run", str(path)]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    where = folder if (folder / "treatments.jsonl").exists() else next((folder / "cells").iterdir())
    assert (where / "checkpoints" / "hypernet" / "model.safetensors").read_bytes() == (
        tmp_path / "net" / "model.safetensors"
    ).read_bytes()
    assert not (where / "checkpoints" / "lora").exists()
    treatments = store.read_jsonl(where / "treatments.jsonl", Treatment)
    ranks: dict[str, set[int]] = {}
    for treatment in treatments:
        if treatment.adapter is not None:
            ranks.setdefault(treatment.condition, set()).add(treatment.adapter.rank)
    assert ranks["hypernet"] == ranks["wrong_trajectory"] == {SMALL.rank} and set(ranks) == set(ARMS) - {"teacher"}
    assert ranks["hypernet_centred"] == {SMALL.rank + 32}
    donors = store.read_json(where / "diagnostics.json")["donors"]
    assert set(donors) == {"hypernet", "wrong_trajectory", "hypernet_centred"}
    assert "The right donor among all" in (folder / "report.md").read_text(encoding="utf-8")
    assert "The right donor among all" in (folder / "report.html").read_text(encoding="utf-8")


def training(folder: Path, model: ModelRef) -> Path:
    """A variant of each kind, from one config."""
    path = small(folder, model)
    tool("studies/private-conventions/corpus.py").write(load(path))
    raw = config.parse(path.read_text(encoding="utf-8"), where="config")
    raw["design"]["variants"] = {
        "written": {"train.kind": "outer_products"},
        "encoded": {"train.kind": "hypernet"},
    }
    raw["train"]["outer_products"] = {
        "schedule": {"steps": 4, "learning_rate": 1e-2, "checkpoint_every": 2},
        "groups": 2,
        "generator": {"passes": 2, "tokens": 8, "correction": 4, "rank": 8},
        "teacher": {"steps": 2, "rank": 2},
        "max_tokens": 1000,
        "withheld": 0.2,
    }
    raw["adapt"] |= {"arms": ["teacher", "hypernet", "wrong_trajectory"]}
    path.write_text(config.dump_toml(raw), encoding="utf-8")
    return path


@pytest.mark.check
def test_a_variant_names_the_kind_that_a_run_trains(tmp_path: Path, tiny_model: ModelRef) -> None:
    assert main(["run", str(training(tmp_path, tiny_model))]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    cells = {cell.name.partition(".")[0]: cell for cell in (folder / "cells").iterdir()}
    for name, kind in (("written", "outer_products"), ("encoded", "hypernet")):
        assert store.read_json(cells[name] / "checkpoints" / "hypernet" / "settings.json")["kind"] == kind
    told = store.read_json(cells["written"] / "diagnostics.json")["training"]
    assert told["hypernet"]["steps"] == 4 and told["held_out"]["steps"] == 2
    # What MLflow gets as training_loss of the arm hypernet.
    curve = [r for _, r in store.read_lines(cells["written"] / "checkpoints" / "metrics.jsonl")]
    (last,) = [r["loss"] for r in curve if (r["phase"], r["step"]) == ("hypernet", 3)]
    assert tracking._final_loss(cells["written"], "hypernet") == last
    ranks = {t.adapter.rank for t in store.read_jsonl(cells["written"] / "treatments.jsonl", Treatment) if t.adapter}
    assert ranks == {8}
    assert "held_out" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("arm", ["lora", "static", "empty_trajectory"])
def test_arms_of_a_constant_part_are_refused_before_anything_is_made(
    tmp_path: Path, tiny_model: ModelRef, arm: str
) -> None:
    path = training(tmp_path, tiny_model)
    wanted = [f'adapt.arms=["teacher", "hypernet", "{arm}"]', "design.variants={}", "train.kind=outer_products"]
    with pytest.raises(ConfigError, match=rf"trains no static LoRA .* leave out the arm {arm}$"):
        checks.arms(load(path, wanted).settings)
    checks.arms(load(path, [*wanted, "train.use=net"]).settings)  # refused, where it is, by what `use` takes
