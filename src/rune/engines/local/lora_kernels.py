# mypy: allow-untyped-defs
"""Triton kernels for the adapters of a decode step: every group its own length, base rows included, nothing dead.

The batch is a table of blocks (first row, rows ≤ 16, adapter); base rows are blocks of adapter −1. A fused linear
takes one launch or two. Two: `_shrink` multiplies rows by A for all its parts at once (q, k, v share their input),
the inputs shared out so that a long one fills the GPU; `_expand` sums those shares and adds B's product into the
base output. One: `_both`, where A is so short that every program of the outputs may as well multiply by it again.
For gate·up the second launch also takes silu(gate)·up, so the wide output is read once and never written back. This
is the segmented product of Punica (Chen et al. 2023) over `adapter_pool`'s rows.
`bench/adapter_kernels.py` times the tilings; every offset and stride is a multiple of 16 elements (`adapter_pool` sees
to it), which is what wide loads need.

Legend: M rows of the batch · N blocks · G adapters · E elements of one adapter · I inputs · O outputs · R rank
        S shares of the inputs · C parts·R columns of A · F feed-forward
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rune.adapters.peft import Adapter, Pair
from rune.engines.local.adapter_pool import KIND, AdapterPool
from rune.engines.local.batch import BLOCK_ROWS
from rune.engines.local.network import Network, silu_mul

_TILE = 64  # columns of A, or ranks of B, taken at a time


class Tiling(NamedTuple):
    """How the products of one kind are cut up."""

    single: bool  # one launch: every program multiplies by the whole of A itself
    inputs: int  # taken at once; with two launches, by one program of the first
    outputs: int  # columns of a program
    warps: int


TILINGS: Mapping[str, Tiling] = {
    "qkv": Tiling(True, 256, 256, 4),
    "o": Tiling(True, 256, 256, 4),
    "gate_up": Tiling(False, 512, 256, 4),
    "down": Tiling(False, 512, 256, 4),
}


@triton.jit
def _times_a(
    x, a, place, wanted, r, start, inputs, x_stride,
    COLUMNS: tl.constexpr, LIMIT: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, TILE: tl.constexpr,
    ROWS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """[ROWS, TILE] of x·A over SPAN inputs from `start` on, STEP at a time."""
    h_MR = tl.zeros((ROWS, TILE), tl.float32)
    for done in range(0, SPAN, STEP):
        i = start + done + tl.arange(0, STEP)
        x_MI = tl.load(
            x + place[:, None] * x_stride + i[None, :], mask=wanted[:, None] & (i < inputs)[None, :], other=0.0
        )
        a_IR = tl.load(
            a + i[:, None] * COLUMNS + r[None, :], mask=(i < inputs)[:, None] & (r < LIMIT)[None, :], other=0.0
        )
        if EXACT:
            h_MR += tl.dot(x_MI, a_IR, input_precision="ieee")
        else:
            h_MR += tl.dot(x_MI, a_IR)
    return h_MR


@triton.jit
def _part(
    tile, offset_0, offset_1, offset_2, size_0, size_1, size_2, BLOCK: tl.constexpr,
    TILES_0: tl.constexpr, TILES_1: tl.constexpr,
):  # fmt: skip
    """Whose outputs a tile is: (part, where its B begins, its columns in the part, the part's size, where it lies)."""
    second, third = tile >= TILES_0, tile >= TILES_0 + TILES_1
    offset = tl.where(third, offset_2, tl.where(second, offset_1, offset_0))
    size = tl.where(third, size_2, tl.where(second, size_1, size_0))
    left = tl.where(third, size_0 + size_1, tl.where(second, size_0, 0))
    before = tl.where(third, TILES_0 + TILES_1, tl.where(second, TILES_0, 0))
    part = second.to(tl.int32) + third.to(tl.int32)
    return part, offset, (tile - before) * BLOCK + tl.arange(0, BLOCK), size, left


@triton.jit(do_not_specialize=["num_rows"])
def _shrink(
    x, adapters, table, partial, elements, offset, inputs, num_rows, x_stride,
    COLUMNS: tl.constexpr, TILE: tl.constexpr, SPAN: tl.constexpr, STEP: tl.constexpr, ROWS: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Program (block, share, tile of columns): x·A over this share of the inputs."""
    block, share = tl.program_id(0), tl.program_id(1)
    start, count, slot = tl.load(table + 3 * block), tl.load(table + 3 * block + 1), tl.load(table + 3 * block + 2)
    if slot >= 0:
        row, column = tl.arange(0, ROWS), tl.program_id(2) * TILE + tl.arange(0, TILE)
        place, wanted = (start + row).to(tl.int64), row < count
        h_MC = _times_a(
            x, adapters + slot.to(tl.int64) * elements + offset, place, wanted, column, share * SPAN, inputs, x_stride,
            COLUMNS, COLUMNS, SPAN, STEP, TILE, ROWS, EXACT,
        )  # fmt: skip
        target = partial + (share * num_rows + place[:, None]) * COLUMNS + column[None, :]
        tl.store(target, h_MC, mask=wanted[:, None] & (column < COLUMNS)[None, :])


@triton.jit
def _product(
    partial, b, place, wanted, num_rows, first, column, size, b_stride,
    RANK: tl.constexpr, COLUMNS: tl.constexpr, SHARES: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """[ROWS, BLOCK] of (Σ shares of x·A)·B; `first` is the part's first column of x·A."""
    y_MO = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in tl.static_range(0, RANK, TILE):
        r = tile + tl.arange(0, TILE)
        inside = wanted[:, None] & (r < RANK)[None, :]
        b_RO = tl.load(
            b + r[:, None] * b_stride + column[None, :], mask=(r < RANK)[:, None] & (column < size)[None, :], other=0.0
        )
        h_MR = tl.zeros((ROWS, TILE), tl.float32)
        for share in tl.static_range(0, SHARES):
            source = partial + (share * num_rows + place[:, None]) * COLUMNS + first + r[None, :]
            h_MR += tl.load(source, mask=inside, other=0.0)
        if EXACT:
            y_MO += tl.dot(h_MR, b_RO, input_precision="ieee")
        else:
            y_MO += tl.dot(h_MR.to(b_RO.dtype), b_RO)
    return y_MO


@triton.jit(do_not_specialize=["num_rows"])
def _expand(
    partial, adapters, table, out, elements, num_rows, out_stride, b_stride,
    offset_0, offset_1, offset_2, size_0, size_1, size_2,
    TILES_0: tl.constexpr, TILES_1: tl.constexpr,
    RANK: tl.constexpr, COLUMNS: tl.constexpr, SHARES: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Program (block, tile of one part's outputs): out += h·B."""
    block = tl.program_id(0)
    start, count, slot = tl.load(table + 3 * block), tl.load(table + 3 * block + 1), tl.load(table + 3 * block + 2)
    if slot >= 0:
        part, offset, column, size, left = _part(
            tl.program_id(1), offset_0, offset_1, offset_2, size_0, size_1, size_2, BLOCK, TILES_0, TILES_1
        )
        row = tl.arange(0, ROWS)
        place, wanted = (start + row).to(tl.int64), row < count
        target = out + place[:, None] * out_stride + left + column[None, :]
        inside = wanted[:, None] & (column < size)[None, :]
        base_MO = tl.load(target, mask=inside, other=0.0).to(tl.float32)
        y_MO = _product(
            partial, adapters + slot.to(tl.int64) * elements + offset, place, wanted, num_rows, part * RANK, column,
            size, b_stride, RANK, COLUMNS, SHARES, TILE, ROWS, BLOCK, EXACT,
        )  # fmt: skip
        tl.store(target, (base_MO + y_MO).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _both(
    x, adapters, table, out, elements, offset_a, inputs, x_stride, out_stride, b_stride,
    offset_0, offset_1, offset_2, size_0, size_1, size_2,
    TILES_0: tl.constexpr, TILES_1: tl.constexpr,
    RANK: tl.constexpr, COLUMNS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
    STEP: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Program (block, tile of one part's outputs): out += x·A·B, with its part's columns of A only. RANK ≤ TILE."""
    block = tl.program_id(0)
    start, count, slot = tl.load(table + 3 * block), tl.load(table + 3 * block + 1), tl.load(table + 3 * block + 2)
    if slot >= 0:
        part, offset, column, size, left = _part(
            tl.program_id(1), offset_0, offset_1, offset_2, size_0, size_1, size_2, BLOCK, TILES_0, TILES_1
        )
        row, r = tl.arange(0, ROWS), tl.arange(0, TILE)
        place, wanted = (start + row).to(tl.int64), row < count
        target = out + place[:, None] * out_stride + left + column[None, :]
        inside = wanted[:, None] & (column < size)[None, :]
        base_MO = tl.load(target, mask=inside, other=0.0).to(tl.float32)
        mine = adapters + slot.to(tl.int64) * elements
        b_RO = tl.load(
            mine + offset + r[:, None] * b_stride + column[None, :],
            mask=(r < RANK)[:, None] & (column < size)[None, :], other=0.0,
        )  # fmt: skip
        h_MR = _times_a(
            x, mine + offset_a + part * RANK, place, wanted, r, 0, inputs, x_stride,
            COLUMNS, RANK, SPAN, STEP, TILE, ROWS, EXACT,
        )  # fmt: skip
        if EXACT:
            y_MO = tl.dot(h_MR, b_RO, input_precision="ieee")
        else:
            y_MO = tl.dot(h_MR.to(b_RO.dtype), b_RO)
        tl.store(target, (base_MO + y_MO).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _expand_gate(
    partial, adapters, table, gate_up, out, elements, num_rows, width, offset_gate, offset_up,
    RANK: tl.constexpr, SHARES: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Program (block, tile): silu(gate + h·B)·(up + h·B'); blocks of the base skip the products."""
    block = tl.program_id(0)
    start, count, slot = tl.load(table + 3 * block), tl.load(table + 3 * block + 1), tl.load(table + 3 * block + 2)
    row, column = tl.arange(0, ROWS), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place, wanted = (start + row).to(tl.int64), row < count
    inside = wanted[:, None] & (column < width)[None, :]
    source = gate_up + place[:, None] * 2 * width + column[None, :]
    gate_MF = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up_MF = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    if slot >= 0:
        mine = adapters + slot.to(tl.int64) * elements
        gate_MF += _product(
            partial, mine + offset_gate, place, wanted, num_rows, 0, column, width, width,
            RANK, 2 * RANK, SHARES, TILE, ROWS, BLOCK, EXACT,
        )  # fmt: skip
        up_MF += _product(
            partial, mine + offset_up, place, wanted, num_rows, RANK, column, width, width,
            RANK, 2 * RANK, SHARES, TILE, ROWS, BLOCK, EXACT,
        )  # fmt: skip
    # Rounded as plain torch rounds the sum before it takes silu: the two paths then differ as little as they can.
    gate_MF = gate_MF.to(out.dtype.element_ty).to(tl.float32)
    up_MF = up_MF.to(out.dtype.element_ty).to(tl.float32)
    silu_MF = gate_MF / (1 + tl.exp(-gate_MF))
    tl.store(out + place[:, None] * width + column[None, :], (silu_MF * up_MF).to(out.dtype.element_ty), mask=inside)


class Ragged:
    """The activated adapters of `pool` over blocks of rows; stands in for `Grouped` in a decode step.

    `table_N3` (int32: first row, rows, adapter or −1) stays at its address; only its contents change.
    """

    def __init__(self, pool: AdapterPool, table_N3: Tensor, tilings: Mapping[str, Tiling] | None = None) -> None:
        self.pool, self.table_N3, self.adapters_GE = pool, table_N3, pool.active
        self.tilings = tilings or TILINGS
        self.exact = pool.dtype == torch.float32

    def add(self, layer: int, kind: str, x_MI: Tensor, out_MO: Tensor) -> None:
        blocks = self.pool.block_of(layer, kind)
        if blocks is None:
            return
        tiling, spec, rank = self.tilings[kind], self.pool.kinds[kind], self.pool.rank
        columns, sizes = rank * len(spec.parts), (*spec.parts, 0, 0)[:3]
        if spec.merged:  # part p's own block on the diagonal: rows from p·R, columns from where the part begins
            stride = sum(spec.parts)
            offsets = [blocks[1][0].offset + p * rank * stride + sum(sizes[:p]) for p in range(3)]
        else:
            stride = spec.parts[0]
            offsets = [block.offset for block in blocks[1]] + [0] * (3 - len(spec.parts))
        tiles = [triton.cdiv(size, tiling.outputs) for size in sizes]
        grid = self.table_N3.shape[0], sum(tiles)
        if tiling.single and rank <= _TILE:
            inputs, step = x_MI.shape[1], self._step(tiling)
            _both[grid](
                x_MI, self.adapters_GE, self.table_N3, out_MO, self.pool.elements, blocks[0].offset, inputs,
                x_MI.stride(0), out_MO.stride(0), stride, *offsets, *sizes, TILES_0=tiles[0], TILES_1=tiles[1],
                RANK=rank, COLUMNS=columns, TILE=_padded(rank), ROWS=BLOCK_ROWS, SPAN=triton.cdiv(inputs, step) * step,
                STEP=step, BLOCK=tiling.outputs, EXACT=self.exact, num_warps=tiling.warps,
            )  # fmt: skip
            return
        partial_SMC = self._shrink(tiling, blocks[0].offset, x_MI, columns)
        _expand[grid](
            partial_SMC, self.adapters_GE, self.table_N3, out_MO, self.pool.elements, x_MI.shape[0], out_MO.stride(0),
            stride, *offsets, *sizes, TILES_0=tiles[0], TILES_1=tiles[1], COLUMNS=columns,
            **self._shape(tiling, partial_SMC),
        )  # fmt: skip

    def gate(self, layer: int, x_MI: Tensor, gate_up_MO: Tensor) -> Tensor | None:
        """silu(gate)·up with the adapters in it, or None where no adapter changes gate or up."""
        blocks = self.pool.block_of(layer, "gate_up")
        if blocks is None:
            return None
        tiling = self.tilings["gate_up"]
        block_a, (block_gate, block_up) = blocks
        width = block_gate.columns
        partial_SMC = self._shrink(tiling, block_a.offset, x_MI, 2 * self.pool.rank)
        out_MF = gate_up_MO.new_empty(gate_up_MO.shape[0], width)
        _expand_gate[(self.table_N3.shape[0], triton.cdiv(width, tiling.outputs))](
            partial_SMC, self.adapters_GE, self.table_N3, gate_up_MO, out_MF, self.pool.elements, x_MI.shape[0], width,
            block_gate.offset, block_up.offset, **self._shape(tiling, partial_SMC),
        )  # fmt: skip
        return out_MF

    def _shrink(self, tiling: Tiling, offset: int, x_MI: Tensor, columns: int) -> Tensor:
        rows, inputs = x_MI.shape
        tile = min(_TILE, _padded(columns))
        span = max(64, min(tiling.inputs, 16384 // tile))
        shares = triton.cdiv(inputs, span)
        partial_SMC = x_MI.new_empty(shares, rows, columns, dtype=torch.float32)
        _shrink[(self.table_N3.shape[0], shares, triton.cdiv(columns, tile))](
            x_MI, self.adapters_GE, self.table_N3, partial_SMC, self.pool.elements, offset, inputs, rows,
            x_MI.stride(0), COLUMNS=columns, TILE=tile, SPAN=span, STEP=min(span, self._step(tiling)),
            ROWS=BLOCK_ROWS, EXACT=self.exact, num_warps=4,
        )  # fmt: skip
        return partial_SMC

    def _step(self, tiling: Tiling) -> int:
        return 32 if self.exact else tiling.inputs  # without tensor cores a product is unrolled: keep it short

    def _shape(self, tiling: Tiling, partial_SMC: Tensor) -> dict[str, int | bool]:
        rank = self.pool.rank
        return {
            "RANK": rank, "SHARES": partial_SMC.shape[0], "TILE": min(_TILE, _padded(rank)), "ROWS": BLOCK_ROWS,
            "BLOCK": tiling.outputs, "EXACT": self.exact, "num_warps": tiling.warps,
        }  # fmt: skip


def _padded(size: int) -> int:
    return max(16, triton.next_power_of_2(size))


@torch.inference_mode()
def check(network: Network) -> None:
    """Compile every kernel and hold it against `Grouped` on this device; raises where they differ."""
    device, dtype = network.device, network.dtype
    rng = torch.Generator(device=device).manual_seed(0)
    pool = AdapterPool(network, layers=1)
    for index in range(3):
        pairs = {
            f"model.layers.0.{name}": Pair(
                torch.randn(pool.kinds[kind].inputs, 8, generator=rng, device=device) * pool.kinds[kind].inputs ** -0.5,
                torch.randn(8, pool.kinds[kind].parts[part], generator=rng, device=device) * 0.3,
            )
            for name, (kind, part) in KIND.items()
        }
        pool.put(str(index), Adapter(pairs=pairs, scale=1.0))
    pool.activate(("0", "1", "2"))
    # Four rows of each adapter, the third's in two blocks; two rows of the base.
    table_N3 = torch.tensor(
        [[0, 4, 0], [4, 4, 1], [8, 3, 2], [11, 1, 2], [12, 2, -1]], dtype=torch.int32, device=device
    )
    plain, ragged = pool.grouped(3, 4), Ragged(pool, table_N3)
    tolerance = 1e-4 if dtype == torch.float32 else 4e-2  # bf16 keeps 8 bits, and three of its roundings may differ
    for kind, spec in pool.kinds.items():
        x_MI = torch.randn(14, spec.inputs, generator=rng, device=device, dtype=torch.float32).to(dtype)
        out_MO = torch.randn(14, sum(spec.parts), generator=rng, device=device, dtype=torch.float32).to(dtype)
        expected_MO, got_MO = out_MO.clone(), out_MO.clone()
        plain.add(0, kind, x_MI, expected_MO)
        ragged.add(0, kind, x_MI, got_MO)
        _same(kind, got_MO, expected_MO, tolerance)
        if kind == "gate_up":
            gated_MF = ragged.gate(0, x_MI, out_MO)
            assert gated_MF is not None
            _same("gate", gated_MF, silu_mul(expected_MO), tolerance)


def _same(what: str, got: Tensor, expected: Tensor, tolerance: float) -> None:
    worst = ((got.float() - expected.float()).abs() / (1 + expected.float().abs())).max().item()
    if not worst <= tolerance:
        raise RuntimeError(f"the adapters' {what} kernel differs from plain torch by {worst:.2g}")
