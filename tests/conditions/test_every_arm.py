"""Every file in conditions/ and retrievers/ makes what it is there for."""

from __future__ import annotations

import pkgutil
import types
from pathlib import Path
from typing import Any

import pytest

import rune.conditions
from rune import plugins
from rune.types import Trajectory

ARMS = [m.name for m in pkgutil.iter_modules(rune.conditions.__path__) if not m.name.startswith("_") and not m.ispkg]


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_treats_nothing_without_a_word(name: str, tmp_path: Path) -> None:
    module = plugins.load("conditions", name)
    inputs: Any = types.SimpleNamespace(
        hits={}, trajectories=(), checkpoints=tmp_path, adapters=tmp_path, seed=0, device="cpu", dtype="float32"
    )
    done: list[object] = []
    arm = module.build(module.Config(), inputs)
    assert callable(arm.treat)
    if name in ("vanilla", "rag", "teacher", "tuned_mean", "oracle"):
        arm.treat([], done.append)
    assert done == []


def test_a_retriever_ranks() -> None:
    story = Trajectory(
        trajectory_id="1", task_id="T/1", benchmark="t", prompt="sum of a list", attempts=(), solution="x"
    )
    module = plugins.load("retrievers", "bm25")
    assert module.build(module.Config(), [story]) is not None
