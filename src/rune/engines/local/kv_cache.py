"""Where keys and values live, and the two ways to attend: over whole prompts, and one token a row.

Two layouts, each of tensors that stay where they are, so a captured graph stays valid:

`Cache`, static: `[layer, row, head, position, D]`; row r of the batch owns slot r whole, position p holds token p. Rows
that leave are filled by moving later ones (`move`).
`BlockCache`, paged: `[layer, block, position in it, head, D]`, and a table [row, c] that says which block has positions
32·c … 32·c + 31 of row r. Rows move with their line of the table. Which blocks are whose is the host's (`blocks.py`).

Legend: P prompts · T tokens of the longest · B rows decoding · R rows the cache has · S cache length · D head size
        Q query heads · V key/value heads · K = Q/V query heads that share a key head · L layers · M = P·T or B
        N blocks · C blocks of a row · W positions of a block
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from rune.engines.local.batch import Span
from rune.engines.local.blocks import BLOCK, Copies, needed
from rune.engines.local.network import Network, rotate

Store = Callable[[int, Tensor, Tensor], None]  # layer, and keys and values [P, V, S, D] of prompts from their start
_GATHERED = 1 << 20  # elements of keys that are brought together at a time on a CPU: they stay in its cache


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

    @property
    def bytes(self) -> int:
        return 2 * self.keys_LRVSD.numel() * self.keys_LRVSD.element_size()

    def cut(self, row: int, first: int, count: int) -> Copies:
        """Copies of keys and values of `count` positions of a row."""
        keys_LVSD, values_LVSD = (
            tensor_LRVSD[:, row, :, first : first + count].clone()
            for tensor_LRVSD in (self.keys_LRVSD, self.values_LRVSD)
        )
        return Copies(keys_LVSD, values_LVSD)

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

    def store(self, rows_B: Tensor, prompt_of_row_B: Tensor) -> Store:
        """Writes prompts into the rows that share them."""

        def write(layer: int, keys_PVSD: Tensor, values_PVSD: Tensor) -> None:
            for store_LRVSD, new_PVSD in ((self.keys_LRVSD, keys_PVSD), (self.values_LRVSD, values_PVSD)):
                target_RVSD = store_LRVSD[layer, :, :, : new_PVSD.shape[2]]
                target_RVSD.index_copy_(0, rows_B, new_PVSD.index_select(0, prompt_of_row_B))

        return write


class BlockCache:
    """Keys and values in `blocks` blocks and block 0, for `rows` rows that reach at most `length` tokens each."""

    def __init__(self, network: Network, rows: int, length: int, blocks: int, *, layers: int = 0) -> None:
        shape = (layers or len(network.layers), blocks + 1, BLOCK, network.kv_heads, network.head_size)
        self.keys_LNWVD, self.values_LNWVD = _zeros(shape, network), _zeros(shape, network)
        assert self.keys_LNWVD.is_contiguous()
        self.table_RC = torch.zeros(rows, needed(length), dtype=torch.int32, device=network.device)
        self.rows, self.length, self.blocks = rows, BLOCK * needed(length), blocks

    @property
    def bytes(self) -> int:
        return 2 * self.keys_LNWVD.numel() * self.keys_LNWVD.element_size()

    def trim(self, runs: Sequence[range]) -> None:
        """On a CPU: give the pages of blocks back that nobody has. They hold zeros when they are next looked at."""
        for pool_LNWVD in (self.keys_LNWVD, self.values_LNWVD):
            block_bytes = pool_LNWVD[0, 0].numel() * pool_LNWVD.element_size()
            for layer in range(pool_LNWVD.shape[0]):
                first = layer * pool_LNWVD.shape[1]
                for run in runs:
                    _forget_pages(pool_LNWVD, (first + run.start) * block_bytes, (first + run.stop) * block_bytes)

    def read(self, blocks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Keys and values [L, P, V, S, D] of P sequences of equally many blocks."""
        index_N = torch.tensor(blocks, device=self.table_RC.device).flatten()
        keys_LPVSD, values_LPVSD = (
            pool_LNWVD.index_select(1, index_N).flatten(1, 2).unflatten(1, (len(blocks), -1)).transpose(2, 3)
            for pool_LNWVD in (self.keys_LNWVD, self.values_LNWVD)
        )
        return keys_LPVSD, values_LPVSD

    def store(self, start: int, sources: Sequence[int], targets: Sequence[int]) -> Store:
        """Writes what stands behind the first `start` tokens (whole blocks) of prompts.

        Counting the blocks of the first prompt, then those of the second, each as long as the longest, number
        `sources[i]` goes to block `targets[i]` of the pool.
        """
        source_N = torch.tensor(sources, device=self.table_RC.device)
        target_N = torch.tensor(targets, device=self.table_RC.device)

        def write(layer: int, keys_PVSD: Tensor, values_PVSD: Tensor) -> None:
            for pool_LNWVD, new_PVSD in ((self.keys_LNWVD, keys_PVSD), (self.values_LNWVD, values_PVSD)):
                new_PSVD = new_PVSD[:, :, start:].transpose(1, 2)
                new_PSVD = functional.pad(new_PSVD, (0, 0, 0, 0, 0, -new_PSVD.shape[1] % BLOCK))
                new_NWVD = new_PSVD.unflatten(1, (-1, BLOCK)).flatten(0, 1)
                pool_LNWVD[layer].index_copy_(0, target_N, new_NWVD.index_select(0, source_N))

        return write


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


