"""The decoding loop: admit, prefill, step, retire, repack; until every row is done.

    waiting rows ──admit──▶ prompts prefilled once per (prompt, adapter), copied to the rows that share them
                              │
                 burst of steps, all on the device: forward (CUDA graph) → draw → next position
                              │                             ▲
    finished rows ◀──retire── host reads the burst's tokens, one burst behind the device
                              │
                 repack when rows left: survivors move together, new ones enter, adapters line up again

Rows that end inside a burst run on until the host has seen it; the surplus is thrown away, so it costs a little
time and never a token. When memory runs out the batch is halved and what was unfinished starts over: same seeds,
same tokens.

Legend: B rows in the batch (dead places included) · N fresh rows · P prompts · T tokens of the longest · V vocabulary
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from rune import console
from rune.engines import _sampler
from rune.engines._bank import Bank
from rune.engines._batch import Layout, Row, arrange, plan_rows
from rune.engines._cache import Cache, PromptAttention, StepAttention
from rune.engines._graphs import Graphs
from rune.engines._network import Attend, Network, NoLora
from rune.errors import EngineError
from rune.types import Sampling


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the loop may use."""

    max_rows: int  # rows decoded at once
    memory_fraction: float  # of what is free when a call starts
    prefill_tokens: int  # prompt tokens, padding included, in one pass
    burst: int  # steps between two looks of the host
    graphs: bool


@dataclass(slots=True)
class Stats:
    """How it goes; read by progress bars and benches."""

    tokens: int = 0  # of finished rows
    rows_alive: int = 0
    rows_waiting: int = 0
    steps: int = 0
    row_steps: int = 0  # Σ over steps of the rows in the batch, dead places included
    context_steps: int = 0  # Σ over steps and living rows of the positions attended to
    repacks: int = 0
    prompt_tokens: int = 0
    halvings: int = 0


class _Burst(NamedTuple):
    """Steps under way on the device and where the host will find their tokens."""

    rows: tuple[Row | None, ...]
    tokens: Tensor  # [burst, R] on the host
    done: Any  # torch.cuda.Event, or None when they are already there


