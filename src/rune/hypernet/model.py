"""The hypernetwork: a set of trajectories → the trajectory part of a LoRA, in one forward pass.

    latents = standardise(encoder(steps))            each number has mean 0 and spread 1 over trajectory sets
    h_lmr   = unit(query_lmr + read(query_lmr, latents) + …)   query = layer + module + rank embedding
    B_lmr   = (alpha / rank) · 0.1 · W_m h_lmr        one W_m per module type, shared over layers, zero at the start
    A_lmr   = A⁰_lmr                                  learned once ("shared"), or + 0.1 · V_m h_lmr ("generated")

Why so. *Standardised latents*: the part that all trajectories have in common belongs to the static LoRA; without
this it dwarfs what differs and the adapters collapse to one. *Shared A*: ΔW is then linear in h, so that lessons add
up and a new combination of known lessons lands where it should. *0.1 and unit h*: a linear head moves by lr·√width
an Adam step; so a step of B is that of an ordinary LoRA. *Zero W_m only*: ΔW is exactly zero at the start and
gradient reaches W_m at once.
"""

# Shapes: N trajectory sets · L latents · W width · Y layers · M modules · R rank · Q = Y·M·R · I inputs · O outputs
from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rune.adapters.factors import Factors, LoraTargets, kaiming
from rune.encoders.shared.token_features import Attention, FeedForward, Steps

OUTPUT_FACTOR = 0.1


class Made(NamedTuple):
    """What a forward pass gives: the adapters' trajectory part, and the latents for the losses."""

    factors: dict[str, Factors]
    latents_NLW: Tensor
    standardised_NLW: Tensor


class Hypernet(nn.Module):
    """`Steps` → factors of N adapters. `encoder` must have `front` and give [N, L, W]."""

    def __init__(
        self,
        encoder: nn.Module,
        layout: LoraTargets,
        *,
        rank: int,
        alpha: float,
        width: int,
        latents: int,
        generate_a: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent_numbers = latents * width
        self.layers, self.names, self.rank, self.scale = layout.layers, tuple(layout.sizes), rank, alpha / rank
        self.centre = nn.BatchNorm1d(latents * width, affine=False, momentum=0.05)
        self.layer_YW = nn.Parameter(0.1 * torch.randn(layout.layers, width))
        self.module_MW = nn.Parameter(0.1 * torch.randn(len(layout.sizes), width))
        self.rank_RW = nn.Parameter(0.1 * torch.randn(rank, width))
        self.reads = nn.ModuleList(Attention(width, 4) for _ in range(2))
        self.feeds = nn.ModuleList(FeedForward(width, 2 * width) for _ in range(2))
        self.up = nn.ParameterDict({m: torch.zeros(s.outputs, width) for m, s in layout.sizes.items()})
        self.down_YRI = nn.ParameterDict({m: kaiming(layout.layers, rank, s.inputs) for m, s in layout.sizes.items()})
        self.down = nn.ParameterDict()
        if generate_a:
            # Unit h makes V_m h as large as V_m's entries: the same spread as A⁰'s, before the factor.
            spread = {m: 10.0 / s.inputs**0.5 for m, s in layout.sizes.items()}
            self.down = nn.ParameterDict({m: spread[m] * torch.randn(s.inputs, width) for m, s in layout.sizes.items()})

    def forward(self, steps: Steps) -> Made:
        """One adapter per set."""
        latents_NLW = self.encoder(steps)
        z_NLW = self.standardise(latents_NLW)
        return Made(self.generate(z_NLW), latents_NLW, z_NLW)

    def standardise(self, latents_NLW: Tensor) -> Tensor:
        """Mean 0, spread 1 for each latent number: over the batch in training, over its running statistics after."""
        z_NLW: Tensor = self.centre(latents_NLW.float().flatten(1)).view(latents_NLW.shape)
        return z_NLW

    def generate(self, z_NLW: Tensor) -> dict[str, Factors]:
        """Standardised latents → factors."""
        shape = z_NLW.shape
        query_YMRW = self.layer_YW[:, None, None] + self.module_MW[:, None] + self.rank_RW
        h_NQW = query_YMRW.flatten(0, 2).expand(shape[0], -1, -1)
        for read, feed in zip(self.reads, self.feeds, strict=True):
            h_NQW = feed(read(h_NQW, z_NLW))
        h_NQW = F.normalize(h_NQW, dim=-1)
        h_MYNRW = h_NQW.view(shape[0], self.layers, len(self.names), self.rank, -1).permute(2, 1, 0, 3, 4)
        factors = {}
        for h_YNRW, module in zip(h_MYNRW, self.names, strict=True):
            up_YNRO = self.scale * OUTPUT_FACTOR * F.linear(h_YNRW, self.up[module])
            down_YNRI = self.down_YRI[module][:, None].expand(-1, shape[0], -1, -1)
            if module in self.down:
                down_YNRI = down_YNRI + OUTPUT_FACTOR * F.linear(h_YNRW, self.down[module])
            factors[module] = Factors(down_YNRI, up_YNRO)
        return factors


def make(
    layout: LoraTargets, *, encoder: Any, encoder_config: Any, taps: int, rank: int, alpha: float, inputs: str
) -> Hypernet:
    """A fresh hypernetwork; `encoder` is a module of encoders/ with `build`."""
    return Hypernet(
        encoder.build(encoder_config, taps=taps, features=layout.width),
        layout,
        rank=rank,
        alpha=alpha,
        width=encoder_config.width,
        latents=encoder_config.latents,
        generate_a=inputs == "generated",
    )
