"""What stands between two adapters, module by module, before they are added: from r×r matrices alone.

* cosine of ΔW₁ and ΔW₂: 1 the same change, 0 unrelated, −1 undone by the other
* overlap of the input spaces (what they react to) and of the output spaces (what they change): the mean squared cosine
  of the principal angles, 1 if the smaller space lies in the larger, 0 if they are orthogonal; two random spaces of
  ranks r₁ ≤ r₂ in n dimensions have r₂/n
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rune.adapters import peft
from rune.adapters.composition import decompose, same_shape
from rune.adapters.peft import Adapter, Pair

# Shapes: I inputs · O outputs · R, S ranks · K, L numbers of singular values

_NEGLIGIBLE = 1e-6  # of the largest singular value: below it a direction is rounding


class Between(NamedTuple):
    """Two adapters in one module, or over all."""

    cosine: float  # NaN if one of them changes nothing here
    inputs: float  # overlap of input spaces
    outputs: float
    norms: tuple[float, float]  # ‖ΔW₁‖_F, ‖ΔW₂‖_F


def measure(first: Adapter, second: Adapter) -> dict[str, Between]:
    """Every module that both change, by dotted name. Raises AdapterError for two architectures."""
    found = {}
    for name, pair in first.pairs.items():
        if name in second.pairs:
            same_shape(name, [pair, second.pairs[name]])
            found[name] = _between(pair, first.scale, second.pairs[name], second.scale)
    return found


def cosine(first: Adapter, second: Adapter) -> float:
    """Cosine of the two ΔW over all modules; a module that only one changes counts as zeros in the other."""
    dot = sum(
        inner(pair, first.scale, second.pairs[name], second.scale)
        for name, pair in first.pairs.items()
        if name in second.pairs
    )
    norms = [peft.delta_w_norm(one) for one in (first, second)]
    return dot / (norms[0] * norms[1]) if all(norms) else math.nan


def summary(first: Adapter, second: Adapter) -> Between:
    """Over all modules: the cosine of the whole, overlaps as means weighted by the product of norms."""
    each = list(measure(first, second).values())
    weights = [b.norms[0] * b.norms[1] for b in each]
    total = math.fsum(weights)

    def mean(values: list[float]) -> float:
        return math.fsum(w * v for w, v in zip(weights, values, strict=True) if w) / total if total else math.nan

    norms = [peft.delta_w_norm(one) for one in (first, second)]
    return Between(
        cosine(first, second), mean([b.inputs for b in each]), mean([b.outputs for b in each]), (norms[0], norms[1])
    )


def inner(first: Pair, scale: float, second: Pair, other: float) -> float:
    """⟨ΔW₁, ΔW₂⟩_F = Σ (A₁ᵀA₂ ∘ B₁B₂ᵀ), both scales in."""
    a_RS = first.a.double().T @ second.a.double()
    b_RS = first.b.double() @ second.b.double().T
    return scale * other * float((a_RS * b_RS).sum())


def _between(first: Pair, scale: float, second: Pair, other: float) -> Between:
    norms = [math.sqrt(max(inner(p, s, p, s), 0.0)) for p, s in ((first, scale), (second, other))]
    dot = inner(first, scale, second, other)
    in_IK, out_OK = _spaces(first, scale)
    in_IL, out_OL = _spaces(second, other)
    return Between(
        dot / (norms[0] * norms[1]) if all(norms) else math.nan,
        _overlap(in_IK, in_IL),
        _overlap(out_OK, out_OL),
        (norms[0], norms[1]),
    )


def _spaces(pair: Pair, scale: float) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of what ΔW reads and writes."""
    u_IK, s_K, v_OK = decompose(pair, scale)
    kept = s_K > _NEGLIGIBLE * s_K.max() if s_K.numel() and s_K.max() > 0 else torch.zeros_like(s_K, dtype=torch.bool)
    return u_IK[:, kept], v_OK[:, kept]


def _overlap(first: Tensor, second: Tensor) -> float:
    smaller = min(first.shape[1], second.shape[1])
    if not smaller:
        return math.nan
    return float((first.T @ second).square().sum()) / smaller
