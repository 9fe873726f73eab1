"""Hundreds of adapters resident beside one model, and the ones that are active in the current batch.

An adapter is one row of one matrix: all its factors, for the four fused products of every layer, laid end to end
with zeros where it has nothing (and in the off-diagonal blocks of q|k|v). So adding one is one copy, and lining up
the adapters of a batch in the order of its rows is one gather, whatever their number. Views of that matrix are
what the grouped products read: `[G, K, I] @ [G, I, R]`, then `baddbmm` into the base output.

Legend: G groups of rows · K rows of a group (or tokens, in a prompt pass) · I inputs · O outputs · R padded rank
        E elements of one adapter
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rune.adapters.peft import Adapter
from rune.engines.local.network import Network
from rune.errors import AdapterError

KIND = {
    "self_attn.q_proj": ("qkv", 0),
    "self_attn.k_proj": ("qkv", 1),
    "self_attn.v_proj": ("qkv", 2),
    "self_attn.o_proj": ("o", 0),
    "mlp.gate_proj": ("gate_up", 0),
    "mlp.up_proj": ("gate_up", 1),
    "mlp.down_proj": ("down", 0),
}
_NAME = re.compile(r"model\.layers\.(\d+)\.(.+)")
_ALIGN = 64  # elements; keeps every block on a 128-byte line, which vector loads want


class Kind(NamedTuple):
    """One fused product: its input size and the sizes of its parts. `merged`: the parts' B's are one block matrix."""

    inputs: int
    parts: tuple[int, ...]
    merged: bool


class Block(NamedTuple):
    """Where one factor lies in an adapter's row."""

    offset: int
    rows: int
    columns: int


Blocks = dict[tuple[int, str], tuple[Block, tuple[Block, ...]]]  # (layer, kind) → A, and a B for each part


