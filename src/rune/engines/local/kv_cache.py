"""Where keys and values live, and the two ways to attend: over whole prompts, and one token a row.

One static cache `[layer, row, head, position, D]` for the whole batch: row r of the batch owns slot r, position p
holds token p. Rows that leave are filled by moving later ones (`move`); the step's tensors stay where they are,
so a captured graph stays valid.

Legend: P prompts · T tokens of the longest · B rows decoding · R rows the cache has · S cache length · D head size
        Q query heads · V key/value heads · K = Q/V query heads that share a key head · L layers · M = P·T or B
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rune.engines.local.batch import Span
from rune.engines.local.network import Network, rotate


class Cache:
    """Keys and values of `rows` sequences of at most `length` tokens."""

    def __init__(self, network: Network, rows: int, length: int, *, layers: int = 0) -> None:
        shape = (layers or len(network.layers), rows, network.kv_heads, length, network.head_size)
        self.keys_LRVSD, self.values_LRVSD = _zeros(shape, network), _zeros(shape, network)
        self.rows, self.length = rows, length

    @staticmethod
    def row_bytes(network: Network, length: int) -> int:
        """Bytes of one row: 2 · layers · heads · D · length elements."""
        elements = 2 * len(network.layers) * network.kv_heads * network.head_size * length
        return elements * torch.finfo(network.dtype).bits // 8

    def cut(self, row: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Copies of keys and values [L, V, S, D] of `count` positions of a row."""
        keys_LVSD, values_LVSD = (
            tensor_LRVSD[:, row, :, first : first + count].clone()
            for tensor_LRVSD in (self.keys_LRVSD, self.values_LRVSD)
        )
        return keys_LVSD, values_LVSD

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Row `sources[i]` becomes row `targets[i]`, all at once; only the first `length` positions are copied."""
        pairs = [(s, t) for s, t in zip(sources, targets, strict=True) if s != t]
        if not pairs:
            return
        source = torch.tensor([s for s, _ in pairs], device=self.keys_LRVSD.device)
        target = torch.tensor([t for _, t in pairs], device=self.keys_LRVSD.device)
        for tensor_LRVSD in (self.keys_LRVSD, self.values_LRVSD):
            for layer_RVSD in tensor_LRVSD[..., :length, :]:
                layer_RVSD.index_copy_(0, target, layer_RVSD.index_select(0, source))


def _zeros(shape: tuple[int, ...], network: Network) -> Tensor:
    """Zeros, not empty: a masked position has weight 0, and 0 × (whatever NaN lay there) would be NaN.

    On a CPU from the kernel, whose small zero pages take memory when they are first written: short rows beside a long
    one do not fill theirs. (`torch.zeros` writes every page; `numpy.zeros` asks for pages of 2 MB.)
    """
    if network.device.type != "cpu":
        return torch.zeros(shape, dtype=network.dtype, device=network.device)
    count = math.prod(shape)
    try:
        pages = mmap.mmap(-1, count * network.dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no room for {count * network.dtype.itemsize:,} bytes of keys or values") from error
    return torch.frombuffer(pages, dtype=network.dtype, count=count).view(shape)


class PromptAttention:
    """Causal attention over P right-padded prompts; writes each into the cache rows that share it.

    Padding needs no mask: it stands behind the real tokens, and a causal query never looks ahead. `before`: keys and
    values [L, P, V, N, D] of the N tokens that each prompt begins with; what is read is what follows them.
    """

    def __init__(
        self, network: Network, num_prompts: int, length: int, *, cache: Cache | None = None,
        rows_B: Tensor | None = None, prompt_of_row_B: Tensor | None = None,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.network, self.num_prompts, self.length, self.cache = network, num_prompts, length, cache
        self.rows_B, self.prompt_of_row_B, self.before = rows_B, prompt_of_row_B, before
        self.start = before[0].shape[-2] if before else 0
        cos_SD, sin_SD = network.rope_table()
        read = slice(self.start, self.start + length)
        self.cos_M1D = cos_SD[read].repeat(num_prompts, 1)[:, None]
        self.sin_M1D = sin_SD[read].repeat(num_prompts, 1)[:, None]
        self.mask_TS = None
        if before:
            everything = torch.ones(length, self.start + length, dtype=torch.bool, device=cos_SD.device)
            self.mask_TS = everything.tril(self.start)

    def __call__(self, layer: int, qkv_MO: Tensor) -> Tensor:
        network = self.network
        qk_MND, v_MVD = network.split_heads(qkv_MO)
        qk_PNTD = self._per_prompt(rotate(qk_MND, self.cos_M1D, self.sin_M1D))
        v_PVTD = self._per_prompt(v_MVD)
        q_PQTD, k_PVTD = qk_PNTD[:, : network.heads], qk_PNTD[:, network.heads :]
        if self.before:
            k_PVTD = torch.cat((self.before[0][layer], k_PVTD), dim=-2)
            v_PVTD = torch.cat((self.before[1][layer], v_PVTD), dim=-2)
        if self.cache is not None and self.rows_B is not None and self.prompt_of_row_B is not None:
            for store_LRVSD, new_PVTD in ((self.cache.keys_LRVSD, k_PVTD), (self.cache.values_LRVSD, v_PVTD)):
                target_RVTD = store_LRVSD[layer, :, :, : self.start + self.length]
                target_RVTD.index_copy_(0, self.rows_B, new_PVTD.index_select(0, self.prompt_of_row_B))
        if self.mask_TS is None:
            y_PQTD = functional.scaled_dot_product_attention(
                q_PQTD, k_PVTD, v_PVTD, is_causal=True, enable_gqa=network.heads != network.kv_heads
            )
        else:  # the fused kernels of a GPU take a mask, or shared key heads, and not both
            share = network.heads // network.kv_heads
            k_PQSD, v_PQSD = k_PVTD.repeat_interleave(share, dim=1), v_PVTD.repeat_interleave(share, dim=1)
            y_PQTD = functional.scaled_dot_product_attention(q_PQTD, k_PQSD, v_PQSD, attn_mask=self.mask_TS)
        return y_PQTD.transpose(1, 2).reshape(qkv_MO.shape[0], -1)

    def _per_prompt(self, x_MND: Tensor) -> Tensor:
        return x_MND.unflatten(0, (self.num_prompts, self.length)).transpose(1, 2)


class StepAttention:
    """One new token for each of the first B rows, with plain torch; span by span, each looking at its own window.

    The K query heads of one key head are taken as K queries of one sequence: keys are read once and never
    repeated, and the fused kernels take the mask.
    """

    def __init__(self, network: Network, cache: Cache, positions_B: Tensor, spans: Sequence[Span]) -> None:
        self.network, self.cache, self.positions_B, self.spans = network, cache, positions_B, spans
        cos_SD, sin_SD = network.rope_table()
        self.cos_B1D, self.sin_B1D = cos_SD[positions_B][:, None], sin_SD[positions_B][:, None]
        self.rows_B = torch.arange(positions_B.shape[0], device=positions_B.device)
        share = network.heads // network.kv_heads
        self.masks_B1KS = []
        for first, last, window in spans:
            seen_BS = torch.arange(window, device=positions_B.device)[None] <= positions_B[first:last, None]
            self.masks_B1KS.append(seen_BS[:, None, None].expand(-1, -1, share, -1))

    def __call__(self, layer: int, qkv_BO: Tensor) -> Tensor:
        network, rows = self.network, qkv_BO.shape[0]
        qk_BND, v_BVD = network.split_heads(qkv_BO)
        qk_BND = rotate(qk_BND, self.cos_B1D, self.sin_B1D)
        keys_RVSD, values_RVSD = self.cache.keys_LRVSD[layer], self.cache.values_LRVSD[layer]
        keys_RVSD[self.rows_B, :, self.positions_B] = qk_BND[:, network.heads :]
        values_RVSD[self.rows_B, :, self.positions_B] = v_BVD
        q_BVKD = qk_BND[:, : network.heads].unflatten(1, (network.kv_heads, -1))
        parts_BVKD = [
            functional.scaled_dot_product_attention(
                q_BVKD[first:last],
                keys_RVSD[first:last, :, :window],
                values_RVSD[first:last, :, :window],
                attn_mask=mask_B1KS,
            )
            for (first, last, window), mask_B1KS in zip(self.spans, self.masks_B1KS, strict=True)
        ]
        y_BVKD = parts_BVKD[0] if len(parts_BVKD) == 1 else torch.cat(parts_BVKD)
        return y_BVKD.reshape(rows, -1)
