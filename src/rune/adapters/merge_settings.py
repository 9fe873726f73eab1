"""How adapters are merged: names and settings only, so that a config is read without torch. See merging.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from rune import config
from rune.errors import ConfigError
from rune.plugins import unknown

ON_FACTORS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
ON_DELTAS = ("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
METHODS = ("cat", "svd", *ON_DELTAS, *ON_FACTORS)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to merge."""

    method: str  # one of METHODS
    rank: int = 0  # of the result, for those that end in svd; 0: the largest of the parents'
    density: float | None = None  # share of entries that ties, dare and magnitude_prune keep; the others take none
    sign: str = "total"  # how ties elects a sign: "total" weighs by size, "frequency" counts
    seed: int = 0  # of what dare drops
    device: Literal["cpu", "cuda"] = field(default="cpu", metadata=config.ADDED)  # where; the other rounds otherwise

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(unknown("merge method", self.method, list(METHODS)))
        if (self.density is None) is not (self.method in ("cat", "svd", "linear")):
            needs = "takes no density" if self.density is not None else "needs a density: the share that is kept"
            raise ValueError(f"merge method '{self.method}' {needs}")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density is the share that is kept, above 0 and up to 1; found {self.density:g}")
        if self.sign not in ("total", "frequency"):
            raise ValueError(f"sign is 'total' or 'frequency', found {self.sign!r}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device is 'cpu' or 'cuda', found {self.device!r}")
        if self.rank < 0:
            raise ValueError(f"rank must be 1 or more, or 0 for the parents' largest, found {self.rank}")


def settings(**values: Any) -> Settings:
    """Settings from what a user typed. Raises ConfigError."""
    try:
        return Settings(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from None
