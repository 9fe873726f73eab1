"""Strong random adapters for the engines' tests."""

from __future__ import annotations

import torch

from rune.engines._lora import TARGETS, Adapter, Pair, target_linears


def random_adapter(
    model: torch.nn.Module, *, seed: int, rank: int = 4, scale: float = 1.0, base_model: str = "", spread: float = 0.3
) -> Adapter:
    """An adapter on all seven kinds of module, large enough to change what a tiny model says."""
    rng = torch.Generator().manual_seed(seed)
    pairs = {
        name: Pair(
            torch.randn(linear.in_features, rank, generator=rng) * spread,
            torch.randn(rank, linear.out_features, generator=rng) * spread,
        )
        for name, linear in target_linears(model, TARGETS).items()
    }
    return Adapter(pairs=pairs, scale=scale, base_model=base_model)
