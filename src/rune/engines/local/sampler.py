"""Drawing the next token without sorting the vocabulary, and chance that does not know its neighbours.

Each (seed, step) gives one uniform number through a counter-based hash, and the token is the inverse CDF at that
number: a row draws the same tokens in any batch, on any device. The vocabulary is looked at in chunks of 128:
the top k tokens lie in the k chunks with the largest maxima (exact), and an unrestricted draw picks a chunk by
its mass, then a token in it. Filters follow transformers: temperature, then top-k, then top-p over what is left.

Legend: N rows · V vocabulary · C chunks · W chunk width · K candidates, best first
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from rune.types import Sampling

WIDTH = 128
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


def chunk_mass(logits_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Per chunk: its largest logit, and Σ exp((logit − that) / temperature); both [N, C], float32."""
    chunks_NCW = _chunks(logits_NV.float(), float("-inf"))
    best_NC = chunks_NCW.amax(-1)
    return best_NC, ((chunks_NCW - best_NC[..., None]) / temperature).exp_().sum(-1)


Mass = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def draw(logits_NV: Tensor, uniform_N: Tensor, sampling: Sampling, mass: Mass = chunk_mass) -> Tensor:
    """One token id per row. `uniform_N` (float64) decides; greedy ignores it. `mass` may be a faster `chunk_mass`."""
    if sampling.temperature == 0:
        return logits_NV.argmax(-1)
    if 0 < sampling.top_k < logits_NV.shape[1]:
        values_NK, ids_NK = top(logits_NV, sampling.top_k)
        share_NK = torch.softmax(values_NK.double() / sampling.temperature, dim=-1)
        return _pick(_nucleus(share_NK, sampling.top_p), ids_NK, uniform_N)
    if sampling.top_p < 1:
        return _draw_nucleus(logits_NV, uniform_N, sampling)
    return _draw_any(logits_NV, uniform_N, sampling.temperature, mass)


def top(logits_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest logits of each row and their ids, largest first, exactly, reading the row once."""
    num_rows, size = logits_NV.shape
    if size < 4 * WIDTH * count:
        values_NK, ids_NK = torch.topk(logits_NV, min(count, size), dim=-1)
        return values_NK.float(), ids_NK
    chunks_NCW = _chunks(logits_NV, float("-inf"))
    best_NK = chunks_NCW.amax(-1).topk(count, sorted=False).indices.sort(dim=-1).values
    pool_NKW = chunks_NCW.gather(1, best_NK[..., None].expand(-1, -1, WIDTH))
    values_NK, place_NK = pool_NKW.view(num_rows, -1).topk(count, dim=-1)
    ids_NK = best_NK.gather(1, place_NK // WIDTH) * WIDTH + place_NK % WIDTH
    return values_NK.float(), ids_NK


def _chunks(x_NV: Tensor, filler: float) -> Tensor:
    short = -x_NV.shape[1] % WIDTH
    if short:
        x_NV = functional.pad(x_NV, (0, short), value=filler)
    return x_NV.view(x_NV.shape[0], -1, WIDTH)


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
    values_NK, ids_NK = top(scaled_NV, _NUCLEUS)
    share_NK = (values_NK.double() - norm_N1).exp()
    tokens_N = _pick(_nucleus(share_NK, sampling.top_p), ids_NK, uniform_N)
    wide = (share_NK.sum(-1) < sampling.top_p).nonzero()[:, 0]
    if wide.numel():  # flat distributions: rare, and exact all the same
        sorted_NV, order_NV = scaled_NV[wide].sort(dim=-1, descending=True)
        share_NV = torch.softmax(sorted_NV.double(), dim=-1)
        tokens_N[wide] = _pick(_nucleus(share_NV, sampling.top_p), order_NV, uniform_N[wide])
    return tokens_N


def _draw_any(logits_NV: Tensor, uniform_N: Tensor, temperature: float, mass: Mass) -> Tensor:
    best_NC, sum_NC = mass(logits_NV, temperature)
    best_N1 = best_NC.amax(-1, keepdim=True)
    mass_NC = sum_NC.double() * ((best_NC - best_N1).double() / temperature).exp()
    mass_NC = mass_NC.masked_fill(best_NC == float("-inf"), 0.0)  # forbidden tokens only: −inf − −inf is no number
    cdf_NC = mass_NC.cumsum(-1)
    target_N1 = uniform_N[:, None] * cdf_NC[:, -1:]
    chunk_N1 = torch.searchsorted(cdf_NC, target_N1, right=True).clamp_(max=cdf_NC.shape[1] - 1)
    before_N1 = cdf_NC.gather(1, chunk_N1) - mass_NC.gather(1, chunk_N1)
    within_N = ((target_N1 - before_N1) / mass_NC.gather(1, chunk_N1)).clamp(0.0, 1.0 - 2.0**-53)[:, 0]
    ids_NW = chunk_N1 * WIDTH + torch.arange(WIDTH, device=chunk_N1.device)
    known_NW = ids_NW < logits_NV.shape[1]
    inner_NW = logits_NV.gather(1, ids_NW.clamp(max=logits_NV.shape[1] - 1)).float()
    weight_NW = ((inner_NW - best_N1).double() / temperature).exp() * known_NW
    return _pick(weight_NW, ids_NW, within_N)
