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

# Shapes: N adapters · I inputs · O outputs · R ranks of all adapters that change the module


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
    stacks = {name: _stack(base, adapters, name) for name in names}
    weights = torch.ones(len(adapters), len(names), device=base.device, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=learning_rate)
    rng = random.Random(seed)

    def loss(chosen: Sequence[int]) -> Tensor:
        applied = {name: stack.weighted(weights[:, m]) for m, (name, stack) in enumerate(stacks.items())}
        return -base.log_prob(base.rows([texts[n] for n in chosen]), applied).mean()

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


class _Stack(NamedTuple):
    """One module of all adapters side by side, on the base's device: what is the same in every step."""

    a_IR: Tensor  # in the base's dtype
    b_RO: Tensor
    adapter_R: Tensor  # whose each rank is
    scale_R: Tensor  # α/r of that adapter

    def weighted(self, weights_N: Tensor) -> Pair:
        """As the hooks take it, [1, I, R] and [1, R, O]; gradients flow to the weights of the N adapters."""
        b_RO = self.b_RO * (self.scale_R * weights_N[self.adapter_R])[:, None]
        return Pair(self.a_IR[None], b_RO[None].to(self.a_IR.dtype))


def _stack(base: Base, adapters: Sequence[Adapter], name: str) -> _Stack:
    dtype = next(base.model.parameters()).dtype
    here = [(n, adapter.scale, adapter.pairs[name]) for n, adapter in enumerate(adapters) if name in adapter.pairs]
    ranks = torch.tensor([pair.a.shape[1] for _, _, pair in here])
    return _Stack(
        torch.cat([pair.a for _, _, pair in here], 1).to(base.device, dtype),
        torch.cat([pair.b for _, _, pair in here], 0).to(base.device),
        torch.tensor([n for n, _, _ in here]).repeat_interleave(ranks).to(base.device),
        torch.tensor([scale for _, scale, _ in here]).repeat_interleave(ranks).to(base.device),
    )
