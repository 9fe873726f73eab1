"""Perceiver (Jaegle et al. 2021): learned latents read all tokens of the set by cross-attention, then talk.

The default. Invariant to the order of tokens, so of attempts and of trajectories too.
"""

# Shapes: B sets · T tokens · U = T + 1 · W encoder width · L latents
from __future__ import annotations

import torch
from torch import Tensor, nn

from rune.encoders.perceiver import Config
from rune.encoders.shared.token_features import Attention, FeedForward, FrontEnd, Steps


class Perceiver(nn.Module):
    """`Steps` → latents [B, L, W]."""

    def __init__(self, config: Config, *, taps: int, features: int) -> None:
        super().__init__()
        self.front = FrontEnd(taps=taps, features=features, width=config.width)
        self.latents_LW = nn.Parameter(torch.randn(config.latents, config.width))
        self.reads = nn.ModuleList(Attention(config.width, config.heads) for _ in range(config.blocks))
        self.talks = nn.ModuleList(Attention(config.width, config.heads) for _ in range(config.blocks))
        self.feeds = nn.ModuleList(FeedForward(config.width, config.hidden) for _ in range(2 * config.blocks))

    def forward(self, steps: Steps) -> Tensor:
        tokens_BUW, mask_BU, _ = self.front(steps)
        z_BLW = self.latents_LW.expand(len(tokens_BUW), -1, -1)
        for block, (read, talk) in enumerate(zip(self.reads, self.talks, strict=True)):
            z_BLW = self.feeds[2 * block](read(z_BLW, tokens_BUW, mask_BU))
            z_BLW = self.feeds[2 * block + 1](talk(z_BLW, z_BLW))
        return z_BLW
