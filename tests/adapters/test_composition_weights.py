"""Learned weights of a composition: they lower the loss that they are learned on, and nothing else moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rune.adapters import composition, peft
from rune.adapters.peft import Adapter, Pair
from rune.errors import DataError
from rune.hypernet import base as bases
from rune.hypernet import composition_weights
from rune.types import ModelRef, Problem, Trajectory


@pytest.fixture(scope="module")
def base(tiny_model: ModelRef) -> bases.Base:
    return bases.load(tiny_model, device="cpu", dtype="float32")


def random_adapter(base: bases.Base, seed: int, rank: int) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    pairs = {
        name: Pair(
            torch.randn(layer.in_features, rank, generator=rng) * 0.2,
            torch.randn(rank, layer.out_features, generator=rng) * 0.2,
        )
        for name, layer in peft.target_linears(base.model, ("q_proj", "down_proj")).items()
    }
    return Adapter(pairs=pairs, scale=2.0, base_model=base.ref.digest)


def nats(base: bases.Base, adapter: Adapter, tasks: list[Trajectory]) -> float:
    rows = base.rows([base.encode(t.prompt, t.solution) for t in tasks])
    with torch.no_grad():
        return -float(base.log_prob(rows, peft.stack([adapter])).mean())


def test_learning_lowers_the_loss_of_the_very_adapter_that_is_composed(
    base: bases.Base, corpus: tuple[list[Problem], list[Trajectory]]
) -> None:
    adapters = [random_adapter(base, 1, 2), replace(random_adapter(base, 2, 3), scale=0.5)]
    tasks = [t for t in corpus[1] if t.solved][:4]
    before = {n: p.detach().clone() for n, p in base.model.named_parameters()}
    ids = [peft.content_id(a) for a in adapters]
    found = composition_weights.learn(base, adapters, tasks, steps=12, learning_rate=0.1)
    # It begins at the plain sum and ends at a better one, which `compose` makes from the weights.
    assert found.losses[0] == pytest.approx(nats(base, composition.compose(adapters), tasks), abs=1e-4)
    assert found.losses[-1] == pytest.approx(nats(base, composition.compose(adapters, found.weights), tasks), abs=1e-4)
    assert found.losses[-1] < found.losses[0] - 0.01
    assert len(found.weights) == 2 and all(set(w) == set(adapters[0].pairs) for w in found.weights)
    assert all(value != 1.0 for weights in found.weights for value in weights.values())  # the gradient reaches each
    assert all(torch.equal(before[n], p) for n, p in base.model.named_parameters())
    assert ids == [peft.content_id(a) for a in adapters]
    again = composition_weights.learn(base, adapters, tasks, steps=12, learning_rate=0.1)
    assert again.weights == found.weights


def test_tasks_without_a_solution_teach_nothing(
    base: bases.Base, corpus: tuple[list[Problem], list[Trajectory]]
) -> None:
    tasks = [replace(corpus[1][0], solution="")]
    with pytest.raises(DataError, match="none of the validation tasks is solved"):
        composition_weights.learn(base, [random_adapter(base, 1, 2)], tasks, steps=1, learning_rate=0.1)
