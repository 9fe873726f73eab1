"""Token → attempt → trajectory (Yang et al. 2016, with latents for the last level), blind to the order of attempts.

Learned queries summarise the tokens of each step; the summaries of all steps, without any position, are then read by
the latents. A long failed attempt therefore weighs no more than a short one.
"""

# Shapes: B sets · U tokens · N steps in the longest set, the learned token's included · W width · L latents · Q queries
from __future__ import annotations

import torch
from torch import Tensor, nn

from rune.encoders.hierarchical import Config
from rune.encoders.shared.token_features import Attention, FeedForward, FrontEnd, Steps


class Hierarchical(nn.Module):
    """`Steps` → latents [B, L, W]."""

    def __init__(self, config: Config, *, taps: int, features: int) -> None:
        super().__init__()
        self.front = FrontEnd(taps=taps, features=features, width=config.width)
        self.queries_QW = nn.Parameter(torch.randn(config.queries, config.width))
        self.latents_LW = nn.Parameter(torch.randn(config.latents, config.width))
        self.step_read, self.set_talk, self.set_read, self.talk = (
            Attention(config.width, config.heads) for _ in range(4)
        )
        self.feeds = nn.ModuleList(FeedForward(config.width, config.hidden) for _ in range(3))

    def forward(self, steps: Steps) -> Tensor:
        tokens_BUW, mask_BU, step_BU = self.front(steps)
        count = int(step_BU.max()) + 1
        summaries = []
        present = []
        # Steps are few (tens); a loop keeps the memory at one step's attention.
        for number in range(count):
            inside_BU = mask_BU & (step_BU == number)
            has_B = inside_BU.any(1)
            query_BQW = self.queries_QW.expand(len(tokens_BUW), -1, -1)
            # A set without this step reads everything here and is masked below: no row may be fully masked.
            summaries.append(self.step_read(query_BQW, tokens_BUW, inside_BU | ~has_B[:, None]))
            present.append(has_B[:, None].expand(-1, query_BQW.shape[1]))
        steps_BMW, mask_BM = self.feeds[0](torch.cat(summaries, 1)), torch.cat(present, 1)
        steps_BMW = self.feeds[1](self.set_talk(steps_BMW, steps_BMW, mask_BM))
        z_BLW = self.set_read(self.latents_LW.expand(len(steps_BMW), -1, -1), steps_BMW, mask_BM)
        z: Tensor = self.feeds[2](self.talk(z_BLW, z_BLW))
        return z
