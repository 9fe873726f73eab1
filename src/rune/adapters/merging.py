"""Merging adapters: PEFT's operators under PEFT's names, on factors.

Two families, and the difference matters:

* `cat`, `svd`, `ties_svd`, `dare_linear_svd`, `dare_ties_svd`, `magnitude_prune_svd` work on ΔW. Equal adapters give
  equal merges, however their ΔW is written as B·A. `cat` is the exact sum, with the ranks added up; `svd` the nearest
  to it of a given rank; the others change single entries of ΔW, which is built for one module at a time.
* `linear`, `ties`, `dare_linear`, `dare_ties`, `magnitude_prune` work on the A's and on the B's apart, as PEFT does by
  these names. That is cheap and keeps the rank, but (A, B) and (−A, −B) are the same adapter and merge to another one:
  use them to compare with, or for adapters that began as copies of one.

Any of it can be done on a GPU (`device`). Chance and rounding are that device's, so a merge is made again bit by bit on
its own kind of device only.

What is done entry by entry is PEFT's own code (`peft.utils.merge_utils`): TIES (Yadav et al. 2023, arXiv 2306.01708),
DARE (Yu et al. 2023, arXiv 2311.03099), task arithmetic (Ilharco et al. 2022, arXiv 2212.04089).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rune.adapters import composition
from rune.adapters.composition import at_least_float32, names, same_shape, truncated
from rune.adapters.merge_settings import ON_DELTAS, Settings
from rune.adapters.peft import Adapter, Pair
from rune.errors import AdapterError, ConfigError

# Shapes: I inputs · O outputs · R rank · K singular values

BEYOND, ITERATIONS = 24, 6  # of `leading`: further directions, and rounds that sharpen them


def merge(adapters: Sequence[Adapter], weights: Sequence[float], how: Settings) -> Adapter:
    """One adapter from several of one base; the same inputs give the same numbers.

    Raises AdapterError, ConfigError for a device that is not there.

    The adapters stay as they are; the result has scale 1 and lies on the CPU.
    """
    composition.check(adapters, weights)
    if how.device != "cpu":
        if not torch.cuda.is_available():
            raise ConfigError(f"to merge on '{how.device}' takes a GPU, and there is none; leave device out")
        moved = [_on(adapter, how.device) for adapter in adapters]
        return _on(_merge(moved, weights, how), "cpu")
    return _merge(adapters, weights, how)


def _on(adapter: Adapter, device: str) -> Adapter:
    pairs = {name: Pair(*(t.to(device) for t in pair)) for name, pair in adapter.pairs.items()}
    return Adapter(pairs=pairs, scale=adapter.scale, base_model=adapter.base_model)


def _merge(adapters: Sequence[Adapter], weights: Sequence[float], how: Settings) -> Adapter:
    rank = how.rank or max(adapter.rank for adapter in adapters)
    if how.method == "cat":
        return composition.compose(adapters, weights)
    if how.method == "svd":
        return composition.shrink(composition.compose(adapters, weights), rank)
    combine = _combine(how)
    device = next(iter(adapters[0].pairs.values())).a.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):  # PEFT's dare draws from torch's own
        torch.manual_seed(how.seed)
        if how.method in ON_DELTAS:
            return _on_deltas(adapters, weights, combine, rank)
        return _on_factors(adapters, weights, combine)


Combine = Callable[[list[Tensor], Tensor], Tensor]


def _combine(how: Settings) -> Combine:
    """PEFT's operator on tensors of one shape and their weights."""
    from peft.utils import merge_utils

    density, sign = how.density or 1.0, how.sign
    operators: dict[str, Combine] = {
        "linear": merge_utils.task_arithmetic,
        "ties": lambda tensors, weights: merge_utils.ties(tensors, weights, density, sign),  # type: ignore[arg-type]
        "dare_linear": lambda tensors, weights: merge_utils.dare_linear(tensors, weights, density),
        "dare_ties": lambda tensors, weights: merge_utils.dare_ties(tensors, weights, density, sign),  # type: ignore[arg-type]
        "magnitude_prune": lambda tensors, weights: merge_utils.magnitude_prune(tensors, weights, density),
    }
    return operators[how.method.removesuffix("_svd")]


