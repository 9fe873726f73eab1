"""Token → attempt → trajectory (Yang et al. 2016, with latents for the last level), blind to the order of attempts.

Learned queries summarise the tokens of each step; the summaries of all steps, without any position, are then read by
the latents. A long failed attempt therefore weighs no more than a short one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rune.encoders._hierarchical import Hierarchical


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    width: int = 256
    latents: int = 16
    queries: int = 4  # summaries of each step
    heads: int = 4
    hidden: int = 896  # of each MLP

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


def build(config: Config, *, taps: int, features: int) -> Hierarchical:
    """`taps` layers of a base model of width `features`."""
    from rune.encoders._hierarchical import Hierarchical

    return Hierarchical(config, taps=taps, features=features)
