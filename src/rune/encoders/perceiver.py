"""Perceiver (Jaegle et al. 2021): learned latents read all tokens of the set by cross-attention, then talk.

The default. Invariant to the order of tokens, so of attempts and of trajectories too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rune.encoders._perceiver import Perceiver


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


def build(config: Config, *, taps: int, features: int) -> Perceiver:
    """`taps` layers of a base model of width `features`."""
    from rune.encoders._perceiver import Perceiver

    return Perceiver(config, taps=taps, features=features)
