"""Mean and max over the tokens of each step kind, then one MLP: the simplest encoder, and a hard baseline to beat."""

# Shapes: B sets · U tokens · K step kinds · W encoder width · L latents
from __future__ import annotations

import torch
from torch import Tensor, nn

from rune.encoders.mean_pool import Config
from rune.encoders.shared.token_features import FeedForward, FrontEnd, Kind, Steps, pool


class MeanPool(nn.Module):
    """`Steps` → latents [B, L, W]."""

    def __init__(self, config: Config, *, taps: int, features: int) -> None:
        super().__init__()
        self.latents = config.latents
        self.front = FrontEnd(taps=taps, features=features, width=config.width)
        self.body = nn.Sequential(
            nn.LayerNorm(2 * len(Kind) * config.width),
            nn.Linear(2 * len(Kind) * config.width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.latents * config.width),
        )
        self.feed = FeedForward(config.width, config.hidden)

    def forward(self, steps: Steps) -> Tensor:
        tokens_BUW, mask_BU, _ = self.front(steps)
        kind_BU = torch.cat([steps.kind_BT.new_zeros(len(steps.kind_BT), 1), steps.kind_BT], 1)
        mean_BKW, max_BKW, _ = pool(tokens_BUW, mask_BU, kind_BU, len(Kind))
        latents: Tensor = self.body(torch.cat([mean_BKW, max_BKW], -1).flatten(1))
        z: Tensor = self.feed(latents.unflatten(1, (self.latents, -1)))
        return z
