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
same tokens. `run` takes turns until a list of rows is done; a session (`session.py`) takes the same turns for as long
as requests come. This file is the host's side; `device` is the other.
"""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil
import torch

from rune import console
from rune.engines.local.adapter_pool import AdapterPool
from rune.engines.local.batch import (
    EMPTY,
    BatchPlan,
    Report,
    Row,
    arrange,
    arrange_ragged,
    plan_rows,
    shared_starts,
)
from rune.engines.local.device import Device, PendingBurst
from rune.engines.local.kv_cache import Cache
from rune.engines.local.network import Network
from rune.engines.local.prefixes import Prefix, PrefixCache
from rune.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the loop may use."""

    max_rows: int  # rows decoded at once
    memory_fraction: float  # of what is free when a call starts
    prefill_tokens: int  # prompt tokens, padding included, in one pass
    pass_cost: int  # what a pass costs beside its tokens, in tokens
    burst: int  # steps between two looks of the host
    graphs: bool
    look_seconds: float = 10.0  # between two looks at what memory is free, where rows wait for some


@dataclass(slots=True)
class Stats:
    """How it goes; read by progress bars and benches."""

    tokens: int = 0  # of finished rows
    rows_alive: int = 0
    rows_waiting: int = 0
    steps: int = 0
    row_steps: int = 0  # Σ over steps of the rows in the batch, dead places included
    repacks: int = 0
    prompt_tokens: int = 0  # read, each shared prompt once
    passes: int = 0  # forward passes that read them
    prefill_seconds: float = 0.0  # in these
    halvings: int = 0  # batches that did not fit in memory


