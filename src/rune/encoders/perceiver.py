"""Perceiver (Jaegle et al. 2021): learned latents read all tokens of the set by cross-attention, then talk.

The default. Invariant to the order of tokens, so of attempts and of trajectories too.
"""

# Shapes: B sets · T tokens · U = T + 1 · W encoder width · L latents
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rune.encoders._front import Attention, Feed, FrontEnd, Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    width: int = 256
    latents: int = 16
    blocks: int = 2
    heads: int = 4
    hidden: int = 640  # of each MLP

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class Perceiver(nn.Module):
    """`Steps` → latents [B, L, W]."""

    def __init__(self, config: Config, *, taps: int, features: int) -> None:
        super().__init__()
        self.front = FrontEnd(taps=taps, features=features, width=config.width)
        self.latents_LW = nn.Parameter(torch.randn(config.latents, config.width))
        self.reads = nn.ModuleList(Attention(config.width, config.heads) for _ in range(config.blocks))
        self.talks = nn.ModuleList(Attention(config.width, config.heads) for _ in range(config.blocks))
        self.feeds = nn.ModuleList(Feed(config.width, config.hidden) for _ in range(2 * config.blocks))

    def forward(self, steps: Steps) -> Tensor:
        tokens_BUW, mask_BU, _ = self.front(steps)
        z_BLW = self.latents_LW.expand(len(tokens_BUW), -1, -1)
        for block, (read, talk) in enumerate(zip(self.reads, self.talks, strict=True)):
            z_BLW = self.feeds[2 * block](read(z_BLW, tokens_BUW, mask_BU))
            z_BLW = self.feeds[2 * block + 1](talk(z_BLW, z_BLW))
        return z_BLW


def build(config: Config, *, taps: int, features: int) -> Perceiver:
    """`taps` layers of a base model of width `features`."""
    return Perceiver(config, taps=taps, features=features)
