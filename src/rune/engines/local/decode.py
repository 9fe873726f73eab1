"""The decoding loop: admit, prefill, step, retire, repack; until every row is done.

    waiting rows ──admit──▶ prompts prefilled once per (prompt, adapter), copied to the rows that share them
                              │
                 burst of steps, all on the device: forward (CUDA graph) → draw → next position
                              │                             ▲
    finished rows ◀──retire── host reads the burst's tokens, one burst behind the device
                              │
                 repack when rows left: survivors move together, new ones enter, adapters line up again

Rows that end inside a burst run on until the host has seen it; the surplus is thrown away, so it costs a little
time and never a token. Where keys and values are paged, rows get blocks as they grow; where none are left, prompts
that were kept for others go first, then the row that came last waits in front of those that never began. It keeps its
tokens, and when it enters again all that it has is read as a prompt is: nothing is drawn twice. When memory runs out
all the same the batch is halved and what was unfinished starts over: same seeds, same tokens. `run` takes turns until a
list of rows is done; a session (`session.py`) takes the same turns for as long as requests come. This file is the
host's side; `device` is the other.
"""

from __future__ import annotations

import functools
import itertools
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
from rune.engines.local.blocks import BLOCK, Cached, Copies, Room, needed, plan_room
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
    paged: bool  # keys and values
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
    preemptions: int = 0  # rows that waited in the middle since no block was free
    most_rows: int = 0  # in the batch at once, dead places not counted