class AdapterPool:
    """Resident adapters by id. Grows with the number, the largest rank and the kinds of module in use."""

    def __init__(self, network: Network, *, layers: int = 0) -> None:
        head = network.head_size
        sizes = (network.heads * head, network.kv_heads * head, network.kv_heads * head)
        self.kinds = {
            "qkv": Kind(network.hidden, sizes, True),  # small: one product with zeros beats three
            "o": Kind(network.heads * head, (network.hidden,), False),
            "gate_up": Kind(network.hidden, (network.ffn, network.ffn), False),
            "down": Kind(network.ffn, (network.hidden,), False),
        }
        self.num_layers = layers or len(network.layers)
        self.device, self.dtype = network.device, network.dtype
        self.slots: dict[str, int] = {}
        self.rank = 0
        self.used: frozenset[str] = frozenset()
        self.elements = 0
        self.most: int | None = None  # rows that the matrix may have; None: it grows as they come
        self.most_active: int | None = None  # and so many lined up; beyond that each product gathers its own factors
        self.version = 0  # changes when views made before no longer fit
        self._blocks: Blocks = {}
        self._resident_NE = torch.empty(0, 0, dtype=self.dtype, device=self.device)
        self._active_GE = torch.empty(0, 0, dtype=self.dtype, device=self.device)
        self._active_slots_G: Tensor | None = None

    def __contains__(self, adapter_id: str) -> bool:
        return adapter_id in self.slots

    @property
    def adapter_bytes(self) -> int:
        return self.elements * self.dtype.itemsize

    def bytes_with(self, adapter: Adapter) -> int:
        """What one adapter takes beside another: its rank and kinds of module may widen all."""
        used = self.used | {kind for _, kind, _ in map(self._place, adapter.pairs)}
        return self._layout(max(self.rank, adapter.rank), used)[1] * self.dtype.itemsize

    def put(self, adapter_id: str, adapter: Adapter) -> float:
        """Make one adapter resident; returns its ‖ΔW‖_F. Raises AdapterError where a module or a shape does not fit.

        A module's factors of all layers travel together (14 copies, not 336), and what is wrong with them is asked
        once. The adapter is written beside what is there and takes its id at the end: nothing is half replaced.
        """
        alike: dict[tuple[str, int, int], list[tuple[int, str]]] = defaultdict(list)  # (kind, part, rank) → where
        for name, (a_IR, b_RO) in adapter.pairs.items():
            layer, kind, part = self._place(name)
            inputs, outputs = self.kinds[kind].inputs, self.kinds[kind].parts[part]
            if a_IR.shape[0] != inputs or b_RO.shape[1] != outputs or a_IR.shape[1] != b_RO.shape[0]:
                raise AdapterError(
                    f"adapter {adapter_id}: '{name}' is {a_IR.shape[0]} → {b_RO.shape[1]}, this model needs "
                    f"{inputs} → {outputs}; it was made for another base model"
                )
            alike[kind, part, a_IR.shape[1]].append((layer, name))
        used = self.used | {kind for kind, *_ in alike}
        if adapter.rank > self.rank or used != self.used:
            self._relayout(max(self.rank, adapter.rank), used)
        slot = self._free_slot()
        row_LE = self._resident_NE[slot].zero_().unflatten(0, (self.num_layers, -1))  # layers are laid out alike
        squared = torch.zeros((), dtype=torch.float64, device=self.device)
        for (kind, part, rank), places in alike.items():
            places.sort()  # a folder's names come in the order 0, 1, 10, 11, …
            spec, (block_a, blocks_b) = self.kinds[kind], self._blocks[0, kind]
            a_LIR = _stacked([adapter.pairs[name].a for _, name in places], self.device)
            b_LRO = _stacked([adapter.pairs[name].b for _, name in places], self.device) * adapter.scale
            squared += (_gram(a_LIR.mT) * _gram(b_LRO)).sum()  # ‖AB‖² = tr((AᵀA)(BBᵀ))
            layers = [layer for layer, _ in places]
            chosen = slice(None) if layers == list(range(self.num_layers)) else layers
            first, column = part * self.rank, sum(spec.parts[:part])
            _view(row_LE, block_a)[chosen, :, first : first + rank] = a_LIR.to(self.dtype)
            if spec.merged:
                target_LRO = _view(row_LE, blocks_b[0])[:, first : first + rank, column : column + spec.parts[part]]
            else:
                target_LRO = _view(row_LE, blocks_b[part])[:, :rank]
            target_LRO[chosen] = b_LRO.to(self.dtype)
        norm = math.sqrt(max(squared.item(), 0.0)) if math.isfinite(squared.item()) else math.nan
        if math.isnan(norm):  # one bad number anywhere makes the sum so
            raise AdapterError(f"adapter {adapter_id} holds NaN or infinity; make it again")
        self.slots[adapter_id] = slot
        return norm

    def touch(self, adapter_id: str) -> None:
        """Used again: the last to leave when room is needed."""
        self.slots[adapter_id] = self.slots.pop(adapter_id)

    def drop(self, adapter_id: str) -> None:
        self.slots.pop(adapter_id, None)

    def activate(self, adapter_ids: Sequence[str]) -> None:
        """Line adapters up for `Grouped`: group g has `adapter_ids[g]`. One gather into a buffer that stays put.

        An adapter of many rows may stand in several groups; where those are more than `most_active`, none is lined up.
        """
        count = len(adapter_ids)
        self._active_slots_G = None
        if self.most_active is not None and count > self.most_active:
            self._active_slots_G = self.slots_of(adapter_ids)
            return
        if self._active_GE.shape[0] < count or self._active_GE.shape[1] != self.elements:
            # By halves at least: what was recorded over the buffer is lost with it.
            room = max(count, self._active_GE.shape[0] * 3 // 2)
            room = room if self.most_active is None else min(room, self.most_active)
            self._active_GE = self._active_GE.new_empty(room, self.elements)
            self.version += 1
        if count:
            torch.index_select(self._resident_NE, 0, self.slots_of(adapter_ids), out=self._active_GE[:count])

    @property
    def lined_up(self) -> bool:
        """Whether the last `activate` did; else `grouped` reads tensors that do not stay put."""
        return self._active_slots_G is None

    @property
    def active(self) -> Tensor:
        """[G, E]: row g is the adapter that `activate` put at g. Stays at its address while `version` does."""
        return self._active_GE

    def slots_of(self, adapter_ids: Sequence[str]) -> Tensor:
        return torch.tensor([self.slots[adapter_id] for adapter_id in adapter_ids], device=self.device)

    def grouped(self, num_groups: int, width: int) -> Grouped:
        """The activated adapters over the first `num_groups`·`width` rows of a step; later rows are the base."""
        if self._active_slots_G is not None:
            return Grouped(self, self._resident_NE, width, self._active_slots_G[:num_groups])
        return Grouped(self, self._active_GE[:num_groups], width)

    def gathered(self, adapter_ids: Sequence[str], width: int) -> Grouped:
        """Adapters straight from the bank, one per run of `width` tokens (prompt passes)."""
        if len(set(adapter_ids)) == 1:
            slot = self.slots[adapter_ids[0]]
            return Grouped(self, self._resident_NE[slot : slot + 1], width * len(adapter_ids))
        return Grouped(self, self._resident_NE, width, self.slots_of(adapter_ids))

    def _place(self, name: str) -> tuple[int, str, int]:
        match = _NAME.fullmatch(name)
        if match is None or match[2] not in KIND or int(match[1]) >= self.num_layers:
            raise AdapterError(
                f"the adapter changes '{name}', which the torch engine cannot adapt; it takes "
                f"{', '.join(KIND)} of layers 0 … {self.num_layers - 1}"
            )
        return (int(match[1]), *KIND[match[2]])

    def _free_slot(self) -> int:
        taken = set(self.slots.values())
        capacity = self._resident_NE.shape[0]
        slot = next((index for index in range(capacity) if index not in taken), capacity)
        if slot == capacity:
            self.reserve(max(8, 2 * capacity) if self.most is None else max(self.most, capacity + 1))
        return slot

    def reserve(self, count: int) -> None:
        """Room for `count` adapters in all, so that the bank does not grow by halves while they come."""
        capacity = self._resident_NE.shape[0]
        if count > capacity:
            grown_NE = self._resident_NE.new_empty(count, self.elements)
            grown_NE[:capacity] = self._resident_NE
            self._resident_NE = grown_NE

    def _layout(self, rank: int, used: frozenset[str]) -> tuple[Blocks, int]:
        """Where each factor lies in an adapter's row, and the row's elements."""
        blocks: Blocks = {}
        offset = 0

        def block(rows: int, columns: int) -> Block:
            nonlocal offset
            made = Block(offset, rows, columns)
            offset += -(-rows * columns // _ALIGN) * _ALIGN
            return made

        for layer in range(self.num_layers):
            for kind in sorted(used):
                spec, parts = self.kinds[kind], len(self.kinds[kind].parts)
                block_a = block(spec.inputs, parts * rank)
                blocks_b: tuple[Block, ...]
                if spec.merged:
                    blocks_b = (block(parts * rank, sum(spec.parts)),)
                else:
                    blocks_b = tuple(block(rank, outputs) for outputs in spec.parts)
                blocks[layer, kind] = block_a, blocks_b
        return blocks, offset

    def _relayout(self, rank: int, used: frozenset[str]) -> None:
        """Make room for a larger rank or another kind of module; what is resident moves over."""
        old_blocks, old_NE, old_rank, capacity = self._blocks, self._resident_NE, self.rank, len(self._resident_NE)
        if self.most is not None and capacity > self.most:  # wider, and so fewer: those that are there move together
            old_NE = old_NE[list(self.slots.values())]
            self.slots = {adapter_id: slot for slot, adapter_id in enumerate(self.slots)}
            capacity = max(self.most, len(old_NE))
        self._blocks, self.elements = self._layout(rank, used)
        self.rank, self.used, count = rank, used, len(old_NE)
        self._resident_NE = torch.zeros(capacity, self.elements, dtype=self.dtype, device=self.device)
        self._active_GE = torch.empty(0, 0, dtype=self.dtype, device=self.device)
        self.version += 1
        for (layer, kind), (old_a, old_bs) in old_blocks.items():
            new_a, new_bs = self._blocks[layer, kind]
            spec = self.kinds[kind]
            for part in range(len(spec.parts)):
                was, now = slice(part * old_rank, (part + 1) * old_rank), slice(part * rank, part * rank + old_rank)
                target = self._resident_NE[:count]
                _view(target, new_a)[..., now] = _view(old_NE, old_a)[..., was]
                if spec.merged:
                    _view(target, new_bs[0])[..., now, :] = _view(old_NE, old_bs[0])[..., was, :]
                else:
                    _view(target, new_bs[part])[..., :old_rank, :] = _view(old_NE, old_bs[part])

    def block_of(self, layer: int, kind: str) -> tuple[Block, tuple[Block, ...]] | None:
        return self._blocks.get((layer, kind))


class Grouped:
    """Adapters over equal runs of rows: run g (rows g·K … g·K+K−1) has row g of `rows_GE`, or of `rows_GE[slots]`."""

    def __init__(self, pool: AdapterPool, rows_GE: Tensor, width: int, slots_G: Tensor | None = None) -> None:
        self.pool, self.rows_GE, self.width, self.slots_G = pool, rows_GE, width, slots_G
        self.num_groups = rows_GE.shape[0] if slots_G is None else slots_G.shape[0]

    def add(self, layer: int, kind: str, x_MI: Tensor, out_MO: Tensor) -> None:
        blocks = self.pool.block_of(layer, kind)
        if blocks is None or self.num_groups == 0:
            return
        block_a, blocks_b = blocks
        covered = self.num_groups * self.width
        x_GKI = x_MI[:covered].unflatten(0, (self.num_groups, self.width))
        out_GKO = out_MO[:covered].unflatten(0, (self.num_groups, self.width))
        h_GKR = torch.bmm(x_GKI, self._factor(block_a))
        step = h_GKR.shape[-1] // len(blocks_b)
        first = 0
        for index, block_b in enumerate(blocks_b):
            part_GKO = out_GKO[..., first : first + block_b.columns]
            part_GKO.baddbmm_(h_GKR[..., index * step : (index + 1) * step], self._factor(block_b))
            first += block_b.columns

    def gate(self, layer: int, x_MI: Tensor, gate_up_MO: Tensor) -> Tensor | None:
        return None  # two products and silu apart: nothing to be gained in plain torch

    def _factor(self, block: Block) -> Tensor:
        factor = _view(self.rows_GE, block)
        return factor if self.slots_G is None else factor.index_select(0, self.slots_G)


def _stacked(factors: Sequence[Tensor], device: torch.device) -> Tensor:
    """[L, …] on the bank's device. PEFT's files hold the transposes: stacked as they lie, each is a plain copy."""
    if factors[0].T.is_contiguous() and not factors[0].is_contiguous():
        return torch.stack([factor.detach().T for factor in factors]).to(device).mT
    return torch.stack([factor.detach() for factor in factors]).to(device)


def _gram(x_LRE: Tensor) -> Tensor:
    """X Xᵀ per layer in double precision: ‖ΔW‖ may be small beside its factors."""
    x_LRE = x_LRE.double()
    return x_LRE @ x_LRE.mT


def _view(rows: Tensor, block: Block) -> Tensor:
    """[…, E] → […, rows, columns] of one block, without a copy."""
    flat = rows[..., block.offset : block.offset + block.rows * block.columns]
    return flat.unflatten(-1, (block.rows, block.columns))
