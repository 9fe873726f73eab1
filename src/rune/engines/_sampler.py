"""Drawing the next token without sorting the vocabulary, and chance that does not know its neighbours.

Each (seed, step) gives one uniform number through a counter-based hash, and the token is the inverse CDF at that
number: a row draws the same tokens in any batch, on any device. The vocabulary is looked at in chunks of 128:
the top k tokens lie in the k chunks with the largest maxima (exact), and an unrestricted draw picks a chunk by
its mass, then a token in it. Filters follow transformers: temperature, then top-k, then top-p over what is left.

Legend: N rows · V vocabulary · C chunks · W chunk width · K candidates, best first
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rune.types import Sampling

_WIDTH = 128
_NUCLEUS = 512  # candidates tried before a row's whole vocabulary is sorted


def uniforms(seeds: list[int], steps: int) -> np.ndarray:
    """[N, steps] numbers in [0, 1): splitmix64 (Steele et al. 2014) of seed, then of that and the step."""
    seed_N1 = np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=np.uint64)[:, None]
    step_1S = np.arange(1, steps + 1, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        mixed_NS = _mix(_mix(seed_N1 + _GOLDEN) + step_1S * _GOLDEN)
    return (mixed_NS >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draw(logits_NV: Tensor, uniform_N: Tensor, sampling: Sampling) -> Tensor:
    """One token id per row. `uniform_N` (float64) decides; greedy ignores it."""
    if sampling.temperature == 0:
        return logits_NV.argmax(-1)
    if 0 < sampling.top_k < logits_NV.shape[1]:
        values_NK, ids_NK = top(logits_NV, sampling.top_k)
        share_NK = torch.softmax(values_NK.double() / sampling.temperature, dim=-1)
        return _pick(_nucleus(share_NK, sampling.top_p), ids_NK, uniform_N)
    if sampling.top_p < 1:
        return _draw_nucleus(logits_NV, uniform_N, sampling)
    return _draw_any(logits_NV, uniform_N, sampling.temperature)


def top(logits_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest logits of each row and their ids, largest first, exactly, reading the row once."""
    num_rows, size = logits_NV.shape
    if size < 4 * _WIDTH * count:
        values_NK, ids_NK = torch.topk(logits_NV, min(count, size), dim=-1)
        return values_NK.float(), ids_NK
    chunks_NCW = _chunks(logits_NV, float("-inf"))
    best_NK = chunks_NCW.amax(-1).topk(count, sorted=False).indices.sort(dim=-1).values
    pool_NKW = chunks_NCW.gather(1, best_NK[..., None].expand(-1, -1, _WIDTH))
    values_NK, place_NK = pool_NKW.view(num_rows, -1).topk(count, dim=-1)
    ids_NK = best_NK.gather(1, place_NK // _WIDTH) * _WIDTH + place_NK % _WIDTH
    return values_NK.float(), ids_NK


def _chunks(x_NV: Tensor, filler: float) -> Tensor:
    short = -x_NV.shape[1] % _WIDTH
    if short:
        x_NV = functional.pad(x_NV, (0, short), value=filler)
    return x_NV.view(x_NV.shape[0], -1, _WIDTH)


def _nucleus(share_NK: Tensor, top_p: float) -> Tensor:
    """Shares with everything zeroed that lies outside the smallest head of mass ≥ top_p (the best token stays)."""
    if top_p >= 1:
        return share_NK
    before_NK = share_NK.cumsum(-1) - share_NK
    return torch.where(before_NK < top_p, share_NK, 0.0)


def _pick(share_NK: Tensor, ids_NK: Tensor, uniform_N: Tensor) -> Tensor:
    cdf_NK = share_NK.cumsum(-1)
    place_N1 = torch.searchsorted(cdf_NK, uniform_N[:, None] * cdf_NK[:, -1:], right=True)
    # A share of zero repeats its predecessor's cdf and is never hit; the clamp only guards the last rounding.
    return ids_NK.gather(1, place_N1.clamp(max=share_NK.shape[1] - 1))[:, 0]


def _draw_nucleus(logits_NV: Tensor, uniform_N: Tensor, sampling: Sampling) -> Tensor:
    scaled_NV = logits_NV.float() / sampling.temperature
    norm_N1 = scaled_NV.logsumexp(-1, keepdim=True).double()
    values_NK, ids_NK = top(scaled_NV, min(_NUCLEUS, scaled_NV.shape[1]))
    share_NK = (values_NK.double() - norm_N1).exp()
    tokens_N = _pick(_nucleus(share_NK, sampling.top_p), ids_NK, uniform_N)
    wide = (share_NK.sum(-1) < sampling.top_p).nonzero()[:, 0]
    if wide.numel():  # flat distributions: rare, and exact all the same
        sorted_NV, order_NV = scaled_NV[wide].sort(dim=-1, descending=True)
        share_NV = torch.softmax(sorted_NV.double(), dim=-1)
        tokens_N[wide] = _pick(_nucleus(share_NV, sampling.top_p), order_NV, uniform_N[wide])
    return tokens_N


def _draw_any(logits_NV: Tensor, uniform_N: Tensor, temperature: float) -> Tensor:
    weight_NV = logits_NV.float()  # a copy for bf16; fp32 logits are the caller's
    weight_NV = (weight_NV - weight_NV.amax(-1, keepdim=True)).div_(temperature).exp_()
    chunks_NCW = _chunks(weight_NV, 0.0)
    mass_NC = chunks_NCW.sum(-1, dtype=torch.float64)
    cdf_NC = mass_NC.cumsum(-1)
    target_N1 = uniform_N[:, None] * cdf_NC[:, -1:]
    chunk_N1 = torch.searchsorted(cdf_NC, target_N1, right=True).clamp_(max=cdf_NC.shape[1] - 1)
    rest_N1 = target_N1 - (cdf_NC.gather(1, chunk_N1) - mass_NC.gather(1, chunk_N1))
    inner_NW = chunks_NCW.gather(1, chunk_N1[..., None].expand(-1, -1, _WIDTH))[:, 0].double()
    ids_NW = chunk_N1 * _WIDTH + torch.arange(_WIDTH, device=chunk_N1.device)
    # Within the chunk the target is absolute: give `_pick` its fraction of the chunk's mass.
    return _pick(inner_NW, ids_NW, (rest_N1 / inner_NW.sum(-1, keepdim=True)).clamp(0.0, 1.0 - 2.0**-53)[:, 0])