class Decoder:
    """One model, its bank of adapters and one batch at a time."""

    def __init__(self, network: Network, pool: AdapterPool, *, ends: frozenset[int], limits: Limits) -> None:
        self.network, self.pool, self.ends, self.limits = network, pool, ends, limits
        self.device = Device(network, pool, burst=limits.burst, graphs=limits.graphs, paged=limits.paged)
        self.stats = Stats()
        self.waiting: deque[Row] = deque()
        self.prefixes: PrefixCache | None = None  # a session's
        self._layout = EMPTY
        self._entering: list[Row] = []
        self._moved: list[Row] = []
        self._flying: _Burst | None = None
        self._alive_changed = False
        self._wanted = Room(0)  # what `open` was asked for
        self._length = self._steps = self._adapters = 0
        self._room = Room(0)  # of what is wanted, what memory carries
        self._entered = 0  # rows so far
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
            length=max(row.longest for row in rows),
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

    def open(self, rows: int, *, length: int, steps: int, adapters: int, blocks: int = 0) -> None:
        """Make ready for at most `rows` rows at once, each of `length` tokens at most, `steps` of them drawn.

        `adapters`: how many different ones they may wear. Rows enter through `waiting`. `blocks`: where keys and values
        are paged, for rows and kept prompts together; 0: as many as they may fill.
        """
        asked = self._wanted, self._length, self._steps
        self._length, self._steps, self._adapters = -(-length // 64) * 64, steps, adapters
        if self.limits.paged and not blocks:
            blocks = rows * needed(self._length) + self._kept_blocks
        self._wanted, self._growing = Room(rows, blocks), False
        if self.device.holds(self._wanted, self._length, steps):
            self._room = self._wanted
        elif not (self._keeps_prompts and asked == (self._wanted, self._length, self._steps)):
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
                self.device.allocate(self._room, self._length, self._steps)
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
            self._give_back(row)
        self._alive_changed = True

    def rest(self) -> None:
        """Forget all rows. On a CPU the memory goes too, unless prompts are kept in it; a GPU keeps its graphs."""
        self._forget()
        if self.device.asynchronous:
            return
        if self._keeps_prompts:
            self.device.trim()
        else:
            self.release()

    def release(self) -> None:
        """Let go of the cache and everything recorded over it; the next call makes its own."""
        if self._keeps_prompts:
            assert self.prefixes is not None
            self.prefixes.shrink(0)
        self._entering, self._layout, self._flying = [], EMPTY, None
        self.device.release()

    def alive(self) -> list[Row]:
        """Rows in the batch that are not done."""
        return [row for row in self._layout.rows if row is not None and not row.done]

    # ------------------------------------------------------------------ inside

    def _forget(self) -> None:
        for row in (*self._layout.rows, *self._entering):
            if row is not None:
                self._give_back(row)
        self.waiting.clear()
        self._entering, self._layout, self._flying = [], EMPTY, None
        self.stats.rows_alive = self.stats.rows_waiting = 0

    def _advance(self) -> None:
        # An adapter that came meanwhile may have moved the others, or taken the place of one whose rows have ended.
        if self.pool.version != self._pool_version or self._worth_repacking():
            self._land()
            self._repack()
            return
        self._grow()
        if not self.alive():  # the last ones ended in the burst that was under way
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

    def _worth_repacking(self) -> bool:
        """A repack costs about a step: wait until an eighth can enter, or a fifth of the batch's rows have left.

        Rows, not places: a layout of many adapters has dead places from the start, which no repack would remove.
        """
        alive, waiting = len(self.alive()), 0 if self._growing else len(self.waiting)
        if waiting and (alive == 0 or not self.device.blocks):
            return alive == 0 or self.device.rows - alive >= max(1, min(self.device.rows // 8, waiting))
        if waiting and (able := self._able_to_enter()):
            return able >= max(1, min((alive + able) // 8, waiting))
        filled = sum(row is not None for row in self._layout.rows)
        return alive <= 0.8 * filled and (filled > 8 or not self.device.asynchronous)

    def _able_to_enter(self) -> int:
        """How many of the waiting rows, in their order, find a place, and blocks where these are paged."""
        if self._growing:
            return 0
        alive = self.alive()
        places = min(self.device.rows - len(alive), len(self.waiting))
        blocks = self.device.blocks
        if not blocks or not places:
            return places
        left = blocks.free + blocks.spare
        growing = sum(needed(row.longest) > len(row.blocks) for row in alive)
        shared: set[tuple[str | None, str, tuple[int, ...]]] = set()
        for able, row in enumerate(itertools.islice(self.waiting, places)):
            now = needed(self._reach(row, bursts=2))
            left -= now - row.length // BLOCK * (_read_as(row) in shared)
            shared.add(_read_as(row))
            growing += needed(row.longest) > now
            if left < growing - (not alive and able == 0):  # each that is there can grow before any has to wait
                assert alive or able, "no row holds blocks, and the first that waits finds none"
                return able
        return places

    # ------------------------------------------------------------------ blocks

    def _reach(self, row: Row, *, bursts: int) -> int:
        """Positions that a row may have written after so many bursts; what it writes behind its end is nobody's."""
        return min(row.length + bursts * self.limits.burst, row.longest)

    def _grow(self) -> None:
        """Rows get the blocks that the next burst writes to. Where there are none, the row that came last waits."""
        blocks = self.device.blocks
        if not blocks:
            return
        bursts = 1 if self._flying is None else 2
        alive = self.alive()
        short = [row for row in alive if needed(self._reach(row, bursts=bursts)) > len(row.blocks)]
        for row in sorted(short, key=lambda row: row.entered):
            while not row.done and row.slot >= 0 and not self._extend(row, bursts):
                if self._flying is not None:  # rows that have ended in it give theirs back
                    self._land()
                    bursts = 1
                    continue
                self._preempt(max(self.alive(), key=lambda row: row.entered))
            if not row.done and row.slot >= 0:
                self.device.give_blocks(row)

    def _extend(self, row: Row, bursts: int) -> bool:
        """Blocks for a row as far as it may reach; False: there are not so many."""
        blocks = self.device.blocks
        assert blocks is not None
        more = needed(self._reach(row, bursts=bursts)) - len(row.blocks)
        while blocks.free < more:
            if not blocks.spare or self.prefixes is None or not self.prefixes.shrink_by_one():
                return False
        row.blocks += blocks.take(max(more, 0))
        return True

    def _preempt(self, victim: Row) -> None:
        """A row leaves its place and waits, with what it has."""
        self._give_back(victim)
        victim.slot = -1
        places = tuple(None if row is victim else row for row in self._layout.rows)
        self._layout = self._layout._replace(rows=places)
        self._alive_changed = True
        self.waiting.appendleft(victim)
        self.stats.preemptions += 1

    def _give_back(self, row: Row) -> None:
        """A row's blocks are free, for what comes after the bursts under way."""
        blocks, row.blocks = row.blocks, []
        if self.device.blocks and blocks:
            self.device.blocks.give(blocks)
            if row.slot >= 0:
                self.device.give_blocks(row)

    def _back_off(self, error: BaseException) -> None:
        used = self._room
        if self.device.ready:
            used = Room(self.device.rows, self.device.blocks.count if self.device.blocks else 0)
        for row in dict.fromkeys([*self.alive(), *(row for row in self._entering if not row.done)]):
            row.restart()
            self.waiting.appendleft(row)
        self.release()
        if self.prefixes is not None:
            self.prefixes.shrink(0)
        if used.rows <= 1:
            raise EngineError(
                f"one row does not fit in the memory of {self.network.device}: {str(error).splitlines()[0]}; "
                "use a shorter max_new_tokens, a smaller model or --set model.quantize=nf4"
            ) from None
        self.stats.halvings += 1
        console.warn(f"out of memory with {used.rows} rows at once; going on with {used.rows // 2}")
        fewer = max(used.blocks // 2, needed(self._length)) if used.blocks else 0
        self._room = self._wanted = Room(used.rows // 2, fewer)  # what is free does not say what fits: it stays so

    def row_bytes(self, length: int) -> int:
        """Of a row of `length` tokens: keys and values, logits, their float copies while drawing, activations."""
        network = self.network
        return Cache.row_bytes(network, length) + 24 * network.vocabulary + 64 * (network.ffn + network.hidden)

    @property
    def block_bytes(self) -> int:
        """Of a block: keys and values."""
        return Cache.row_bytes(self.network, BLOCK)

    def _fit(self) -> None:
        """Give the batch's memory back, and take as many rows as what is free carries; few are said in one line."""
        self.release()
        self._room, self._looked = self._plan(), time.monotonic()
        short = 8 * self._room.rows <= self._wanted.rows
        if short and not self._short:
            device = self.network.device
            viewer = "nvidia-smi" if device.type == "cuda" else "top"
            console.warn(
                f"{free_memory(device) / 1e9:.1f} GB of memory are free on {device}: {self._room.rows} of "
                f"{self._wanted.rows} rows fit at once, more when more is free; see what else is there ({viewer}), or "
                "use a shorter max_new_tokens, a smaller model or --set model.quantize=nf4"
            )
        self._short = short

    def _look_again(self) -> None:
        """Where rows wait since memory was short: more of them at once, if it carries twice as much by now.

        The batch runs empty before, so that no row starts over: one that is streamed might not say the same again.
        """
        room = self._room
        if not self.waiting or (room.rows >= self._wanted.rows and room.blocks >= self._wanted.blocks):
            return
        if not self._growing and time.monotonic() - self._looked >= self.limits.look_seconds:
            self._looked = time.monotonic()
            found = self._plan()
            self._growing = found.rows >= 2 * room.rows or found.blocks >= 2 * max(room.blocks, 1)
        if self._growing and not self.alive():
            self._land()
            self._growing = False
            self._fit()
            console.note(f"memory was looked at again: {self._room.rows} rows at once, {room.rows} before")

    @property
    def _keeps_prompts(self) -> bool:
        """Whether the cache holds prompts for others: they go with it."""
        return self.device.blocks is not None and bool(self.prefixes)

    @property
    def _kept_blocks(self) -> int:
        """That prompts may fill which are kept for others."""
        return self.prefixes.most_bytes // self.block_bytes if self.prefixes is not None else 0

    def _plan(self) -> Room:
        """Of what is wanted, what memory carries, with what the batch holds now."""
        network, held = self.network, 0
        if self.device.asynchronous:  # a CPU's pages count when they are written
            held = self.device.rows * self.row_bytes(0 if self.limits.paged else self._length)
            held += self.device.bytes if self.limits.paged else 0
        reserve = 48 * self.limits.prefill_tokens * (network.ffn + network.hidden)
        reserve += self._adapters * self.pool.adapter_bytes
        if self.prefixes is not None and not self.limits.paged:
            reserve += self.prefixes.most_bytes - self.prefixes.bytes
        free = int((free_memory(network.device) + held) * self.limits.memory_fraction) - reserve
        most = min(self.limits.max_rows, self._wanted.rows)
        if not self.limits.paged:
            return Room(plan_rows(free, row_bytes=self.row_bytes(self._length), most=most))
        found = plan_room(
            free,
            row_bytes=self.row_bytes(0),
            block_bytes=self.block_bytes,
            longest=needed(self._length),
            most_rows=most,
            beside=self._kept_blocks,
        )
        return Room(found.rows, min(found.blocks, self._wanted.blocks))

    def _repack(self) -> None:
        """Survivors move together, waiting rows enter the room that is left, adapters line up."""
        old = self.alive()
        fresh = [self.waiting.popleft() for _ in range(self._able_to_enter())]
        self._entering = fresh
        for row in fresh:
            self._entered += 1
            row.entered = row.entered or self._entered
        rows = [*old, *fresh]
        self.stats.most_rows = max(self.stats.most_rows, len(rows))
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
            shared[_read_as(row)].append(row)
        apart: dict[bool, list[_Prompt]] = defaultdict(list)  # with and without an adapter are never read together
        for (adapter_id, salt, text), members in shared.items():
            known = self.prefixes.find(adapter_id, salt, text) if self.prefixes is not None else Prefix(0, ())
            apart[adapter_id is None].append(_Prompt(members, known))
        passes: list[list[tuple[tuple[str | None, tuple[int, ...]], _Prompt]]] = []
        for prompts in apart.values():
            starts = shared_starts(Counter(p.known.tokens for p in prompts), pass_cost=self.limits.pass_cost)
            by_start: dict[int, list[tuple[tuple[str | None, tuple[int, ...]], _Prompt]]] = defaultdict(list)
            for rows, known in prompts:
                start = starts[known.tokens]
                key = rows[0].adapter_id, rows[0].text[start:]
                by_start[start].append((key, _Prompt(rows, known.first(start))))
            for start, items in by_start.items():
                passes += chunks(items, self.limits.prefill_tokens, before=start)
        if self.device.blocks:
            self._take_blocks([prompt for chunk in passes for _, prompt in chunk])
        for chunk in passes:
            self._read(chunk)

    def _take_blocks(self, prompts: Sequence[_Prompt]) -> None:
        """Rows hold what they begin with and need not read, then whatever else they read into."""
        blocks = self.device.blocks
        assert blocks is not None
        for rows, known in prompts:  # all of them first: a prompt that is not held may leave to make room
            for row in rows:
                row.blocks = [block for part in known.parts if isinstance(part, Cached) for block in part.blocks]
                blocks.share(row.blocks)
        for rows, _ in prompts:
            for row in rows:
                if row is not rows[0]:
                    common = rows[0].blocks[len(row.blocks) : row.length // BLOCK]
                    blocks.share(common)
                    row.blocks += common
                found = self._extend(row, 1)
                assert found, "a row entered that finds no blocks"

    def _read(self, chunk: list[tuple[tuple[str | None, tuple[int, ...]], _Prompt]]) -> None:
        """Prompts in one pass. All of them go on after equally many tokens that are known already."""
        self.stats.prompt_tokens += sum(len(tokens) for (_, tokens), _ in chunk)
        self.stats.passes += 1
        rows = [row for _, prompt in chunk for row in prompt.rows]
        before = None
        if start := chunk[0][1].known.tokens:
            before = self._before([prompt for _, prompt in chunk], start)
        started = time.perf_counter()
        first = self.device.prefill([key for key, _ in chunk], [len(p.rows) for _, p in chunk], rows, before)
        self.stats.prefill_seconds += time.perf_counter() - started
        if self.prefixes is not None:
            for _, prompt in chunk:
                row = prompt.rows[0]
                self.prefixes.asked += row.length
                self.prefixes.hits += prompt.known.tokens
                self.prefixes.keep(row.adapter_id, row.request.salt, row.prompt, functools.partial(self._cut, row))
        for row, token, report in zip(rows, *first, strict=True):
            self._take(row, [token], [] if report is None else [report])

    def _before(self, prompts: Sequence[_Prompt], start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [L, P, V, S, D] of the `start` tokens that each prompt begins with and that are known."""
        if self.device.blocks:
            return self.device.read_blocks([prompt.rows[0].blocks[: start // BLOCK] for prompt in prompts])
        joined = [Copies.joined([part for part in p.known.parts if isinstance(part, Copies)]) for p in prompts]
        keys_LVSD, values_LVSD = zip(*joined, strict=True)
        return torch.stack(keys_LVSD, dim=1), torch.stack(values_LVSD, dim=1)

    def _cut(self, row: Row, first: int, count: int) -> Cached | Copies:
        """Some of what a row has read (whole blocks), for others that begin so."""
        if self.device.blocks:
            return self.device.blocks.cache(row.blocks[first // BLOCK : (first + count) // BLOCK])
        return self.device.cut(row.slot, first, count)

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
            self._give_back(row)
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


def _read_as(row: Row) -> tuple[str | None, str, tuple[int, ...]]:
    """Rows of which this is the same are read once."""
    return row.adapter_id, row.request.salt, row.text


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
