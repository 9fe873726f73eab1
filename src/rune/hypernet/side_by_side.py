"""Many LoRAs fine-tuned in one batch, each on texts of its own: N small trainings for the launches of one.

Each has its own initial weights, data, gradient norm and moments, so that it is what it would be alone.
"""

# Shapes: Y layers · N adapters · R rank · I inputs · O outputs · B rows, N equal runs · P response tokens
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rune.adapters.factors import Adapters, Factors, LoraTargets, concatenate, to_dtype
from rune.config import derive_seed
from rune.hypernet import losses
from rune.hypernet.base import Base, Text
from rune.hypernet.loop import learning_rate
from rune.hypernet.settings import MODULES, Schedule


class Lesson(NamedTuple):
    """What one LoRA learns, and the name that its weights and its data are drawn by."""

    name: str
    texts: tuple[Text, ...]


def train(
    base: Base, lessons: Sequence[Lesson], schedule: Schedule, *, rank: int, alpha: float, rows: int, seed: int,
    start: str = "", under: Adapters | None = None, modules: tuple[str, ...] = MODULES,
) -> tuple[dict[str, Factors], list[list[float]]]:  # fmt: skip
    """LoRAs of all lessons at once, N = len(lessons), and the loss of each at each step [steps][N], nats a token.

    `rows`: texts of each lesson a step; with repeats where it has fewer. `start`: all have the initial weights of this
    name instead of their own; A and ΔW of different lessons can be compared only then, as a step moves ΔW within the
    rows of A. `under`: N adapters that are worn as well and stay as they are; they are part of what is returned.
    """
    layout, device = base.layout(modules), base.device
    draws = [np.random.default_rng(derive_seed(seed, "oracle data", lesson.name)) for lesson in lessons]
    fresh = [first_down(layout, rank, seed, start or lesson.name) for lesson in lessons]
    down, up = {}, {}
    for module, size in layout.sizes.items():
        down[module] = torch.stack([one[module] for one in fresh], 1).to(device).requires_grad_()
        up[module] = torch.zeros(layout.layers, len(lessons), rank, size.outputs, device=device, requires_grad=True)
    parameters = [*down.values(), *up.values()]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=schedule.weight_decay)
    dtype = next(p.dtype for p in base.model.parameters() if p.is_floating_point())

    def factors() -> dict[str, Factors]:
        made = {m: Factors(down[m], alpha / rank * up[m]) for m in down}
        return made if under is None else made | concatenate(under, {m: made[m] for m in under})

    curve: list[Tensor] = []
    for step in range(schedule.steps):
        chosen = []
        for lesson, rng in zip(lessons, draws, strict=True):
            some = lesson.texts
            chosen += [some[i] for i in rng.choice(len(some), size=rows, replace=len(some) < rows)]
        batch = base.rows(chosen)
        log_prob_P = base.log_prob(batch, to_dtype(factors(), dtype))
        adapter_P = batch.row_P // rows
        tokens_N = torch.bincount(adapter_P, minlength=len(lessons))
        loss_N = -losses.sequence_log_prob(log_prob_P, adapter_P, len(lessons)) / tokens_N
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, step)
        optimiser.zero_grad(set_to_none=True)
        loss_N.sum().backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm_N = torch.stack([g.square().sum((0, 2, 3)) for g in gradients]).sum(0).sqrt()
        shrink_N = (schedule.clip / (norm_N + 1e-6)).clamp(max=1.0)
        for g in gradients:
            g.mul_(shrink_N[None, :, None, None])
        optimiser.step()
        curve.append(loss_N.detach())
    return {m: Factors(*(t.detach() for t in f)) for m, f in factors().items()}, torch.stack(curve).tolist()


def first_down(layout: LoraTargets, rank: int, seed: int, name: str) -> dict[str, Tensor]:
    """Initial A [Y, R, I] of each module, on the CPU, uniform with PEFT's bound; a function of seed and name."""
    chance = torch.Generator().manual_seed(derive_seed(seed, "oracle", name))
    return {
        module: (torch.rand(layout.layers, rank, size.inputs, generator=chance) * 2 - 1) / size.inputs**0.5
        for module, size in layout.sizes.items()
    }
