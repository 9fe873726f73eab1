"""A GRU over steps: each step's mean and max, read in the order given; its states are summarised by the latents.

The only encoder here that sees the order of steps. Training shuffles attempts, so that order cannot be the shortcut.
"""

# Shapes: B sets · U tokens · N steps in the longest set, the learned token's included · W width · L latents
from __future__ import annotations

import torch
from torch import Tensor, nn

from rune.encoders.recurrent import Config
from rune.encoders.shared.token_features import Attention, FeedForward, FrontEnd, Steps, pool


class Recurrent(nn.Module):
    """`Steps` → latents [B, L, W]."""

    def __init__(self, config: Config, *, taps: int, features: int) -> None:
        super().__init__()
        self.front = FrontEnd(taps=taps, features=features, width=config.width)
        self.join = nn.Linear(2 * config.width, config.width)
        self.gru = nn.GRU(config.width, config.width, config.layers, batch_first=True)
        self.latents_LW = nn.Parameter(torch.randn(config.latents, config.width))
        self.read = Attention(config.width, config.heads)
        self.feed = FeedForward(config.width, config.hidden)

    def forward(self, steps: Steps) -> Tensor:
        tokens_BUW, mask_BU, step_BU = self.front(steps)
        mean_BNW, max_BNW, present_BN = pool(tokens_BUW, mask_BU, step_BU, int(step_BU.max()) + 1)
        steps_BNW = self.join(torch.cat([mean_BNW, max_BNW], -1))
        # Steps of a set are numbered without gaps, so padding stands only at the end and the GRU may run over it.
        states_BNW, _ = self.gru(steps_BNW)
        z_BLW = self.read(self.latents_LW.expand(len(steps_BNW), -1, -1), states_BNW + steps_BNW, present_BN)
        z: Tensor = self.feed(z_BLW)
        return z
