"""A tiny run and a tiny cross-fitted run write what they wrote when they were frozen (`frozen.py` says how)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rune import config
from rune.types import ModelRef
from tests.golden.frozen import VIEWS, differences

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_records_decisions_and_adapters_are_the_frozen_ones(name: str, tmp_path: Path, tiny_model: ModelRef) -> None:
    frozen = json.loads((HERE / f"{name}.json").read_text())
    make, view = VIEWS[name]
    found = json.loads(json.dumps(config.plain(view(make(tmp_path, tiny_model)))))
    assert differences(frozen, found) == []


def test_a_changed_number_weight_or_record_is_seen() -> None:
    frozen = json.loads((HERE / "run.json").read_text())
    assert differences(frozen, frozen) == []
    for path, value in (
        (("decision", "effect_points"), 99.0),
        (("cell", "samples"), "another"),
        (("cell", "trajectories", 0, 1), "HumanEval/0x"),
        (("cell", "checkpoints", "lora"), {"sha256": "0", "norm": 0.0}),
        (("cell", "norms", "lora HumanEval/54"), 0.5),
    ):
        changed = json.loads(json.dumps(frozen))
        at = changed
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        assert len(differences(frozen, changed)) == 1
