"""A whole run with a trained hypernetwork of outer products: nothing trains, and the report ranks the donors."""

from __future__ import annotations

from pathlib import Path

from rune import config
from rune.cli.main import main
from rune.runs import store
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
