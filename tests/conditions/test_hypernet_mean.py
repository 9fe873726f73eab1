"""hypernet_mean and _centred: the mean ΔW of the adapters of all sets, each counted once, and what is beside it."""

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
from rune.errors import DataError
from rune.hypernet import base as bases
from rune.hypernet import checkpoint
from rune.hypernet.settings import MODULES
from rune.types import ModelRef, Trajectory, Treatment
from tests.conditions.test_bounds import make_arm_inputs, trajectory, treat, weights


class Source:
    """A hypernetwork whose adapters follow from the ids of their trajectories; with `shared` all have the same A."""

    def __init__(self, model: ModelRef, *, shared: bool) -> None:
        self.layout = bases.load(model, device="cpu", dtype="float32").layout(MODULES)
        self.shared = shared

    def made(self, ids: tuple[str, ...], strength: float) -> dict[str, Factors]:
        random = torch.Generator().manual_seed(10 * len(ids) + ord(ids[0][0]))
        common = torch.Generator().manual_seed(0) if self.shared else random
        return {
            m: Factors(
                torch.randn(self.layout.layers, 1, 2, size.inputs, generator=common),
                strength * torch.randn(self.layout.layers, 1, 2, size.outputs, generator=random),
            )
            for m, size in self.layout.sizes.items()
        }

    def iter_generate(self, sets: Sequence[Sequence[Trajectory]], *, strength: float) -> Iterator[dict[str, Factors]]:
        for some in sets:
            yield self.made(tuple(t.trajectory_id for t in some), strength)

    def products(self, module: str, layer: int, strength: float) -> dict[tuple[str, ...], torch.Tensor]:
        """ΔW [I, O] of each set of `HITS`."""
        every = {ids: self.made(ids, strength)[module] for ids in (("a",), ("b", "c"), ("c",))}
        return {ids: f.down_YNRI[layer, 0].T @ f.up_YNRO[layer, 0] for ids, f in every.items()}


A, B, C = (trajectory(name) for name in "abc")
HITS = {"T/1": [A], "T/2": [A], "T/3": [B, C], "T/4": [C]}  # two tasks of one set


@pytest.fixture(params=[True, False], ids=["shared A", "own A"])
def source(request: pytest.FixtureRequest, tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch) -> Source:
    found = Source(tiny_model, shared=request.param)
    monkeypatch.setattr(_adapters, "maker", lambda arm_inputs: found)
    return found


def read(worn: Treatment, tmp_path: Path, source: Source, module: str, layer: int) -> torch.Tensor:
    assert worn.adapter is not None
    one = read_peft(Folders(tmp_path / "adapters").folder(worn.adapter))
    pair = one.pairs[source.layout.paths[module].format(layer)]
    return one.scale * pair.a @ pair.b


def test_the_mean_is_that_of_every_sets_adapter_and_exact_where_a_is_shared(
    tmp_path: Path, tiny_model: ModelRef, source: Source
) -> None:
    worn = treat("hypernet_mean", make_arm_inputs(tmp_path, tiny_model, [A, B, C], HITS), strength=0.5, mean_rank=6)
    assert len({weights(t) for t in worn.values()}) == 1 and worn["T/1"].trajectory_ids == ("a", "b", "c")
    assert worn["T/1"].adapter is not None and worn["T/1"].adapter.rank == (2 if source.shared else 6)
    for module in source.layout.sizes:
        for layer in range(source.layout.layers):
            expected = torch.stack(list(source.products(module, layer, 0.5).values())).mean(0)
            assert torch.allclose(read(worn["T/1"], tmp_path, source, module, layer), expected, atol=1e-4)


def test_what_is_beside_the_mean_is_each_sets_own_and_adds_up_to_nothing(
    tmp_path: Path, tiny_model: ModelRef, source: Source
) -> None:
    arm_inputs = make_arm_inputs(tmp_path, tiny_model, [A, B, C], HITS)
    worn = treat("hypernet_centred", arm_inputs, strength=0.5, mean_rank=6)
    assert weights(worn["T/1"]) == weights(worn["T/2"]) and len({weights(t) for t in worn.values()}) == 3
    assert [worn[f"T/{n}"].trajectory_ids for n in (1, 3, 4)] == [("a",), ("b", "c"), ("c",)]
    assert worn["T/3"].adapter is not None and worn["T/3"].adapter.rank == (2 if source.shared else 8)
    for module in source.layout.sizes:
        for layer in range(source.layout.layers):
            products = source.products(module, layer, 1.0)
            common = torch.stack(list(products.values())).mean(0)
            left = {t: read(worn[t], tmp_path, source, module, layer) for t in ("T/1", "T/3", "T/4")}
            for task, ids in (("T/1", ("a",)), ("T/3", ("b", "c")), ("T/4", ("c",))):
                assert torch.allclose(left[task], 0.5 * (products[ids] - common), atol=1e-4)
            assert torch.stack(list(left.values())).sum(0).abs().max() < 1e-3


def test_where_all_tasks_are_given_the_same_nothing_is_beside_the_mean(
    tmp_path: Path, tiny_model: ModelRef, source: Source
) -> None:
    arm_inputs = make_arm_inputs(tmp_path, tiny_model, [A], {"T/1": [A], "T/2": [A]})
    with pytest.raises(DataError, match="hypernet_centred: all tasks are given the same trajectories, so own − mean"):
        treat("hypernet_centred", arm_inputs)


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
