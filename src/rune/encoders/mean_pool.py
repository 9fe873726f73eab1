"""Mean and max over the tokens of each step kind, then one MLP: the simplest encoder, and a hard baseline to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rune.encoders._mean_pool import MeanPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    width: int = 256
    latents: int = 16
    hidden: int = 288  # of the MLP between pooled vectors and latents


def build(config: Config, *, taps: int, features: int) -> MeanPool:
    """`taps` layers of a base model of width `features`."""
    from rune.encoders._mean_pool import MeanPool

    return MeanPool(config, taps=taps, features=features)