class Decoder:
    """One model, its bank of adapters and one batch at a time."""

    def __init__(self, network: Network, pool: AdapterPool, *, ends: frozenset[int], limits: Limits) -> None:
        self.network, self.pool, self.ends, self.limits = network, pool, ends, limits
        self.device = Device(network, pool, burst=limits.burst, graphs=limits.graphs)
        self.stats = Stats()
        self.waiting: deque[Row] = deque()
        self.prefixes: PrefixCache | None = None  # a session's
        self._layout = EMPTY
        self._entering: list[Row] = []
        self._moved: list[Row] = []
        self._flying: _Burst | None = None
        self._alive_changed = False
        self._wanted = self._length = self._steps = self._adapters = 0  # what `open` was asked for
        self._rows = 0  # of these, those that memory carries
        self._growing = False  # no row enters until the batch is empty: the next one is larger
        self._looked = 0.0  # when memory was looked at last, by time.monotonic
        self._short = False  # whether it was said that little is free
        self._pool_version = -1

    def run(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Decode every row; yields each when it is done, in any order."""
        if not rows:
            return
        self.open(
            min(len(rows), self.limits.max_rows),
            length=max(len(row.prompt) + row.request.sampling.max_new_tokens for row in rows),
            steps=max(row.request.sampling.max_new_tokens for row in rows),
            adapters=len({row.adapter_id for row in rows} - {None}),
        )
        self.waiting.extend(rows)
        try:
            while self.busy:
                yield from (row for row in self.turn() if row.done)
        finally:
            self.rest()

    # ------------------------------------------------------------------ one turn at a time

    def open(self, rows: int, *, length: int, steps: int, adapters: int) -> None:
        """Make ready for at most `rows` rows at once, each of `length` tokens at most, `steps` of them drawn.

        `adapters`: how many different ones they may wear. Rows enter through `waiting`.
        """
        self._wanted, self._length, self._steps, self._adapters = rows, -(-length // 64) * 64, steps, adapters
        self._growing = False
        if self.device.holds(rows, self._length, steps):
            self._rows = rows
        else:
            self._fit()

    @property
    def busy(self) -> bool:
        """Whether a turn would move anything."""
        return bool(self.waiting or self.alive())

    def turn(self) -> list[Row]:
        """A repack, or a burst; the rows that gained tokens by it, those that are done among them.

        Raises EngineError if not even one row fits in memory. Where a batch does not fit, a smaller one begins.
        """
        self._moved = []
        try:
            self._look_again()
            if not self.device.ready:
                self.device.allocate(self._rows, self._length, self._steps)
            self._advance()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._back_off(error)
        self.stats.rows_alive, self.stats.rows_waiting = len(self.alive()), len(self.waiting)
        return self._moved

    def drop(self, rows: Sequence[Row]) -> None:
        """Rows that nobody waits for: they leave at the next repack, or never enter."""
        unwanted = {id(row) for row in rows}
        self.waiting = deque(row for row in self.waiting if id(row) not in unwanted)
        for row in rows:
            row.done = True
        self._alive_changed = True

    def rest(self) -> None:
        """Forget all rows. On a CPU the memory goes too; a GPU keeps its graphs for what comes next."""
        self._forget()
        if not self.device.asynchronous:
            self.release()

    def release(self) -> None:
        """Let go of the cache and everything recorded over it; the next call makes its own."""
        self._entering, self._layout, self._flying = [], EMPTY, None
        self.device.release()

    def alive(self) -> list[Row]:
        """Rows in the batch that are not done."""
        return [row for row in self._layout.rows if row is not None and not row.done]

    # ------------------------------------------------------------------ inside

    def _forget(self) -> None:
        self.waiting.clear()
        self._entering, self._layout, self._flying = [], EMPTY, None
        self.stats.rows_alive = self.stats.rows_waiting = 0

    def _advance(self) -> None:
        # An adapter that came meanwhile may have moved the others, or taken the place of one whose rows have ended.
        waiting = 0 if self._growing else len(self.waiting)
        if self.pool.version != self._pool_version or self._worth_repacking(waiting):
            self._land()
            self._repack()
            return
        before, self._flying = self._flying, self._launch()
        if before is not None:
            self._collect(before)
        if not self.device.asynchronous:
            self._land()

    def _land(self) -> None:
        flying, self._flying = self._flying, None
        if flying is not None:
            self._collect(flying)

    def _worth_repacking(self, waiting: int) -> bool:
        """A repack costs about a step: wait until an eighth can enter, or a fifth of the batch's rows have left.

        Rows, not places: a layout of many adapters has dead places from the start, which no repack would remove.
        """
        alive, room = len(self.alive()), self.device.rows
        if waiting:
            return alive == 0 or room - alive >= max(1, min(room // 8, waiting))
        filled = sum(row is not None for row in self._layout.rows)
        return alive <= 0.8 * filled and (filled > 8 or not self.device.asynchronous)

    def _back_off(self, error: BaseException) -> None:
        used = self.device.rows or self._rows
        for row in dict.fromkeys([*self.alive(), *(row for row in self._entering if not row.done)]):
            row.restart()
            self.waiting.appendleft(row)
        self.release()
        if self.prefixes is not None:
            self.prefixes.shrink(0)
        if used <= 1:
            raise EngineError(
                f"one row does not fit in the memory of {self.network.device}: {str(error).splitlines()[0]}; "
                "use a shorter max_new_tokens, a smaller model or --set model.quantize=nf4"
            ) from None
        self.stats.halvings += 1
        console.warn(f"out of memory with {used} rows at once; going on with {used // 2}")
        self._rows = self._wanted = used // 2  # what is free does not say what fits: it does not grow again

    def row_bytes(self, length: int) -> int:
        """Of a row of `length` tokens: keys and values, logits, their float copies while drawing, activations."""
        network = self.network
        return Cache.row_bytes(network, length) + 24 * network.vocabulary + 64 * (network.ffn + network.hidden)

    def _fit(self) -> None:
        """Give the batch's memory back, and take as many rows as what is free carries; few are said in one line."""
        self.release()
        self._rows, self._looked = self._plan(), time.monotonic()
        short = 8 * self._rows <= self._wanted
        if short and not self._short:
            device = self.network.device
            viewer = "nvidia-smi" if device.type == "cuda" else "top"
            console.warn(
                f"{free_memory(device) / 1e9:.1f} GB of memory are free on {device}: {self._rows} of {self._wanted} "
                f"rows fit at once, more when more is free; see what else is there ({viewer}), or use a shorter "
                "max_new_tokens, a smaller model or --set model.quantize=nf4"
            )
        self._short = short

    def _look_again(self) -> None:
        """Where rows wait since memory was short: more of them at once, if it carries twice as many by now.

        The batch runs empty before, so that no row starts over: one that is streamed might not say the same again.
        """
        if not self.waiting or self._rows >= self._wanted:
            return
        if not self._growing and time.monotonic() - self._looked >= self.limits.look_seconds:
            self._looked = time.monotonic()
            self._growing = self._plan() >= 2 * self._rows
        if self._growing and not self.alive():
            self._land()
            before, self._growing = self._rows, False
            self._fit()
            console.note(f"memory was looked at again: {self._rows} rows at once, {before} before")

    def _plan(self) -> int:
        """Of the wanted rows, those that memory carries, with what the batch holds now."""
        network, held = self.network, 0
        if self.device.asynchronous:  # a CPU's pages count when they are written
            held = self.device.rows * self.row_bytes(self._length)
        reserve = 48 * self.limits.prefill_tokens * (network.ffn + network.hidden)
        reserve += self._adapters * self.pool.adapter_bytes
        if self.prefixes is not None:
            reserve += self.prefixes.most_bytes - self.prefixes.bytes
        return plan_rows(
            free_bytes=free_memory(network.device) + held,
            fraction=self.limits.memory_fraction,
            row_bytes=self.row_bytes(self._length),
            reserve_bytes=reserve,
            most=min(self.limits.max_rows, self._wanted),
        )

    def _repack(self) -> None:
        """Survivors move together, waiting rows enter the room that is left, adapters line up."""
        old = self.alive()
        room = 0 if self._growing else min(self.device.rows - len(old), len(self.waiting))
        fresh = [self.waiting.popleft() for _ in range(room)]
        self._entering = fresh
        rows = [*old, *fresh]
        if not self.device.asynchronous:  # like lengths side by side: attention goes span by span there
            rows.sort(key=lambda row: row.length)
        if self.device.ragged:
            layout = arrange_ragged(rows, most=self.device.rows)
        else:
            layout = arrange(
                rows,
                most=self.device.rows,
                row_cost=Cache.row_bytes(self.network, 256),
                adapter_cost=self.pool.adapter_bytes,
            )
        slots = {id(row): slot for slot, row in enumerate(layout.rows) if row is not None}
        if old:
            longest = max(row.length for row in old)
            self.device.move([row.slot for row in old], [slots[id(row)] for row in old], longest)
        for row in (*old, *fresh):
            row.slot = slots[id(row)]
        self.pool.activate(layout.groups)
        self._pool_version = self.pool.version
        self._layout = layout
        if fresh:
            self._admit(fresh)
        self._entering = []
        self.device.upload(layout)
        self._alive_changed = False
        self.stats.repacks += 1

    def _admit(self, fresh: list[Row]) -> None:
        """Prefill fresh rows, each (adapter, prompt) once, and draw their first tokens."""
        self.device.seed([row.slot for row in fresh], [row.seed for row in fresh])
        shared: dict[tuple[str | None, str, tuple[int, ...]], list[Row]] = defaultdict(list)
        for row in fresh:
            shared[row.adapter_id, row.request.salt, row.prompt].append(row)
        apart: dict[bool, list[_Prompt]] = defaultdict(list)  # with and without an adapter are never read together
        for (adapter_id, salt, prompt), members in shared.items():
            known = self.prefixes.find(adapter_id, salt, prompt) if self.prefixes is not None else Prefix(0, ())
            apart[adapter_id is None].append(_Prompt(members, known))
        for prompts in apart.values():
            starts = shared_starts(Counter(p.known.tokens for p in prompts), pass_cost=self.limits.pass_cost)
            by_start: dict[int, list[tuple[tuple[str | None, tuple[int, ...]], _Prompt]]] = defaultdict(list)
            for rows, known in prompts:
                start = starts[known.tokens]
                key = rows[0].adapter_id, rows[0].prompt[start:]
                by_start[start].append((key, _Prompt(rows, known.first(start))))
            for start, items in by_start.items():
                for chunk in chunks(items, self.limits.prefill_tokens, before=start):
                    self._read(chunk)

    def _read(self, chunk: list[tuple[tuple[str | None, tuple[int, ...]], _Prompt]]) -> None:
        """Prompts in one pass. All of them go on after equally many tokens that are known already."""
        self.stats.prompt_tokens += sum(len(tokens) for (_, tokens), _ in chunk)
        self.stats.passes += 1
        rows = [row for _, prompt in chunk for row in prompt.rows]
        before = None
        if chunk[0][1].known.tokens:
            keys_LVND, values_LVND = zip(*(_joined(prompt.known) for _, prompt in chunk), strict=True)
            before = torch.stack(keys_LVND, dim=1), torch.stack(values_LVND, dim=1)
        started = time.perf_counter()
        first = self.device.prefill([key for key, _ in chunk], [len(p.rows) for _, p in chunk], rows, before)
        self.stats.prefill_seconds += time.perf_counter() - started
        if self.prefixes is not None:
            for _, prompt in chunk:
                row = prompt.rows[0]
                self.prefixes.asked += len(row.prompt)
                self.prefixes.hits += prompt.known.tokens
                cut = functools.partial(self.device.cut, row.slot)
                self.prefixes.keep(row.adapter_id, row.request.salt, row.prompt, cut)
        for row, token, report in zip(rows, *first, strict=True):
            self._take(row, [token], [] if report is None else [report])

    def _launch(self) -> _Burst:
        layout, burst = self._layout, self.limits.burst
        if self._alive_changed:
            self.device.retire([row is not None and not row.done for row in layout.rows])
            self._alive_changed = False
        self.stats.steps += burst
        self.stats.row_steps += burst * len(layout.rows)
        return _Burst(layout, self.device.launch(layout))

    def _collect(self, burst: _Burst) -> None:
        """Hand a burst's tokens to their rows."""
        tokens, reports = burst.flight.wait(), burst.flight.reports_by_place()
        for place, row in enumerate(burst.layout.rows):
            if row is not None and not row.done:
                self._take(row, tokens[place], reports.get(place, []))

    def _take(self, row: Row, tokens: list[int], reports: list[Report]) -> None:
        row.finish = row.take(tokens, self.ends, reports)
        self._moved.append(row)
        if row.finish:
            row.done = True
            self._alive_changed = True
            self.stats.tokens += len(row.tokens)


class _Prompt(NamedTuple):
    """A prompt to read: the rows that share it, and what it begins with and need not be read."""

    rows: list[Row]
    known: Prefix


class _Burst(NamedTuple):
    """Steps under way, and the layout they were launched with."""

    layout: BatchPlan
    flight: PendingBurst


def _joined(known: Prefix) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [L, V, N, D] of all its tokens."""
    keys, values = zip(*known.parts, strict=True)
    return torch.cat(keys, dim=2), torch.cat(values, dim=2)


def chunks(items: list[Any], budget: int, *, before: int = 0) -> Iterator[list[Any]]:
    """Prompts of like length together, at most `budget` padded tokens a pass; base and adapted apart.

    `before`: tokens that stand before each, known already: their keys and values are in the pass too.
    """
    items = sorted(items, key=lambda item: (item[0][0] is None, len(item[0][1])))
    chunk: list[Any] = []
    for item in items:
        same = not chunk or (chunk[0][0][0] is None) == (item[0][0] is None)
        if chunk and (not same or (len(chunk) + 1) * (before + len(item[0][1])) > budget):
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(psutil.virtual_memory().available)


def out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text
