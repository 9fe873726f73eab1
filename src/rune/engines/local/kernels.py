# mypy: allow-untyped-defs
"""Triton kernels for the decode step: what plain torch does in a dozen launches, in one.

`StepAttention` stands in for `kv_cache.StepAttention`: one kernel rotates q and k and writes the cache, one attends
over each row's *own* length, through the table of its blocks where the cache is paged. So neither the longest row nor
the cache's length costs the others anything, and the kernels' shapes do not change as the batch grows longer. Two parts
of a row attend apart and are merged when few rows are left, so that the GPU stays busy (flash-decoding, Dao et al.
2023).

Legend: B rows · S positions · D head size · Q query heads · V key/value heads · K = Q/V · C parts of a row
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rune.engines.local import sampler
from rune.engines.local.blocks import BLOCK
from rune.engines.local.kv_cache import BlockCache, Cache
from rune.engines.local.network import Network

_BLOCK = 64  # positions read at a time


@triton.jit
def _rotate_and_store(
    qkv, cos, sin, positions, table, q_out, keys, values,
    cache_row_stride, cache_head_stride, table_row_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Program (row, head): query heads go to `q_out`, key heads to the cache, both rotated; values as they are.

    PAGE: positions of a block of the cache, whose stride is `cache_row_stride` then; 0: it has a slot for each row.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    lane = tl.arange(0, HALF)
    size: tl.constexpr = 2 * HALF
    position = tl.load(positions + row)
    source = qkv + row.to(tl.int64) * (HEADS + 2 * KV_HEADS) * size + head * size
    left, right = tl.load(source + lane), tl.load(source + HALF + lane)
    if PAGE == 0:
        slot = row.to(tl.int64) * cache_row_stride + position * size
    else:
        block = tl.load(table + row.to(tl.int64) * table_row_stride + position // PAGE).to(tl.int64)
        slot = block * cache_row_stride + (position % PAGE) * KV_HEADS * size
    if head >= HEADS + KV_HEADS:
        target = values + slot + (head - HEADS - KV_HEADS) * cache_head_stride
        tl.store(target + lane, left)
        tl.store(target + HALF + lane, right)
    else:
        table = position * size
        cos_l, cos_r = tl.load(cos + table + lane).to(tl.float32), tl.load(cos + table + HALF + lane).to(tl.float32)
        sin_l, sin_r = tl.load(sin + table + lane).to(tl.float32), tl.load(sin + table + HALF + lane).to(tl.float32)
        a, b = left.to(tl.float32), right.to(tl.float32)
        new_l, new_r = a * cos_l - b * sin_l, b * cos_r + a * sin_r
        if head < HEADS:
            target = q_out + row.to(tl.int64) * HEADS * size + head * size
            tl.store(target + lane, new_l.to(q_out.dtype.element_ty))
            tl.store(target + HALF + lane, new_r.to(q_out.dtype.element_ty))
        else:
            target = keys + slot + (head - HEADS) * cache_head_stride
            tl.store(target + lane, new_l.to(keys.dtype.element_ty))
            tl.store(target + HALF + lane, new_r.to(keys.dtype.element_ty))


@triton.jit
def _attend(
    q, keys, values, positions, table, partial, maxima, sums, scale,
    cache_row_stride, cache_head_stride, table_row_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, SHARE: tl.constexpr, SHARE_PADDED: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr, EXACT: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Program (row, key head, part): online softmax of SHARE queries over this part of the row's positions."""
    row, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions + row).to(tl.int32) + 1
    chunk = tl.cdiv(tl.cdiv(length, PARTS), BLOCK) * BLOCK
    first, last = part * chunk, tl.minimum((part + 1) * chunk, length)
    query = tl.arange(0, SHARE_PADDED)
    lane = tl.arange(0, SIZE)
    place = tl.arange(0, BLOCK)
    wanted = query[:, None] < SHARE
    head = kv_head * SHARE + query
    q_KD = tl.load(q + (row.to(tl.int64) * HEADS + head[:, None]) * SIZE + lane[None, :], mask=wanted, other=0.0)
    blocks = table + row.to(tl.int64) * table_row_stride  # of this row, where the cache is paged
    slot = kv_head.to(tl.int64) * cache_head_stride
    if PAGE == 0:
        slot += row.to(tl.int64) * cache_row_stride
    best_K = tl.full((SHARE_PADDED,), float("-inf"), tl.float32)
    sum_K = tl.zeros((SHARE_PADDED,), tl.float32)
    y_KD = tl.zeros((SHARE_PADDED, SIZE), tl.float32)
    for start in range(first, last, BLOCK):
        spot = start + place
        seen = spot < last
        if PAGE == 0:
            at_S = slot + spot * SIZE
        else:
            block_S = tl.load(blocks + spot // PAGE, mask=seen, other=0).to(tl.int64)
            at_S = slot + block_S * cache_row_stride + (spot % PAGE) * KV_HEADS * SIZE
        k_DS = tl.load(keys + at_S[None, :] + lane[:, None], mask=seen[None, :], other=0.0)
        if EXACT:
            s_KS = tl.dot(q_KD, k_DS, input_precision="ieee") * scale
        else:
            s_KS = tl.dot(q_KD, k_DS) * scale
        s_KS = tl.where(seen[None, :], s_KS, float("-inf"))
        new_K = tl.maximum(best_K, tl.max(s_KS, 1))
        w_KS = tl.exp(s_KS - new_K[:, None])
        fade_K = tl.exp(best_K - new_K)
        v_SD = tl.load(values + at_S[:, None] + lane[None, :], mask=seen[:, None], other=0.0)
        if EXACT:
            y_KD = y_KD * fade_K[:, None] + tl.dot(w_KS, v_SD, input_precision="ieee")
        else:
            y_KD = y_KD * fade_K[:, None] + tl.dot(w_KS.to(v_SD.dtype), v_SD)
        sum_K = sum_K * fade_K + tl.sum(w_KS, 1)
        best_K = new_K
    if PARTS == 1:
        y_KD = y_KD / sum_K[:, None]
    out = (row.to(tl.int64) * HEADS + head) * PARTS + part
    tl.store(partial + out[:, None] * SIZE + lane[None, :], y_KD.to(partial.dtype.element_ty), mask=wanted)
    if PARTS > 1:
        tl.store(maxima + out, best_K, mask=query < SHARE)
        tl.store(sums + out, sum_K, mask=query < SHARE)


@triton.jit
def _merge(partial, maxima, sums, y, SIZE: tl.constexpr, PARTS: tl.constexpr):
    """Program (row · head): the parts of one query, weighted by their share of the softmax."""
    query = tl.program_id(0).to(tl.int64)
    part, lane = tl.arange(0, PARTS), tl.arange(0, SIZE)
    top_C = tl.load(maxima + query * PARTS + part)
    weight_C = tl.exp(top_C - tl.max(top_C, 0))  # an empty part has maximum −inf: weight 0
    total = tl.sum(weight_C * tl.load(sums + query * PARTS + part), 0)
    y_CD = tl.load(partial + (query * PARTS + part[:, None]) * SIZE + lane[None, :])
    tl.store(y + query * SIZE + lane, (tl.sum(y_CD * weight_C[:, None], 0) / total).to(y.dtype.element_ty))


@triton.jit
def _silu_mul(gate_up, out, width, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _chunk_mass(logits, best, sums, size, num_chunks, inverse_temperature, WIDTH: tl.constexpr, CHUNKS: tl.constexpr):
    """Program (row, block of chunks): the chunks' maxima and sums of exponentials, each logit read once."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * CHUNKS + tl.arange(0, CHUNKS)
    place = chunk[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    x_CW = tl.load(logits + row * size + place, mask=place < size, other=float("-inf")).to(tl.float32)
    best_C = tl.max(x_CW, 1)
    sum_C = tl.sum(tl.exp((x_CW - best_C[:, None]) * inverse_temperature), 1)
    tl.store(best + row * num_chunks + chunk, best_C, mask=chunk < num_chunks)
    tl.store(sums + row * num_chunks + chunk, sum_C, mask=chunk < num_chunks)


def chunk_mass(logits_NV: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`sampler.chunk_mass` in one pass over the logits."""
    rows, size = logits_NV.shape
    num_chunks = triton.cdiv(size, sampler.WIDTH)
    best_NC = logits_NV.new_empty(rows, num_chunks, dtype=torch.float32)
    sums_NC = torch.empty_like(best_NC)
    _chunk_mass[(rows, triton.cdiv(num_chunks, 16))](
        logits_NV, best_NC, sums_NC, size, num_chunks, 1.0 / temperature, WIDTH=sampler.WIDTH, CHUNKS=16, num_warps=4
    )
    return best_NC, sums_NC


def silu_mul(gate_up_MO: Tensor) -> Tensor:
    width = gate_up_MO.shape[1] // 2
    out_MF = gate_up_MO.new_empty(gate_up_MO.shape[0], width)
    _silu_mul[(gate_up_MO.shape[0], triton.cdiv(width, 1024))](gate_up_MO, out_MF, width, BLOCK=1024, num_warps=4)
    return out_MF


class StepAttention:
    """One new token for each of the first B rows. No spans here: every row knows its length."""

    def __init__(self, network: Network, cache: Cache | BlockCache, positions_B: Tensor) -> None:
        self.network, self.cache, self.positions_B = network, cache, positions_B
        self.cos_SD, self.sin_SD = network.rope_table()
        # Few rows cannot fill a GPU of ~130 processors: then a row's positions are shared out.
        self.parts = 1 if positions_B.shape[0] * network.kv_heads >= 128 else 8

    def __call__(self, layer: int, qkv_BO: Tensor) -> Tensor:
        network, rows, size, parts = self.network, qkv_BO.shape[0], self.network.head_size, self.parts
        keys, values, row_stride, head_stride, table, table_stride, page = self._cache_of(layer)
        q_BQD = qkv_BO.new_empty(rows, network.heads, size)
        _rotate_and_store[(rows, network.heads + 2 * network.kv_heads)](
            qkv_BO, self.cos_SD, self.sin_SD, self.positions_B, table, q_BQD, keys, values,
            row_stride, head_stride, table_stride,
            HEADS=network.heads, KV_HEADS=network.kv_heads, HALF=size // 2, PAGE=page, num_warps=1,
        )  # fmt: skip
        y_BQD = torch.empty_like(q_BQD)
        if parts == 1:
            partial, maxima, sums = y_BQD, y_BQD, y_BQD
        else:
            partial = q_BQD.new_empty(rows, network.heads, parts, size, dtype=torch.float32)
            maxima = q_BQD.new_empty(rows, network.heads, parts, dtype=torch.float32)
            sums = torch.empty_like(maxima)
        share = network.heads // network.kv_heads
        _attend[(rows, network.kv_heads, parts)](
            q_BQD, keys, values, self.positions_B, table, partial, maxima, sums, size**-0.5,
            row_stride, head_stride, table_stride,
            HEADS=network.heads, KV_HEADS=network.kv_heads, SHARE=share,
            SHARE_PADDED=max(16, triton.next_power_of_2(share)), SIZE=size, BLOCK=_BLOCK, PARTS=parts,
            EXACT=qkv_BO.dtype == torch.float32, PAGE=page, num_warps=4,
        )  # fmt: skip
        if parts > 1:
            _merge[(rows * network.heads,)](partial, maxima, sums, y_BQD, SIZE=size, PARTS=parts, num_warps=1)
        return y_BQD.view(rows, -1)

    def _cache_of(self, layer: int) -> tuple[Tensor, Tensor, int, int, Tensor, int, int]:
        """Keys, values, strides of a row (or block) and of a head, the table and its stride, positions of a block."""
        cache = self.cache
        if isinstance(cache, BlockCache):
            keys_NWVD, values_NWVD, table_RC = cache.keys_LNWVD[layer], cache.values_LNWVD[layer], cache.table_RC
            return keys_NWVD, values_NWVD, keys_NWVD.stride(0), keys_NWVD.stride(2), table_RC, table_RC.stride(0), BLOCK
        keys_RVSD, values_RVSD = cache.keys_LRVSD[layer], cache.values_LRVSD[layer]
        return keys_RVSD, values_RVSD, keys_RVSD.stride(0), keys_RVSD.stride(1), self.positions_B, 0, 0  # no table


@torch.inference_mode()
def check(network: Network, *, paged: bool = False) -> None:
    """Compile every kernel and hold it against plain torch on this device; raises where they differ.

    `paged`: attention through a table instead of over slots.
    """
    from rune.engines.local import kv_cache
    from rune.engines.local import network as _network
    from rune.engines.local.batch import Span

    device, dtype = network.device, network.dtype
    rng = torch.Generator(device=device).manual_seed(0)
    atol = 1e-4 if dtype == torch.float32 else 8e-2  # bf16 rounds values of 5 to 0.02
    width = (network.heads + 2 * network.kv_heads) * network.head_size
    for rows in (3, -(-128 // network.kv_heads)):
        lengths_B = torch.randint(0, 190, (rows,), generator=rng, device=device)
        ours, plain = Cache(network, rows, 192, layers=1), Cache(network, rows, 192, layers=1)
        ours.keys_LRVSD.normal_(generator=rng)
        ours.values_LRVSD.normal_(generator=rng)
        plain.keys_LRVSD.copy_(ours.keys_LRVSD)
        plain.values_LRVSD.copy_(ours.values_LRVSD)
        qkv_BO = torch.randn(rows, width, generator=rng, device=device, dtype=torch.float32).to(dtype)
        expected = kv_cache.StepAttention(network, plain, lengths_B, [Span(0, rows, 192)])(0, qkv_BO)
        if paged:
            blocks = _as_blocks(network, ours, rng)
            got = StepAttention(network, blocks, lengths_B)(0, qkv_BO)
            pairs = ((blocks.keys_LNWVD, ours.keys_LRVSD), (blocks.values_LNWVD, ours.values_LRVSD))
            for pool_LNWVD, ours_LRVSD in pairs:
                ours_LRVSD[0] = pool_LNWVD[0][blocks.table_RC.long()].flatten(1, 2).transpose(1, 2)
        else:
            got = StepAttention(network, ours, lengths_B)(0, qkv_BO)
        _same("attention", got, expected, atol)
        _same("cache", ours.keys_LRVSD, plain.keys_LRVSD, atol)
        _same("cache", ours.values_LRVSD, plain.values_LRVSD, 0.0)
    gate_up_MO = torch.randn(5, 2 * network.ffn, generator=rng, device=device, dtype=torch.float32).to(dtype)
    _same("silu", silu_mul(gate_up_MO), _network.silu_mul(gate_up_MO), 2 * atol)
    logits_NV = torch.randn(5, network.vocabulary, generator=rng, device=device, dtype=torch.float32).to(dtype) * 4
    for got, expected in zip(chunk_mass(logits_NV, 0.8), sampler.chunk_mass(logits_NV, 0.8), strict=True):
        _same("chunk mass", got, expected, 1e-2)


def _as_blocks(network: Network, cache: Cache, rng: torch.Generator) -> BlockCache:
    """The keys and values of one layer in blocks that lie about, among some of nobody's."""
    each = cache.length // BLOCK
    found = BlockCache(network, cache.rows, cache.length, cache.rows * each + 3, layers=1)
    order_N = 1 + torch.randperm(found.blocks, generator=rng, device=network.device)[: cache.rows * each]
    found.table_RC.copy_(order_N.view(cache.rows, each))
    for pool_LNWVD, cache_LRVSD in (
        (found.keys_LNWVD, cache.keys_LRVSD),
        (found.values_LNWVD, cache.values_LRVSD),
    ):
        pool_LNWVD.fill_(1e4)  # whoever looks into a block of nobody's is seen
        pool_LNWVD[0, order_N] = cache_LRVSD[0].transpose(1, 2).unflatten(1, (each, BLOCK)).flatten(0, 1)
    return found


def _same(what: str, got: Tensor, expected: Tensor, atol: float) -> None:
    worst = (got.float() - expected.float()).abs().max().item()
    if not worst <= atol:
        raise RuntimeError(f"the {what} kernel differs from plain torch by {worst:.2g}")
