"""What every encoder shares: its input record, the front end that makes tokens of features, and small blocks.

A trajectory *set* reaches an encoder as tokens of the frozen base model, tapped at several layers. Each token says
which step it belongs to (task, attempt, error, fix, solution), what became of that step, and to which step
of the set it belongs. Nothing says in which order the attempts came: order was a shortcut that hid the lesson.

The front end: RMS-normalise each tap, standardise each dimension with the corpus' own mean and spread (base
activations share a huge common part; without this all trajectories look alike), project, mix taps by a learned
softmax, add the tags, gate each token by its tags. One learned token stands in every set, so an empty set is legal.
"""

# Shapes: B sets · T tokens · S taps · D base width · W encoder width · L latents · H heads
from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Kind(IntEnum):
    """What a token is part of. `NOTHING` is the learned token that every set has."""

    NOTHING = 0
    TASK = 1
    ATTEMPT = 2
    ERROR = 3
    FIX = 4  # tokens of the solution on lines that the failed attempts lack
    SOLUTION = 5


class Ending(IntEnum):
    """What became of the step a token is part of."""

    NONE = 0
    PASSED = 1
    FAILED = 2
    TIMED_OUT = 3


class Steps(NamedTuple):
    """A batch of trajectory sets, padded. `step_BT` counts the steps of a set from 0; padding may hold anything."""

    features_BTSD: Tensor
    mask_BT: Tensor  # bool, true where a token stands
    kind_BT: Tensor  # Kind
    ending_BT: Tensor  # Ending
    step_BT: Tensor

    def to(self, device: torch.device | str) -> Steps:
        return Steps(*(t.to(device, non_blocking=True) for t in self))


class FrontEnd(nn.Module):
    """Steps → tokens [B, 1 + T, W], mask and step index [B, 1 + T] (the learned token is step 0, the others + 1)."""

    mean_SD: Tensor
    spread_SD: Tensor

    def __init__(self, *, taps: int, features: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_SD", torch.zeros(taps, features))
        self.register_buffer("spread_SD", torch.ones(taps, features))
        self.project_SDW = nn.Parameter(torch.randn(taps, features, width) / features**0.5)
        self.mix_S = nn.Parameter(torch.zeros(taps))
        self.kind = nn.Embedding(len(Kind), width)
        self.ending = nn.Embedding(len(Ending), width)
        self.gate = nn.Linear(2 * width, 1)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.kind.weight, std=0.3)
        nn.init.normal_(self.ending.weight, std=0.3)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, 2.0)

    def forward(self, steps: Steps) -> tuple[Tensor, Tensor, Tensor]:
        x_BTSD = rms(steps.features_BTSD.to(self.project_SDW.dtype))
        x_BTSD = ((x_BTSD - self.mean_SD) / self.spread_SD).clamp(-8, 8)
        weight_SDW = self.project_SDW * (self.mix_S.softmax(0) * len(self.mix_S) ** 0.5)[:, None, None]
        # One product does the projection of every tap and their mix.
        x_BTW = x_BTSD.flatten(2) @ weight_SDW.flatten(0, 1)
        kind_BTW, ending_BTW = self.kind(steps.kind_BT), self.ending(steps.ending_BT)
        gate_BT1 = torch.sigmoid(self.gate(torch.cat([kind_BTW, ending_BTW], -1)))
        x_BTW = gate_BT1 * self.norm(x_BTW + kind_BTW + ending_BTW)
        batch = len(x_BTW)
        nothing = steps.kind_BT.new_zeros(batch, 1)
        tokens_BUW = torch.cat([self.norm(self.kind(nothing) + self.ending(nothing)), x_BTW], 1)
        mask_BU = torch.cat([steps.mask_BT.new_ones(batch, 1), steps.mask_BT], 1)
        step_BU = torch.cat([nothing, (steps.step_BT + 1).masked_fill(~steps.mask_BT, 0)], 1)
        return tokens_BUW, mask_BU, step_BU

    @torch.no_grad()
    def standardise(self, mean_SD: Tensor, spread_SD: Tensor) -> None:
        """Set the corpus statistics of RMS-normalised features (see `rms`)."""
        self.mean_SD.copy_(mean_SD)
        self.spread_SD.copy_(spread_SD.clamp_min(1e-3))


def rms(x: Tensor) -> Tensor:
    """Each vector of the last dimension at root-mean-square 1."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    """Multi-head attention of queries [B, Q, W] over keys [B, K, W]; no projection bias, pre-norm on the queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x_BQW: Tensor, y_BKW: Tensor, mask_BK: Tensor | None = None) -> Tensor:
        def split(z: Tensor) -> Tensor:
            return z.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mask = None if mask_BK is None else mask_BK[:, None, None, :]
        mixed_BHQw = F.scaled_dot_product_attention(
            split(self.query(self.norm(x_BQW))), split(self.key(y_BKW)), split(self.value(y_BKW)), attn_mask=mask
        )
        return x_BQW + self.out(mixed_BHQw.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Pre-norm residual MLP [.., W] → [.., W]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


def pool(x_BUW: Tensor, mask_BU: Tensor, group_BU: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and max of the tokens of each group: [B, groups, W] twice, and which groups have a token [B, groups].

    Empty groups give zeros.
    """
    member_BGU = (group_BU[:, None] == torch.arange(groups, device=x_BUW.device)[None, :, None]) & mask_BU[:, None]
    count_BG1 = member_BGU.sum(-1, keepdim=True)
    # Under autocast the product comes back in half precision; the maximum below must meet it in one dtype.
    mean_BGW = ((member_BGU.to(x_BUW.dtype) @ x_BUW) / count_BG1.clamp_min(1)).to(x_BUW.dtype)
    # scatter instead of a [B, G, U, W] mask: the sets may have thousands of tokens.
    index_BUW = group_BU[..., None].expand_as(x_BUW)
    lowest = x_BUW.masked_fill(~mask_BU[..., None], -torch.inf)
    start_BGW = torch.full_like(mean_BGW, -torch.inf)
    max_BGW = start_BGW.scatter_reduce(1, index_BUW, lowest, "amax", include_self=True)
    present_BG = count_BG1[..., 0] > 0
    return mean_BGW, max_BGW.masked_fill(~present_BG[..., None], 0.0), present_BG
