"""The host's side of a batch: rows, and the order in which they stand in it.

Rows that wear an adapter come first, in G groups of equal width K (short groups are filled with dead rows), so
that the adapters are one grouped product without any gather of activations; rows of the base model follow and
cost nothing extra. The width is the one that makes the step cheapest: wide groups waste rows, narrow ones read an
adapter several times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rune.engines.local.text import StopWatch
from rune.types import Request


class Report(NamedTuple):
    """How likely the model found a drawn token, and which tokens it found likeliest there, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One draw on its way: what it was asked for and what it has so far."""

    request: Request
    draw: int
    prompt: tuple[int, ...]
    watch: StopWatch
    tokens: list[int] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)  # one a token where the request asks for them
    slot: int = -1  # its place in the batch and in the cache; -1 while it waits
    blocks: list[int] = field(default_factory=list)  # where keys and values are paged: those of its positions, in order
    entered: int = 0  # how many rows had been in the batch when it came first
    done: bool = False
    finish: str = ""  # "stop" or "length" once it is done

    @property
    def seed(self) -> int:
        return self.request.seed + self.draw

    @property
    def adapter_id(self) -> str | None:
        return self.request.adapter.adapter_id if self.request.adapter else None

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def longest(self) -> int:
        """What its length may reach."""
        return len(self.prompt) + self.request.sampling.max_new_tokens

    @property
    def text(self) -> tuple[int, ...]:
        """All that it has: what is read when it enters, and may have entered before."""
        return (*self.prompt, *self.tokens) if self.tokens else self.prompt

    def take(self, tokens: Sequence[int], ends: frozenset[int], reports: Sequence[Report] = ()) -> str:
        """Append new tokens up to the one that ends the row; "" or why it ended ("stop", "length")."""
        before = len(self.tokens)
        finish = self._append(tokens, ends)
        self.reports += reports[: len(self.tokens) - before]
        return finish

    def _append(self, tokens: Sequence[int], ends: frozenset[int]) -> str:
        room = self.request.sampling.max_new_tokens - len(self.tokens)
        fresh = list(tokens[:room])
        last = next((index for index, token in enumerate(fresh) if token in ends), None)
        shown = fresh if last is None else fresh[:last]
        stopped = self.watch.push(shown)
        if stopped is not None:
            last = stopped
        if last is not None:
            self.tokens += fresh[: last + 1]
            return "stop"
        self.tokens += fresh
        return "length" if len(self.tokens) >= self.request.sampling.max_new_tokens else ""

    def restart(self) -> None:
        """Forget what was drawn; the same seed draws the same again. Its blocks are gone with the cache."""
        self.tokens.clear()
        self.reports.clear()
        self.blocks.clear()
        self.slot, self.done, self.finish = -1, False, ""
        self.watch = self.watch.fresh()


BLOCK_ROWS = 16  # rows of one block of a ragged layout: what a matrix unit takes at least


class Block(NamedTuple):
    """Neighbouring rows of a ragged layout that wear one adapter; `group` −1 is the base model."""

    first: int
    rows: int
    group: int


class BatchPlan(NamedTuple):
    """Rows in batch order; None is a dead place. The first `len(groups)`·`width` rows wear `groups[i]`.

    A ragged layout has `blocks` instead, which cover all places.
    """

    rows: tuple[Row | None, ...]
    groups: tuple[str, ...]
    width: int
    blocks: tuple[Block, ...] = ()


EMPTY = BatchPlan((), (), 0)


def arrange(rows: Sequence[Row], *, most: int, row_cost: float, adapter_cost: float) -> BatchPlan:
    """The cheapest layout of at most `most` places. Costs are bytes a step moves for one row and for one adapter."""
    applied: dict[str, list[Row]] = defaultdict(list)
    base: list[Row] = []
    for row in rows:
        (base if row.adapter_id is None else applied[row.adapter_id]).append(row)
    if not applied:
        return BatchPlan(tuple(base), (), 0)
    counts = [len(members) for members in applied.values()]

    def num_groups(width: int) -> int:
        return sum(-(-count // width) for count in counts)

    # Width 1 has no dead places, so one width always fits.
    fitting = [w for w in sorted({1, *counts, *range(2, 9)}) if num_groups(w) * w + len(base) <= most]
    width = min(fitting, key=lambda w: num_groups(w) * (adapter_cost + w * row_cost))
    placed: list[Row | None] = []
    groups: list[str] = []
    for adapter_id, members in applied.items():
        for first in range(0, len(members), width):
            chunk = members[first : first + width]
            placed += [*chunk, *[None] * (width - len(chunk))]
            groups.append(adapter_id)
    return BatchPlan((*placed, *base), tuple(groups), width)


def stepped(count: int) -> int:
    """The next of sixteen sizes an octave: what is recorded for a size serves those a little smaller."""
    step = 1 << max((count - 1).bit_length() - 5, 0)
    return -(-count // step) * step


def arrange_ragged(rows: Sequence[Row], *, most: int) -> BatchPlan:
    """Rows of one adapter side by side, in blocks as long as they come; base rows last. For kernels that take any.

    Places (at most `most`) and blocks are as many as `stepped` says, so that few shapes occur: the places behind the
    rows are dead and base, the blocks behind the blocks empty.
    """
    applied: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        applied[row.adapter_id].append(row)
    base: list[Row | None] = list(applied.pop(None, []))
    base += [None] * (min(stepped(len(rows)), most) - len(rows))
    if not applied:
        return BatchPlan(tuple(base), (), 0)
    placed: list[Row | None] = []
    blocks: list[Block] = []
    parts: list[Sequence[Row | None]] = [*applied.values(), base]
    for group, members in enumerate(parts):
        for first in range(0, len(members), BLOCK_ROWS):
            size = min(BLOCK_ROWS, len(members) - first)
            blocks.append(Block(len(placed) + first, size, group if group < len(applied) else -1))
        placed += members
    blocks += [Block(0, 0, -1)] * (min(stepped(len(blocks)), most) - len(blocks))
    return BatchPlan(
        tuple(placed), tuple(adapter_id for adapter_id in applied if adapter_id is not None), 0, tuple(blocks)
    )


class Span(NamedTuple):
    """Neighbouring rows whose attention looks at the same number of positions."""

    first: int
    last: int  # the first row behind it
    window: int


def spans(lengths: Sequence[int], *, call_cost: int = 256) -> list[Span]:
    """The cheapest cut of a batch into spans: Σ rows · longest, and `call_cost` positions for each span.

    One long prompt in a batch then costs its own row and not everybody's. Lengths count as multiples of 64.
    """
    lengths = [-(-length // 64) * 64 for length in lengths]
    best, cut = [0], [0]  # of the first n rows: the cost, and where their last span begins
    for last in range(1, len(lengths) + 1):
        longest, cheapest, start = 0, -1, 0
        for first in reversed(range(last)):
            longest = max(longest, lengths[first])
            cost = best[first] + longest * (last - first) + call_cost
            if cheapest < 0 or cost < cheapest:
                cheapest, start = cost, first
        best.append(cheapest)
        cut.append(start)
    found: list[Span] = []
    last = len(lengths)
    while last:
        found.append(Span(cut[last], last, max(lengths[cut[last] : last])))
        last = cut[last]
    return found[::-1]


def shared_starts(known: Mapping[int, int], *, pass_cost: int) -> dict[int, int]:
    """Where prompts begin to be read, so that few passes read them all: tokens known → tokens that are used.

    `known`: how many prompts know so many tokens of theirs. Those of one pass begin behind equally many, so where two
    share it one of them reads again what it knows. Cheapest: Σ tokens read again, and `pass_cost` tokens for each pass.
    """
    levels = sorted(known)
    best, cut = [0], [0]  # of the first n levels: the cost, and where their last pass begins
    for last in range(1, len(levels) + 1):
        costs = [
            best[first] + pass_cost + sum(known[level] * (level - levels[first]) for level in levels[first:last])
            for first in range(last)
        ]
        best.append(min(costs))
        cut.append(costs.index(best[-1]))
    starts: dict[int, int] = {}
    last = len(levels)
    while last:
        starts |= dict.fromkeys(levels[cut[last] : last], levels[cut[last]])
        last = cut[last]
    return starts


def plan_rows(free_bytes: int, *, row_bytes: int, most: int) -> int:
    """As many rows as the free memory carries: at least one, at most `most`."""
    return max(1, min(most, free_bytes // max(row_bytes, 1)))