def _on_deltas(adapters: Sequence[Adapter], weights: Sequence[float], combine: Combine, rank: int) -> Adapter:
    pairs = {}
    for name in sorted(names(adapters)):  # chance is drawn in this order
        here = [(a, w) for a, w in zip(adapters, weights, strict=True) if name in a.pairs]
        same_shape(name, [a.pairs[name] for a, _ in here])
        deltas = [a.scale * a.pairs[name].b.float().T @ a.pairs[name].a.float().T for a, _ in here]
        merged_OI = combine(deltas, torch.tensor([w for _, w in here], device=deltas[0].device))
        pairs[name] = truncated(*leading(merged_OI, rank), rank)
    return Adapter(pairs=pairs, scale=1.0, base_model=adapters[0].base_model)


def leading(delta_OI: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest singular values with their vectors (u_IK, s_K, v_OK), K ≥ `rank` if the matrix has so many.

    A matrix much larger than the rank is met by subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4)
    from a fixed start: what it leaves out of ΔW is more than the best rank-K matrix would leave by less than a
    thousandth. On one CPU core 4864 × 896 take 0.3 s so, where the full decomposition takes 1.6 s.
    """
    kept = rank + BEYOND
    if 2 * kept >= min(delta_OI.shape):
        u_OK, s_K, v_KI = torch.linalg.svd(delta_OI, full_matrices=False)
        return v_KI.T, s_K, u_OK
    start_IK = torch.randn(delta_OI.shape[1], kept, generator=torch.Generator().manual_seed(0))
    q_OK = torch.linalg.qr(delta_OI @ start_IK.to(delta_OI)).Q
    for _ in range(ITERATIONS):
        q_OK = torch.linalg.qr(delta_OI @ torch.linalg.qr(delta_OI.T @ q_OK).Q).Q
    p_IK, t_KK = torch.linalg.qr(delta_OI.T @ q_OK)
    left_KK, s_K, right_KK = torch.linalg.svd(t_KK, full_matrices=False)
    return p_IK @ left_KK, s_K, q_OK @ right_KK.T


def _on_factors(adapters: Sequence[Adapter], weights: Sequence[float], combine: Combine) -> Adapter:
    ranks = sorted({adapter.rank for adapter in adapters})
    if len(ranks) > 1:
        raise AdapterError(
            f"the adapters have ranks {', '.join(map(str, ranks))}, and this method keeps A and B apart: it needs one; "
            "use svd, cat or a method that ends in _svd"
        )
    pairs = {}
    for name in sorted(names(adapters)):  # chance is drawn in this order
        here = [(a, w * a.scale) for a, w in zip(adapters, weights, strict=True) if name in a.pairs]
        same_shape(name, [a.pairs[name] for a, _ in here])
        # Half of a weight goes to A and half to B; its sign to A alone.
        roots = [math.sqrt(abs(w)) for _, w in here]
        signed = [math.copysign(root, w) for root, (_, w) in zip(roots, here, strict=True)]
        down_RI = combine(
            [a.pairs[name].a.T.to(at_least_float32(a.pairs[name].a)) for a, _ in here],
            torch.tensor(signed, device=here[0][0].pairs[name].a.device),
        )
        up_OR = combine(
            [a.pairs[name].b.T.to(at_least_float32(a.pairs[name].b)) for a, _ in here],
            torch.tensor(roots, device=down_RI.device),
        )
        pairs[name] = Pair(down_RI.T.contiguous(), up_OR.T.contiguous())
    return Adapter(pairs=pairs, scale=1.0, base_model=adapters[0].base_model)