def _forget_pages(tensor: Tensor, first: int, last: int) -> None:
    """The whole pages among the bytes `first` … `last` − 1 of a tensor that lies in memory of the system's own."""
    start = tensor.data_ptr()
    first, last = (start + first + mmap.PAGESIZE - 1) // mmap.PAGESIZE, (start + last) // mmap.PAGESIZE
    if first < last:
        _libc().madvise(first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE, mmap.MADV_DONTNEED)


@functools.cache
def _libc() -> ctypes.CDLL:
    found = ctypes.CDLL(None, use_errno=True)
    found.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return found


class PromptAttention:
    """Causal attention over P right-padded prompts; hands their keys and values to `store`.

    Padding needs no mask: it stands behind the real tokens, and a causal query never looks ahead. `before`: keys and
    values [L, P, V, N, D] of the N tokens that each prompt begins with; what is read is what follows them.
    """

    def __init__(
        self, network: Network, num_prompts: int, length: int, *, store: Store | None = None,
        before: tuple[Tensor, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.network, self.num_prompts, self.length = network, num_prompts, length
        self.store, self.before = store, before
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
        if self.store is not None:
            self.store(layer, k_PVTD, v_PVTD)
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

    def __init__(self, network: Network, cache: Cache | BlockCache, positions_B: Tensor, spans: Sequence[Span]) -> None:
        self.network, self.positions_B = network, positions_B
        cos_SD, sin_SD = network.rope_table()
        self.cos_B1D, self.sin_B1D = cos_SD[positions_B][:, None], sin_SD[positions_B][:, None]
        self.spans = spans
        self.cache: _Rows | _Paged
        self.cache = _Rows(cache, positions_B, spans) if isinstance(cache, Cache) else _Paged(cache, positions_B, spans)
        share = network.heads // network.kv_heads
        self.masks_B1KS = []
        for first, last, window in spans:
            seen_BS = torch.arange(window, device=positions_B.device)[None] <= positions_B[first:last, None]
            self.masks_B1KS.append(seen_BS[:, None, None].expand(-1, -1, share, -1))

    def __call__(self, layer: int, qkv_BO: Tensor) -> Tensor:
        network, rows = self.network, qkv_BO.shape[0]
        qk_BND, v_BVD = network.split_heads(qkv_BO)
        qk_BND = rotate(qk_BND, self.cos_B1D, self.sin_B1D)
        self.cache.write(layer, qk_BND[:, network.heads :], v_BVD)
        q_BVKD = qk_BND[:, : network.heads].unflatten(1, (network.kv_heads, -1))
        parts_BVKD = [
            functional.scaled_dot_product_attention(
                q_BVKD[span.first : span.last], *self.cache.read(layer, number), attn_mask=mask_B1KS
            )
            for number, (span, mask_B1KS) in enumerate(zip(self.spans, self.masks_B1KS, strict=True))
        ]
        y_BVKD = parts_BVKD[0] if len(parts_BVKD) == 1 else torch.cat(parts_BVKD)
        return y_BVKD.reshape(rows, -1)


class _Rows:
    """A step's way into the static cache."""

    def __init__(self, cache: Cache, positions_B: Tensor, spans: Sequence[Span]) -> None:
        self.cache, self.positions_B, self.spans = cache, positions_B, spans
        self.rows_B = torch.arange(positions_B.shape[0], device=positions_B.device)

    def write(self, layer: int, keys_BVD: Tensor, values_BVD: Tensor) -> None:
        self.cache.keys_LRVSD[layer][self.rows_B, :, self.positions_B] = keys_BVD
        self.cache.values_LRVSD[layer][self.rows_B, :, self.positions_B] = values_BVD

    def read(self, layer: int, span: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, V, S, D] of a span's rows."""
        first, last, window = self.spans[span]
        cache = self.cache
        return cache.keys_LRVSD[layer, first:last, :, :window], cache.values_LRVSD[layer, first:last, :, :window]


class _Paged:
    """A step's way into the paged cache: what a span looks at is brought together, layer by layer."""

    def __init__(self, cache: BlockCache, positions_B: Tensor, spans: Sequence[Span]) -> None:
        self.cache, self.spans = cache, spans
        rows = positions_B.shape[0]
        block_B = cache.table_RC[:rows].gather(1, (positions_B // BLOCK)[:, None])[:, 0].long()
        self.spots_B = block_B * BLOCK + positions_B % BLOCK
        self.blocks_N = [cache.table_RC[first:last, : window // BLOCK].flatten() for first, last, window in spans]
        most = max(blocks_N.shape[0] for blocks_N in self.blocks_N)
        self.gathered_NWVD = [
            pool_LNWVD.new_empty(most, *pool_LNWVD.shape[2:]) for pool_LNWVD in (cache.keys_LNWVD, cache.values_LNWVD)
        ]

    def write(self, layer: int, keys_BVD: Tensor, values_BVD: Tensor) -> None:
        self.cache.keys_LNWVD[layer].flatten(0, 1)[self.spots_B] = keys_BVD
        self.cache.values_LNWVD[layer].flatten(0, 1)[self.spots_B] = values_BVD

    def read(self, layer: int, span: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, V, S, D] of a span's rows."""
        blocks_N, rows = self.blocks_N[span], self.spans[span].last - self.spans[span].first
        found = []
        for pool_LNWVD, gathered_NWVD in zip(
            (self.cache.keys_LNWVD, self.cache.values_LNWVD), self.gathered_NWVD, strict=True
        ):
            target_NWVD = gathered_NWVD[: blocks_N.shape[0]]
            torch.index_select(pool_LNWVD[layer], 0, blocks_N, out=target_NWVD)
            found.append(target_NWVD.flatten(0, 1).unflatten(0, (rows, -1)).transpose(1, 2))
        return found[0], found[1]


def cut_small(spans: Sequence[Span], width: int) -> list[Span]:
    """Spans of a batch, cut where one looks at more than fits in a CPU's cache; `width`: elements of a position."""
    found = []
    for first, last, window in spans:
        rows = max(1, _GATHERED // (window * width))
        found += [Span(start, min(start + rows, last), window) for start in range(first, last, rows)]
    return found
