"""Weights of a composition, learned: one number for each adapter and module, on validation tasks.

    ΔW_m = Σᵢ wᵢₘ ΔWᵢₘ        minimise the negative log-likelihood of the tasks' solutions over w alone

This is the learned concatenation of LoRA Soups ("CAT", Prabhakar et al. 2024, arXiv 2410.13025, section 3). Base model
and adapters stay as they are; a few hundred numbers learn, so a handful of tasks and some tens of steps suffice.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rune.adapters import composition
from rune.adapters.peft import Adapter, Pair
from rune.errors import DataError
from rune.hypernet.base import Base
from rune.types import Trajectory

# Shapes: I inputs · O outputs · R rank


class Learned(NamedTuple):
    """What `composition.compose` takes as weights, and the way there."""

    weights: list[dict[str, float]]  # for each adapter: module → weight
    losses: list[float]  # nats a token, before each step and after the last, over all validation tasks


def learn(
    base: Base,
    adapters: Sequence[Adapter],
    tasks: Sequence[Trajectory],
    *,
    steps: int,
    learning_rate: float,
    rows: int = 4,
    seed: int = 0,
) -> Learned:
    """Learn the weights of a composition from its tasks' solutions, beginning at 1; `rows` solutions a step.

    Raises DataError if no task has a solution, AdapterError for adapters that cannot be summed.
    """
    solved = [t for t in tasks if t.solved]
    if not solved:
        raise DataError("none of the validation tasks is solved: there is no solution to learn weights from")
    composition.check(adapters, [1.0] * len(adapters))
    names = composition.names(adapters)
    texts = [base.encode(t.prompt, t.solution, answer=t.answer) for t in solved]
    weights = torch.ones(len(adapters), len(names), device=base.device, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=learning_rate)
    rng = random.Random(seed)

    def loss(chosen: Sequence[int]) -> Tensor:
        return -base.log_prob(base.rows([texts[n] for n in chosen]), _stacked(base, adapters, names, weights)).mean()

    def over_all() -> float:
        with torch.no_grad():
            counts = [len(t.ids) - t.start for t in texts]
            each = [float(loss([n])) * count for n, count in enumerate(counts)]
            return sum(each) / sum(counts)

    losses = [over_all()]
    for _ in range(steps):
        optimiser.zero_grad()
        loss(rng.sample(range(len(texts)), min(rows, len(texts)))).backward()
        optimiser.step()
        losses.append(over_all())
    found = weights.detach().cpu()
    return Learned([{name: float(found[i, m]) for m, name in enumerate(names)} for i in range(len(adapters))], losses)


def _stacked(base: Base, adapters: Sequence[Adapter], names: Sequence[str], weights: Tensor) -> dict[str, Pair]:
    """The composition as the hooks take it, [1, I, R] and [1, R, O]; gradients flow to `weights`."""
    dtype = next(base.model.parameters()).dtype
    stacked = {}
    for m, name in enumerate(names):
        here = [(adapter, weights[i, m]) for i, adapter in enumerate(adapters) if name in adapter.pairs]
        a_IR = torch.cat([adapter.pairs[name].a.to(base.device, dtype) for adapter, _ in here], 1)
        b_RO = torch.cat([adapter.pairs[name].b.to(base.device) * (adapter.scale * w) for adapter, w in here], 0)
        stacked[name] = Pair(a_IR[None], b_RO[None].to(dtype))
    return stacked