class Decoder:
    """One model, its bank of adapters and one batch at a time."""

    def __init__(self, network: Network, bank: Bank, *, ends: frozenset[int], limits: Limits) -> None:
        self.network, self.bank, self.ends, self.limits = network, bank, ends, limits
        self.stats = Stats()
        self._cuda = network.device.type == "cuda"
        self._graphs = Graphs(enabled=limits.graphs and self._cuda)
        self._kernels = _kernels(network) if self._cuda else None
        self._cache: Cache | None = None
        self._layout = Layout((), (), 0)
        self._entering: list[Row] = []
        self._alive_changed = False

    @property
    def uses_kernels(self) -> bool:
        """Whether the Triton kernels serve the step."""
        return self._kernels is not None

    @property
    def graphs_recorded(self) -> int:
        return self._graphs.recorded

    # ------------------------------------------------------------------ the loop

    def run(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Decode every row; yields each when it is done, in any order."""
        if not rows:
            return
        waiting = deque(rows)
        limit = self._reusable(rows) or self._plan(rows)
        while True:
            try:
                yield from self._drain(waiting, limit, rows)
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                limit = self._back_off(waiting, limit, error)
            finally:
                self._layout = Layout((), (), 0)

    def _drain(self, waiting: deque[Row], limit: int, rows: Sequence[Row]) -> Iterator[Row]:
        if self._cache is None:
            self._allocate(min(limit, len(rows)), rows)
        flying: _Burst | None = None
        while waiting or self._alive():
            if self._worth_repacking(waiting):
                if flying is not None:
                    yield from self._land(flying)
                    flying = None
                yield from self._repack(waiting)
                continue
            burst = self._launch()
            if flying is not None:
                yield from self._land(flying)
            flying = burst
            if not self._cuda:
                yield from self._land(flying)
                flying = None
            self.stats.rows_alive, self.stats.rows_waiting = len(self._alive()), len(waiting)
        self.stats.rows_alive = 0

    def _alive(self) -> list[Row]:
        return [row for row in self._layout.rows if row is not None and not row.done]

    def _worth_repacking(self, waiting: deque[Row]) -> bool:
        alive, places = len(self._alive()), len(self._layout.rows)
        assert self._cache is not None
        if waiting:
            free = self._cache.rows - alive
            return alive == 0 or free >= max(1, min(self._cache.rows // 8, len(waiting)))
        return alive <= 0.8 * places and (places > 8 or not self._cuda)

    def _back_off(self, waiting: deque[Row], limit: int, error: BaseException) -> int:
        lost = [*self._alive(), *(row for row in self._entering if not row.done)]
        used = min(limit, max(self._cache.rows if self._cache else limit, 1))
        for row in dict.fromkeys(lost):
            row.restart()
            waiting.appendleft(row)
        self.release()
        if used <= 1:
            raise EngineError(
                f"one row does not fit in the memory of {self.network.device}: {str(error).splitlines()[0]}; "
                "use a shorter max_new_tokens, a smaller model or --set engine.quantize=nf4"
            ) from None
        self.stats.halvings += 1
        console.warn(f"out of memory with {used} rows at once; going on with {used // 2}")
        return used // 2

    # ------------------------------------------------------------------ memory

    def _length(self, rows: Sequence[Row]) -> int:
        """Positions a row may reach: prompt, answer, and two bursts of overrun."""
        longest = max(len(row.prompt) + row.request.sampling.max_new_tokens for row in rows)
        return -(-(longest + 2 * self.limits.burst + 1) // 64) * 64

    def _reusable(self, rows: Sequence[Row]) -> int:
        """Rows of the last call's cache if it serves this call too (its graphs then do as well), else 0."""
        cache = self._cache
        if cache is None or cache.length < self._length(rows) or cache.rows < min(len(rows), self.limits.max_rows):
            return 0
        most = max(row.request.sampling.max_new_tokens for row in rows)
        return cache.rows if self._uniform_BS.shape[1] > most + 2 * self.limits.burst else 0

    def _plan(self, rows: Sequence[Row]) -> int:
        network, length = self.network, self._length(rows)
        worn = len({row.adapter_id for row in rows} - {None})
        # A row also owns logits, their float copies while drawing, and its share of activations.
        row_bytes = Cache.row_bytes(network, length) + 24 * network.vocabulary + 64 * (network.ffn + network.hidden)
        reserve = 48 * self.limits.prefill_tokens * (network.ffn + network.hidden) + worn * self.bank.adapter_bytes
        self.release()
        return plan_rows(
            free_bytes=free_memory(network.device),
            fraction=self.limits.memory_fraction,
            row_bytes=row_bytes,
            reserve_bytes=reserve,
            most=self.limits.max_rows,
        )

    def release(self) -> None:
        """Let go of the cache and everything recorded over it; the next call makes its own."""
        self._cache = None
        self._entering = []
        self._layout = Layout((), (), 0)
        self._graphs.clear()
        if self._cuda:
            torch.cuda.empty_cache()

    def _allocate(self, num_rows: int, rows: Sequence[Row]) -> None:
        device, burst = self.network.device, self.limits.burst
        length = self._length(rows)
        num_steps = max(row.request.sampling.max_new_tokens for row in rows) + 2 * burst + 1
        self._cache = Cache(self.network, num_rows, length)
        self.network.rope_table(length)
        self._tokens_B = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._positions_B = torch.zeros_like(self._tokens_B)
        self._alive_B = torch.zeros_like(self._tokens_B)
        self._steps_B = torch.zeros_like(self._tokens_B)
        self._uniform_BS = torch.zeros(num_rows, num_steps, dtype=torch.float64, device=device)
        self._logits_BV = torch.empty(num_rows, self.network.vocabulary, dtype=self.network.dtype, device=device)
        self._burst_UB = torch.zeros(burst, num_rows, dtype=torch.long, device=device)
        self._host_UB = [torch.zeros(burst, num_rows, dtype=torch.long, pin_memory=self._cuda) for _ in range(2)]

    # ------------------------------------------------------------------ repacking and prompts

    def _repack(self, waiting: deque[Row]) -> Iterator[Row]:
        """Survivors move together, waiting rows enter the room that is left, adapters line up."""
        cache = self._cache
        assert cache is not None
        old = self._alive()
        fresh = [waiting.popleft() for _ in range(min(cache.rows - len(old), len(waiting)))]
        self._entering = fresh
        layout = arrange(
            [*old, *fresh],
            most=cache.rows,
            row_cost=Cache.row_bytes(self.network, 256),
            adapter_cost=self.bank.adapter_bytes,
        )
        slots = {id(row): slot for slot, row in enumerate(layout.rows) if row is not None}
        sources, targets = [row.slot for row in old], [slots[id(row)] for row in old]
        if old:
            cache.move(sources, targets, max(row.length for row in old))
            self._uniform_BS[targets] = self._uniform_BS[sources]
        for row in (*old, *fresh):
            row.slot = slots[id(row)]
        self.bank.activate(layout.groups)
        self._layout = layout
        if fresh:
            yield from self._admit(fresh)
        self._entering = []
        self._upload()
        self.stats.repacks += 1

    def _admit(self, fresh: list[Row]) -> Iterator[Row]:
        """Prefill fresh rows and draw their first tokens."""
        num_steps = self._uniform_BS.shape[1]
        slots_N = torch.tensor([row.slot for row in fresh], device=self.network.device)
        uniform_NS = torch.from_numpy(_sampler.uniforms([row.seed for row in fresh], num_steps))
        self._uniform_BS[slots_N] = uniform_NS.to(self.network.device)
        shared: dict[tuple[str | None, tuple[int, ...]], list[Row]] = defaultdict(list)
        for row in fresh:
            shared[row.adapter_id, row.prompt].append(row)
        for chunk in chunks(list(shared.items()), self.limits.prefill_tokens):
            members = [(row, index) for index, (_, rows) in enumerate(chunk) for row in rows]
            rows = [row for row, _ in members]
            slots_N = torch.tensor([row.slot for row in rows], device=self.network.device)
            prompt_N = torch.tensor([index for _, index in members], device=self.network.device)
            logits_PV = self._prefill(chunk[0][0][0] is not None, [key for key, _ in chunk], slots_N, prompt_N)
            first_N = self._draw(logits_PV[prompt_N], self._uniform_BS[slots_N, 0], _mix(rows))
            for row, token in zip(rows, first_N.tolist(), strict=True):
                yield from self._take(row, [token])

    def _prefill(self, worn: bool, keys: list[Any], slots_N: Tensor, prompt_N: Tensor) -> Tensor:
        """Keys and values of P prompts into their rows' slots; logits after the last token [P, V]."""
        device, longest = self.network.device, max(len(prompt) for _, prompt in keys)
        self.stats.prompt_tokens += sum(len(prompt) for _, prompt in keys)
        ids_PT = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for _, prompt in keys], device=device)
        last_P = torch.tensor([i * longest + len(prompt) - 1 for i, (_, prompt) in enumerate(keys)], device=device)
        lora = self.bank.gathered([adapter_id for adapter_id, _ in keys], longest) if worn else NoLora()
        attend = PromptAttention(
            self.network, len(keys), longest, cache=self._cache, rows_B=slots_N, prompt_of_row_B=prompt_N
        )
        hidden_MH = self.network.forward(ids_PT.flatten(), attend, lora)
        return self.network.logits(hidden_MH[last_P])

    def _upload(self) -> None:
        """Put the batch's state on the device as the host knows it."""
        rows = self._layout.rows
        state = np.zeros((4, len(rows)), dtype=np.int64)
        for slot, row in enumerate(rows):
            if row is not None and not row.done:
                state[:, slot] = row.tokens[-1], row.length - 1, len(row.tokens), 1
        tokens_B, positions_B, steps_B, alive_B = torch.from_numpy(state).to(self.network.device)
        count = len(rows)
        self._tokens_B[:count], self._positions_B[:count] = tokens_B, positions_B
        self._steps_B[:count], self._alive_B[:count] = steps_B, alive_B
        self._mix = _mix(rows)
        self._alive_changed = False

    # ------------------------------------------------------------------ steps

    def _launch(self) -> _Burst:
        """Queue a burst of steps; on CUDA nothing here waits for the device."""
        rows = self._layout.rows
        count = len(rows)
        if self._alive_changed:
            alive = torch.tensor([row is not None and not row.done for row in rows], dtype=torch.long)
            self._alive_B[:count] = alive.to(self.network.device, non_blocking=True)
            self._positions_B[:count] *= self._alive_B[:count]
            self._alive_changed = False
        living = [row for row in rows if row is not None and not row.done]
        # The device may be one burst ahead of what the host has seen.
        reach = max(row.length for row in living) + 2 * self.limits.burst
        for index in range(self.limits.burst):
            self._step(index, reach)
        self.stats.steps += self.limits.burst
        self.stats.row_steps += self.limits.burst * count
        self.stats.context_steps += self.limits.burst * sum(row.length for row in living)
        self._host_UB.reverse()
        self._host_UB[0].copy_(self._burst_UB, non_blocking=True)
        done = None
        if self._cuda:
            done = torch.cuda.Event()
            done.record()
        return _Burst(rows, self._host_UB[0], done)

    def _step(self, index: int, reach: int) -> None:
        count = len(self._layout.rows)
        groups, width = len(self._layout.groups), self._layout.width
        assert self._cache is not None
        grain = 16 if not self._cuda else 128
        window = self._cache.length if self._kernels else min(-(-reach // grain) * grain, self._cache.length)
        self._graphs.run((self.bank.version, count, groups, width, window), lambda: self._forward(count, window))
        uniform_B = self._uniform_BS[:count].gather(1, self._steps_B[:count, None])[:, 0]
        tokens_B = self._draw(self._logits_BV[:count], uniform_B, self._mix)
        self._tokens_B[:count] = tokens_B
        self._burst_UB[index, :count] = tokens_B
        self._positions_B[:count].add_(1).mul_(self._alive_B[:count])
        self._steps_B[:count].add_(self._alive_B[:count])

    def _forward(self, count: int, window: int) -> None:
        """One step of the first `count` rows, from and into tensors that stay where they are."""
        layout, network = self._layout, self.network
        assert self._cache is not None
        lora = self.bank.grouped(len(layout.groups), layout.width) if layout.groups else NoLora()
        make = self._kernels.StepAttention if self._kernels else StepAttention
        attend: Attend = make(network, self._cache, self._positions_B[:count], window)
        hidden_BH = network.forward(self._tokens_B[:count], attend, lora)
        network.logits(hidden_BH, out=self._logits_BV[:count])

    def _draw(self, logits_BV: Tensor, uniform_B: Tensor, mix: list[tuple[Sampling, Tensor | None]]) -> Tensor:
        if len(mix) == 1:
            return _sampler.draw(logits_BV, uniform_B, mix[0][0])
        tokens_B = torch.zeros(logits_BV.shape[0], dtype=torch.long, device=logits_BV.device)
        for sampling, index in mix:
            assert index is not None
            index = index.to(logits_BV.device)
            tokens_B[index] = _sampler.draw(logits_BV[index], uniform_B[index], sampling)
        return tokens_B

    def _land(self, burst: _Burst) -> Iterator[Row]:
        """Hand a burst's tokens to their rows; yields those that ended."""
        if burst.done is not None:
            burst.done.synchronize()
        for row, tokens in zip(burst.rows, burst.tokens[:, : len(burst.rows)].T.tolist(), strict=True):
            if row is not None and not row.done:
                yield from self._take(row, tokens)

    def _take(self, row: Row, tokens: list[int]) -> Iterator[Row]:
        row.finish = row.take(tokens, self.ends)
        if row.finish:
            row.done = True
            self._alive_changed = True
            self.stats.tokens += len(row.tokens)
            yield row


def chunks(items: list[Any], budget: int) -> Iterator[list[Any]]:
    """Prompts of like length together, at most `budget` padded tokens a pass; base and adapted apart."""
    items = sorted(items, key=lambda item: (item[0][0] is None, len(item[0][1])))
    chunk: list[Any] = []
    for item in items:
        same = not chunk or (chunk[0][0][0] is None) == (item[0][0] is None)
        if chunk and (not same or (len(chunk) + 1) * len(item[0][1]) > budget):
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk


def _mix(rows: Sequence[Row | None]) -> list[tuple[Sampling, Tensor | None]]:
    """Which places draw how. One way for all needs no index."""
    ways: dict[tuple[float, float, int], tuple[Sampling, list[int]]] = {}
    for place, row in enumerate(rows):
        if row is not None:
            sampling = row.request.sampling
            key = sampling.temperature, sampling.top_p, sampling.top_k
            ways.setdefault(key, (sampling, []))[1].append(place)
    if len(ways) == 1:
        return [(sampling, None) for sampling, _ in ways.values()]
    return [(sampling, torch.tensor(places)) for sampling, places in ways.values()]


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text


def _kernels(network: Network) -> Any:
    """The Triton kernels, or None (with a warning) where they cannot be had: the plain torch step then serves."""
    try:
        from rune.engines import _kernels as module

        module.check(network)
    except Exception as error:  # a missing compiler shows in many ways; none may stop a run that can go on
        console.warn(f"no Triton kernels ({str(error).splitlines()[0] if str(error) else error!r}); using plain torch")
        return None
    network.silu_mul = module.silu_mul
    return module
