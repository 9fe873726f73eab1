"""The device's side of decoding: the tensors of the batch, and steps queued without waiting for them.

Everything a step reads or writes stays at its address from `allocate` to `release`, so a step recorded as a CUDA
graph can be replayed: token and position of every row, the numbers it will draw with, its logits, its keys and
values, and where these are paged the table of its blocks. Row b of every tensor is place b of the host's layout.

Legend: B rows in the batch, dead places included · N rows · P prompts · T tokens of the longest · S steps
        U steps in a burst · V vocabulary · C blocks of a row
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rune import console
from rune.engines.local import sampler
from rune.engines.local.adapter_pool import AdapterPool
from rune.engines.local.batch import BatchPlan, Report, Row, Span, spans
from rune.engines.local.blocks import BLOCK, Blocks, Copies, Room, needed
from rune.engines.local.graphs import Graphs
from rune.engines.local.kv_cache import BlockCache, Cache, PromptAttention, StepAttention, Store, cut_small
from rune.engines.local.network import Attend, Lora, Network, NoLora
from rune.types import Sampling

Mix = list[tuple[Sampling, Tensor | None]]  # how to draw, and for which rows (None: for all)


class PendingBurst(NamedTuple):
    """A burst under way and where the host will find its tokens."""

    tokens_UB: Tensor  # on the host
    landed: Any  # torch.cuda.Event, or None when the tokens are there already
    places: tuple[int, ...]  # of the rows that want a report
    reports: list[Tensor]  # for each step [N, 1 + 2K], see `_report`

    def wait(self) -> list[list[int]]:
        """The burst's tokens, row by row."""
        if self.landed is not None:
            self.landed.synchronize()
        rows: list[list[int]] = self.tokens_UB.T.tolist()
        return rows

    def reports_by_place(self) -> dict[int, list[Report]]:
        """Place → a report for each step, of the rows that want them."""
        steps = [_reports(step_NC) for step_NC in self.reports]
        return {place: [step[n] for step in steps] for n, place in enumerate(self.places)}


