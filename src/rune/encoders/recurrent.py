"""A GRU over steps: each step's mean and max, read in the order given; its states are summarised by the latents.

The only encoder here that sees the order of steps. Training shuffles attempts, so that order cannot be the shortcut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rune.encoders._recurrent import Recurrent


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    width: int = 256
    latents: int = 16
    layers: int = 3  # of the GRU
    heads: int = 4
    hidden: int = 1472  # of the MLP

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


def build(config: Config, *, taps: int, features: int) -> Recurrent:
    """`taps` layers of a base model of width `features`."""
    from rune.encoders._recurrent import Recurrent

    return Recurrent(config, taps=taps, features=features)
