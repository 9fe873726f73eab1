"""Several adapters as one: ΔW = Σ wᵢ ΔWᵢ by putting their ranks side by side. Exact, and without ever building ΔW.

    ΔW = [B₁ B₂ …] · [w₁s₁A₁; w₂s₂A₂; …]        sᵢ = αᵢ/rᵢ

The ranks add up. What a module lacks in one adapter is zeros there. `shrink` gives the nearest ΔW of a lower rank
(Eckart and Young 1936), through QR of the factors and an SVD of a small matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rune.adapters.peft import Adapter, Pair
from rune.errors import AdapterError

# Shapes: I inputs · O outputs · R rank · K, L numbers of singular values

Weight = float | Mapping[str, float]  # of a whole adapter, or of each module by its dotted name


def compose(adapters: Sequence[Adapter], weights: Sequence[Weight] | None = None) -> Adapter:
    """The weighted sum of adapters of one base; its rank is the sum of theirs, its scale 1.

    `weights`: one an adapter (default 1), or one a module of it. Raises AdapterError for mixed bases, for a number of
    weights that does not fit, or one that is not finite.
    """
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    check(adapters, weights)
    total = sum(adapter.rank for adapter in adapters)
    pairs = {}
    for name in names(adapters):
        here = [
            (a.pairs[name], of(weight, name) * a.scale)
            for a, weight in zip(adapters, weights, strict=True)
            if name in a.pairs
        ]
        same_shape(name, [pair for pair, _ in here])
        a_IR = torch.cat([pair.a.to(at_least_float32(pair.a)) for pair, _ in here], 1)
        b_RO = torch.cat([pair.b.to(at_least_float32(pair.b)) * factor for pair, factor in here], 0)
        short = total - a_IR.shape[1]
        pairs[name] = Pair(torch.nn.functional.pad(a_IR, (0, short)), torch.nn.functional.pad(b_RO, (0, 0, 0, short)))
    return Adapter(pairs=pairs, scale=1.0, base_model=adapters[0].base_model)


def shrink(adapter: Adapter, rank: int) -> Adapter:
    """The adapter of at most `rank` whose ΔW is nearest in every module (Frobenius)."""
    pairs = {}
    for name, pair in adapter.pairs.items():
        a_IR, b_RO = truncated(*decompose(pair, adapter.scale), rank)
        pairs[name] = Pair(a_IR.to(at_least_float32(pair.a)), b_RO.to(at_least_float32(pair.b)))
    return Adapter(pairs=pairs, scale=1.0, base_model=adapter.base_model)


def decompose(pair: Pair, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD of scale · a · b: (u_IK, s_K, v_OK), K = min(I, R, O) at most, in float64."""
    q_IK, r_KR = torch.linalg.qr(pair.a.double())
    p_OL, t_LR = torch.linalg.qr(pair.b.double().T)
    left, s_K, right = torch.linalg.svd(scale * r_KR @ t_LR.T, full_matrices=False)
    return q_IK @ left, s_K, p_OL @ right.T


def truncated(u_IK: Tensor, s_K: Tensor, v_OK: Tensor, rank: int) -> Pair:
    """The largest `rank` singular values as a pair, half of each in either factor; zeros where there are fewer."""
    kept = min(rank, s_K.shape[0])
    root_K = s_K[:kept].sqrt()
    a_IR, b_RO = u_IK[:, :kept] * root_K, (v_OK[:, :kept] * root_K).T
    short = rank - kept
    return Pair(
        torch.nn.functional.pad(a_IR, (0, short)).contiguous(),
        torch.nn.functional.pad(b_RO, (0, 0, 0, short)).contiguous(),
    )


def names(adapters: Sequence[Adapter]) -> list[str]:
    """Modules that any of them changes, in the first one's order."""
    return list(dict.fromkeys(name for adapter in adapters for name in adapter.pairs))


def check(adapters: Sequence[Adapter], weights: Sequence[Weight]) -> None:
    """Raises AdapterError for what cannot be summed."""
    if not adapters:
        raise AdapterError("no adapters to combine; name one or more")
    if len(weights) != len(adapters):
        raise AdapterError(f"{len(adapters)} adapters and {len(weights)} weights; give one weight an adapter")
    bases = sorted({adapter.base_model for adapter in adapters})
    if len(bases) > 1:
        found = ", ".join(base[:12] or "unknown" for base in bases)
        raise AdapterError(f"the adapters belong to several base models ({found}); combine those of one")
    for weight in weights:
        for value in weight.values() if isinstance(weight, Mapping) else (weight,):
            if not math.isfinite(value):
                raise AdapterError(f"a weight is {value}; give finite numbers")


def same_shape(name: str, pairs: Sequence[Pair]) -> None:
    """Raises AdapterError if one module has several sizes: the adapters are not for one architecture."""
    sizes = sorted({(pair.a.shape[0], pair.b.shape[1]) for pair in pairs})
    if len(sizes) > 1:
        raise AdapterError(
            f"module '{name}' is {sizes[0]} in one adapter and {sizes[1]} in another; not one base model"
        )


def of(weight: Weight, name: str) -> float:
    """The weight of one module."""
    return float(weight[name]) if isinstance(weight, Mapping) else float(weight)


def at_least_float32(tensor: Tensor) -> torch.dtype:
    """float64 of a tensor that has it: a half-precision product would round the weight in."""
    return torch.promote_types(tensor.dtype, torch.float32)