class Device:
    """Buffers of one batch on one device."""

    def __init__(self, network: Network, pool: AdapterPool, *, burst: int, graphs: bool, paged: bool) -> None:
        self.network, self.pool, self.burst = network, pool, burst
        self._pinned = network.device.type == "cuda"  # the host's side of copies, which then need not be waited for
        self.asynchronous = self._pinned
        self._graphs = Graphs(enabled=graphs and self.asynchronous)
        self._kernels = _kernels(network, paged) if self.asynchronous else None
        self._lora_kernels = _lora_kernels(network) if self._kernels else None
        self._mass = self._kernels.chunk_mass if self._kernels else sampler.chunk_mass
        self._cache: Cache | BlockCache | None = None
        self.blocks: Blocks | None = None  # of the paged cache, while there is one
        self._mix: Mix = []
        self._reported: tuple[tuple[int, ...], int] = ((), 0)  # places of the rows that want reports, and the largest K
        self._spans: list[Span] = []

    @property
    def uses_kernels(self) -> bool:
        """Whether the Triton kernels serve the step."""
        return self._kernels is not None

    @property
    def ragged(self) -> bool:
        """Whether the adapters' kernels serve the step; layouts are then ragged."""
        return self._lora_kernels is not None

    @property
    def graphs_recorded(self) -> int:
        return self._graphs.recorded

    @property
    def ready(self) -> bool:
        return self._cache is not None

    @property
    def rows(self) -> int:
        return self._cache.rows if self._cache else 0

    # ------------------------------------------------------------------ memory

    @property
    def bytes(self) -> int:
        """Of keys and values, those that nobody has among them."""
        return self._cache.bytes if self._cache else 0

    def holds(self, room: Room, length: int, steps: int) -> bool:
        """Whether what is allocated serves a call like this (its graphs then do as well)."""
        cache = self._cache
        return (
            cache is not None
            and cache.rows >= room.rows
            and (self.blocks.count if self.blocks else 0) >= room.blocks
            and cache.length >= length + 2 * self.burst + 1
            and self._uniform_BS.shape[1] >= steps + 2 * self.burst + 1
        )

    def allocate(self, room: Room, length: int, steps: int) -> None:
        """Room for rows of `length` tokens, `steps` of them drawn, and for two bursts of overrun.

        Paged, if it has blocks: rows have none of them before `give_blocks`.
        """
        device, overrun, rows = self.network.device, 2 * self.burst + 1, room.rows
        reach = length + -(-overrun // 64) * 64
        if room.blocks:
            self._cache = BlockCache(self.network, rows, reach, room.blocks)
            self.blocks = Blocks(room.blocks)
            self._host_RC = np.zeros((rows, needed(reach)), dtype=np.int32)
            self._sent_RC = [torch.zeros(self._host_RC.shape, dtype=torch.int32, pin_memory=self._pinned) for _ in "ab"]
            self._stale = False
        else:
            self._cache = Cache(self.network, rows, reach)
        self.network.rope_table()
        self._tokens_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._positions_B = torch.zeros_like(self._tokens_B)
        self._alive_B = torch.zeros_like(self._tokens_B)
        self._steps_B = torch.zeros_like(self._tokens_B)
        self._uniform_BS = torch.zeros(rows, steps + overrun, dtype=torch.float64, device=device)
        self._logits_BV = torch.empty(rows, self.network.vocabulary, dtype=self.network.dtype, device=device)
        self._table_N3 = torch.zeros(rows + 1, 3, dtype=torch.int32, device=device)
        self._burst_UB = torch.zeros(self.burst, rows, dtype=torch.long, device=device)
        self._host_UB = [torch.zeros(self.burst, rows, dtype=torch.long, pin_memory=self._pinned) for _ in "ab"]

    def release(self) -> None:
        """Forget the buffers and the graphs recorded over them."""
        self._cache = self.blocks = None
        self._graphs.clear()
        for name in ("_uniform_BS", "_logits_BV"):
            if hasattr(self, name):
                delattr(self, name)
        if self.asynchronous:
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------ between bursts

    def trim(self) -> None:
        """On a CPU: the memory of free blocks goes back to the system until they are written again."""
        if self.blocks and isinstance(self._cache, BlockCache):
            self._cache.trim(self.blocks.unused())

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Survivors take their new places, with what they have read and what they will draw with.

        Where they are paged `upload` says where their blocks are.
        """
        if isinstance(self._cache, Cache):
            self._cache.move(sources, targets, length)
        self._uniform_BS[targets] = self._uniform_BS[sources]

    def seed(self, slots: list[int], seeds: list[int]) -> None:
        """The numbers that rows will draw with, from their seeds alone."""
        uniform_NS = torch.from_numpy(sampler.uniforms(seeds, self._uniform_BS.shape[1]))
        self._uniform_BS[slots] = uniform_NS.to(self.network.device)

    def cut(self, slot: int, first: int, count: int) -> Copies:
        """Copies of what a row has read, where rows are not paged."""
        assert isinstance(self._cache, Cache)
        return self._cache.cut(slot, first, count)

    def read_blocks(self, blocks: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Keys and values [L, P, V, S, D] of P sequences of equally many blocks."""
        assert isinstance(self._cache, BlockCache)
        return self._cache.read(blocks)

    def give_blocks(self, row: Row) -> None:
        """The next burst finds a row's blocks as the row says: more than before, or none."""
        self._host_RC[row.slot] = 0
        self._host_RC[row.slot, : len(row.blocks)] = row.blocks
        self._stale = True

    def prefill(
        self,
        keys: list[tuple[str | None, tuple[int, ...]]],
        shared_by: list[int],
        rows: list[Row],
        before: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[list[int], list[Report | None]]:
        """Read P (adapter, prompt) pairs into the slots of the rows that share them; the rows' first tokens.

        `rows` are in the order of `keys`, `shared_by[p]` of them for pair p. All pairs wear adapters, or none does.
        `before`: keys and values [L, P, V, N, D] of N tokens that come before each; `keys` have what follows.
        """
        device, longest = self.network.device, max(len(prompt) for _, prompt in keys)
        ids_PT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for _, prompt in keys], device=device)
        last_P = torch.tensor([i * longest + len(prompt) - 1 for i, (_, prompt) in enumerate(keys)], device=device)
        slots_N = torch.tensor([row.slot for row in rows], device=device)
        prompt_N = torch.repeat_interleave(torch.tensor(shared_by)).to(device)
        applied = [adapter_id for adapter_id, _ in keys if adapter_id is not None]
        store: Store
        if isinstance(self._cache, BlockCache):
            start = before[0].shape[-2] if before else 0
            store = self._cache.store(start, *_block_by_block(rows, shared_by, start, longest))
        else:
            assert self._cache is not None
            store = self._cache.store(slots_N, prompt_N)
        attend = PromptAttention(self.network, len(keys), longest, store=store, before=before)
        hidden_MH = self.network.forward(
            ids_PT.flatten(), attend, self.pool.gathered(applied, longest) if applied else NoLora()
        )
        logits_PV = self.network.logits(hidden_MH[last_P])
        drawn_N = torch.tensor([len(row.tokens) for row in rows], device=device)  # 0, but of those that start again
        uniform_N = self._uniform_BS[slots_N, drawn_N]
        first_N = self._draw(logits_PV[prompt_N], uniform_N, group_by_sampling(rows, device))
        reports: list[Report | None] = [None] * len(rows)
        places, most = _wanted(rows)
        if places:
            chosen_N = torch.tensor(places, device=device)
            found = _reports(_report(logits_PV[prompt_N[chosen_N]], first_N[chosen_N], most))
            for place, report in zip(places, found, strict=True):
                reports[place] = report
        first: list[int] = first_N.tolist()
        return first, reports

    def upload(self, layout: BatchPlan) -> None:
        """Put the batch's state on the device as the host knows it."""
        count = len(layout.rows)
        state_4B = np.zeros((4, count), dtype=np.int64)
        for slot, row in enumerate(layout.rows):
            if row is not None and not row.done:
                state_4B[:, slot] = row.tokens[-1], row.length - 1, len(row.tokens), 1
        tokens_B, positions_B, steps_B, alive_B = torch.from_numpy(state_4B).to(self.network.device)
        self._tokens_B[:count], self._positions_B[:count] = tokens_B, positions_B
        self._steps_B[:count], self._alive_B[:count] = steps_B, alive_B
        if layout.blocks:
            table_N3 = torch.tensor(layout.blocks, dtype=torch.int32)
            self._table_N3[: len(layout.blocks)] = table_N3.to(self.network.device)
        self._mix = group_by_sampling(layout.rows, self.network.device)
        self._reported = _wanted(layout.rows)
        # Cut once a repack: rows grow together. On a GPU one span, since each set of windows is a graph of its own.
        self._spans = [Span(0, count, 0)] if self.asynchronous else spans(_reaches(layout, 0))
        if self.blocks:
            if not self.asynchronous:
                self._spans = cut_small(self._spans, self.network.kv_heads * self.network.head_size)
            self._host_RC.fill(0)
            self._stale = True
            for row in layout.rows:
                if row is not None and not row.done:
                    self.give_blocks(row)

    def retire(self, alive: list[bool]) -> None:
        """Rows that ended stay in the batch, looking at one position, until the next repack."""
        count = len(alive)
        self._alive_B[:count] = torch.tensor(alive, dtype=torch.long).to(self.network.device, non_blocking=True)
        self._positions_B[:count] *= self._alive_B[:count]

    # ------------------------------------------------------------------ steps

    def launch(self, layout: BatchPlan) -> PendingBurst:
        """Queue a burst. On CUDA nothing here waits."""
        count, looks = len(layout.rows), self._looks(layout)
        self._send_table()
        places, most = self._reported
        reports = []
        for index in range(self.burst):
            self._step(index, layout, looks)
            if places:
                places_N = torch.tensor(places, device=self.network.device)
                reports.append(_report(self._logits_BV[places_N], self._tokens_B[places_N], most))
        self._host_UB.reverse()  # the burst before this one may not have been read yet
        tokens_UB = self._host_UB[0][:, :count]
        tokens_UB.copy_(self._burst_UB[:, :count], non_blocking=True)
        if not self._pinned:
            return PendingBurst(tokens_UB, None, places, reports)
        landed = torch.cuda.Event()
        landed.record()
        return PendingBurst(tokens_UB, landed, places, reports)

    def _send_table(self) -> None:
        """The table as the host has it now; the bursts that are under way read it as it was."""
        if not self.blocks or not self._stale:
            return
        assert isinstance(self._cache, BlockCache)
        self._sent_RC.reverse()  # what the burst before this one was sent may not have arrived yet
        self._sent_RC[0].copy_(torch.from_numpy(self._host_RC))
        self._cache.table_RC.copy_(self._sent_RC[0], non_blocking=True)
        self._stale = False

    def _looks(self, layout: BatchPlan) -> tuple[Span, ...]:
        """The spans with the windows that this burst needs. Triton's attention needs none."""
        if self._kernels:
            return ()
        assert self._cache is not None
        grain = 128 if self.asynchronous else BLOCK if self.blocks else 16  # each set of windows is a graph of its own
        # The device may be one burst ahead of what the host has seen.
        reaches = _reaches(layout, 2 * self.burst)
        return tuple(
            Span(first, last, min(-(-max(reaches[first:last]) // grain) * grain, self._cache.length))
            for first, last, _ in self._spans
        )

    def _step(self, index: int, layout: BatchPlan, looks: tuple[Span, ...]) -> None:
        count = len(layout.rows)
        groups = 0 if layout.blocks else len(layout.groups)  # blocks say for themselves whose they are
        key = (self.pool.version, count, groups, layout.width, len(layout.blocks), looks)
        if self.pool.lined_up:
            self._graphs.run(key, lambda: self._forward(layout, looks))
        else:  # what it reads moves with every batch
            self._forward(layout, looks)
        uniform_B = self._uniform_BS[:count].gather(1, self._steps_B[:count, None])[:, 0]
        tokens_B = self._draw(self._logits_BV[:count], uniform_B, self._mix)
        self._tokens_B[:count] = tokens_B
        self._burst_UB[index, :count] = tokens_B
        self._positions_B[:count].add_(1).mul_(self._alive_B[:count])
        self._steps_B[:count].add_(self._alive_B[:count])

    def _forward(self, layout: BatchPlan, looks: tuple[Span, ...]) -> None:
        """One step of every row, from and into tensors that stay where they are."""
        assert self._cache is not None
        count = len(layout.rows)
        lora: Lora = NoLora()
        if layout.blocks:
            assert self._lora_kernels is not None
            lora = self._lora_kernels.Ragged(self.pool, self._table_N3[: len(layout.blocks)])
        elif layout.groups:
            lora = self.pool.grouped(len(layout.groups), layout.width)
        positions_B = self._positions_B[:count]
        attend: Attend
        if self._kernels:
            attend = self._kernels.StepAttention(self.network, self._cache, positions_B)
        else:
            attend = StepAttention(self.network, self._cache, positions_B, looks)
        hidden_BH = self.network.forward(self._tokens_B[:count], attend, lora)
        self.network.logits(hidden_BH, out=self._logits_BV[:count])

    def _draw(self, logits_BV: Tensor, uniform_B: Tensor, group_by_sampling: Mix) -> Tensor:
        tokens_B = torch.zeros(logits_BV.shape[0], dtype=torch.long, device=logits_BV.device)
        for sampling, index_N in group_by_sampling:
            if index_N is None:
                return sampler.draw(logits_BV, uniform_B, sampling, self._mass)
            tokens_B[index_N] = sampler.draw(logits_BV[index_N], uniform_B[index_N], sampling, self._mass)
        return tokens_B


def _block_by_block(rows: list[Row], shared_by: list[int], start: int, longest: int) -> tuple[list[int], list[int]]:
    """For `BlockCache.store`: the blocks that prompts fill behind their first `start` tokens, each written once.

    Rows that share a prompt share its whole blocks.
    """
    each, done = needed(longest), start // BLOCK
    sources, targets, left = [], [], list(rows)
    for number, count in enumerate(shared_by):
        members, left = left[:count], left[count:]
        for block in range(needed(members[0].length) - done):
            for target in {row.blocks[done + block] for row in members}:
                sources.append(number * each + block)
                targets.append(target)
    return sources, targets


def _reaches(layout: BatchPlan, more: int) -> list[int]:
    """How many positions each place may look at, `more` tokens from now; dead places at one."""
    return [1 if row is None or row.done else row.length + more for row in layout.rows]


def _wanted(rows: Sequence[Row | None]) -> tuple[tuple[int, ...], int]:
    """Places of the rows that want reports, and the most alternatives that one of them wants."""
    places = {place: row.request.logprobs for place, row in enumerate(rows) if row is not None and not row.done}
    wanted = {place: count for place, count in places.items() if count is not None}
    return tuple(wanted), max(wanted.values(), default=0)


def _report(logits_NV: Tensor, tokens_N: Tensor, most: int) -> Tensor:
    """[N, 1 + 2K] in float64: log p of the drawn token, then the K best tokens' ids, then their log p."""
    logprob_NV = torch.log_softmax(logits_NV.float(), dim=-1)
    drawn_N1 = logprob_NV.gather(1, tokens_N[:, None])
    if most == 0:
        return drawn_N1.double()
    best_NK, ids_NK = logprob_NV.topk(min(most, logprob_NV.shape[1]), dim=-1)
    return torch.cat([drawn_N1.double(), ids_NK.double(), best_NK.double()], dim=1)


def _reports(report_NC: Tensor) -> list[Report]:
    rows: list[list[float]] = report_NC.tolist()
    count = (report_NC.shape[1] - 1) // 2
    return [Report(row[0], tuple(zip(map(int, row[1 : 1 + count]), row[1 + count :], strict=True))) for row in rows]


def group_by_sampling(rows: Sequence[Row | None], device: torch.device) -> Mix:
    """Which places draw how. One way for all needs no index."""
    ways: dict[tuple[float, float, int], tuple[Sampling, list[int]]] = {}
    for place, row in enumerate(rows):
        if row is not None:
            sampling = row.request.sampling
            key = sampling.temperature, sampling.top_p, sampling.top_k
            ways.setdefault(key, (sampling, []))[1].append(place)
    if len(ways) == 1:
        return [(sampling, None) for sampling, _ in ways.values()]
    return [(sampling, torch.tensor(places, device=device)) for sampling, places in ways.values()]


def _kernels(network: Network, paged: bool) -> Any:
    """The Triton kernels, or None (with a warning) where they cannot be had: the plain torch step then serves."""
    try:
        from rune.engines.local import kernels as module

        module.check(network, paged=paged)
    except Exception as error:  # a missing compiler shows in many ways; none may stop a run that can go on
        console.warn(f"no Triton kernels ({str(error).splitlines()[0] if str(error) else error!r}); using plain torch")
        return None
    network.silu_mul = module.silu_mul
    return module


def _lora_kernels(network: Network) -> Any:
    """The adapters' Triton kernels, or None (with a warning): grouped products in plain torch then serve."""
    try:
        from rune.engines.local import lora_kernels as module

        module.check(network)
    except Exception as error:  # as above
        console.warn(f"no Triton kernels for adapters ({(str(error) or repr(error)).splitlines()[0]}); plain torch")
        return None
    return module
