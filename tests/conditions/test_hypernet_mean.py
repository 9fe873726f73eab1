"""hypernet_mean: all tasks wear the mean ΔW of the adapters of all sets, each set counted once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rune.adapters.factors import Factors, StaticLora
from rune.adapters.folders import Folders
from rune.adapters.peft import read_peft
from rune.conditions import _adapters
from rune.hypernet import base as bases
from rune.hypernet import checkpoint
from rune.hypernet.settings import MODULES
from rune.types import ModelRef, Trajectory
from tests.conditions.test_bounds import make_arm_inputs, trajectory, treat, weights


@pytest.mark.parametrize("shared", [True, False])
def test_the_mean_is_that_of_every_sets_adapter_and_exact_where_a_is_shared(
    tmp_path: Path, tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    layout = bases.load(tiny_model, device="cpu", dtype="float32").layout(MODULES)
    a, b, c = (trajectory(name) for name in "abc")
    hits = {"T/1": [a], "T/2": [a], "T/3": [b, c], "T/4": [c]}  # two tasks of one set

    def made(ids: tuple[str, ...], strength: float) -> dict[str, Factors]:
        random = torch.Generator().manual_seed(len(ids) + ord(ids[0][0]))
        common = torch.Generator().manual_seed(0) if shared else random
        return {
            m: Factors(
                torch.randn(layout.layers, 1, 2, size.inputs, generator=common),
                strength * torch.randn(layout.layers, 1, 2, size.outputs, generator=random),
            )
            for m, size in layout.sizes.items()
        }

    class Source:
        stored = SimpleNamespace(layout=layout)

        def iter_generate(
            self, sets: Sequence[Sequence[Trajectory]], *, strength: float
        ) -> Iterator[dict[str, Factors]]:
            for some in sets:
                yield made(tuple(t.trajectory_id for t in some), strength)

    monkeypatch.setattr(_adapters, "maker", lambda arm_inputs: Source())
    worn = treat("hypernet_mean", make_arm_inputs(tmp_path, tiny_model, [a, b, c], hits), strength=0.5, mean_rank=6)
    assert len({weights(t) for t in worn.values()}) == 1 and worn["T/1"].trajectory_ids == ("a", "b", "c")
    assert worn["T/1"].adapter is not None and worn["T/1"].adapter.rank == (2 if shared else 6)
    one = read_peft(Folders(tmp_path / "adapters").folder(worn["T/1"].adapter))
    every = [made(ids, 0.5) for ids in (("a",), ("b", "c"), ("c",))]
    for module in layout.sizes:
        for layer in range(layout.layers):
            pair = one.pairs[layout.paths[module].format(layer)]
            products = [f[module].down_YNRI[layer, 0].T @ f[module].up_YNRO[layer, 0] for f in every]
            assert torch.allclose(one.scale * pair.a @ pair.b, torch.stack(products).mean(0), atol=1e-4)


def test_a_large_corpus_is_not_named_again_for_every_task(
    tmp_path: Path, tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = bases.load(tiny_model, device="cpu", dtype="float32").layout(MODULES)
    stored = SimpleNamespace(static=StaticLora(layout, rank=2, alpha=4.0), layout=layout)
    monkeypatch.setattr(checkpoint, "load", lambda *args, **more: stored)
    corpus = [trajectory(name) for name in "abc"]
    arm_inputs = make_arm_inputs(tmp_path, tiny_model, corpus, {"T/1": corpus[:1]})
    assert treat("static", arm_inputs)["T/1"].trajectory_ids == ("a", "b", "c")
    monkeypatch.setattr(_adapters, "MOST_NAMED", 2)
    assert treat("static", arm_inputs)["T/1"].trajectory_ids == ()
