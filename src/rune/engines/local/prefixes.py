"""The prefix cache: keys and values of prompts that were read before, block by block, for those that begin alike.

A block is known by what the model had read up to its end: the adapter, everything before the block, and its own
tokens, in one chain of sha256. So no adapter ever gets another's keys, and an alias that names another adapter now gets
that one's. Requests of different `Request.salt` share nothing: how fast an answer comes tells no tenant what another
has asked. What a prompt adds to what is held is one run of blocks: the row's own where keys and values are paged
(`blocks.Cached`), a copy where they are not (`blocks.Copies`). The runs unused for longest leave when `most_bytes` are
held, or when rows need their blocks, the end of a prompt before its beginning.

Only submitted requests use it: a list of requests is drawn as if it were alone.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rune.engines.local.blocks import BLOCK, Cached, Copies

Kept = Copies | Cached


class Prefix(NamedTuple):
    """What a prompt begins with."""

    tokens: int
    parts: Sequence[Kept]  # one after another

    def first(self, tokens: int) -> Prefix:
        """Its first tokens alone."""
        parts: list[Kept] = []
        left = tokens
        for part in self.parts:
            if left <= 0:
                break
            parts.append(part.first(left))
            left -= part.tokens
        return Prefix(tokens, parts)


class _Run(NamedTuple):
    """Neighbouring blocks of one prompt."""

    adapter_id: str | None
    names: Sequence[bytes]  # of its blocks
    kept: Kept


class PrefixCache:
    """See the module's docstring. For one thread."""

    def __init__(self, most_bytes: int, *, block_bytes: int) -> None:
        """`block_bytes`: keys and values of `BLOCK` tokens."""
        self.most_bytes, self._block_bytes = most_bytes, block_bytes
        self._runs: OrderedDict[int, _Run] = OrderedDict()  # unused for longest first
        self._where: dict[bytes, int] = {}  # a block's name → its run
        self._made = 0  # runs so far
        self.hits = 0  # tokens that were not read again; counted by whoever reads
        self.asked = 0  # tokens of all prompts

    def __len__(self) -> int:
        """Blocks."""
        return len(self._where)

    @property
    def bytes(self) -> int:
        return len(self._where) * self._block_bytes

    def find(self, adapter_id: str | None, salt: str, prompt: Sequence[int]) -> Prefix:
        """The blocks that a prompt begins with. At least its last token is left to read: it gives the next one."""
        found: dict[int, int] = {}  # run → blocks: the first ones, since each has its run's earlier ones before it
        for name in _names(adapter_id, salt, prompt[:-1]):
            run = self._where.get(name)
            if run is None:
                break
            found[run] = found.get(run, 0) + 1
        self._touch(found)
        parts = [self._runs[run].kept.first(blocks * BLOCK) for run, blocks in found.items()]
        return Prefix(sum(found.values()) * BLOCK, parts)

    def keep(self, adapter_id: str | None, salt: str, prompt: Sequence[int], cut: Callable[[int, int], Kept]) -> None:
        """A prompt that was read. `cut(first, count)`: keys and values of so many positions from there, to be kept."""
        names = list(_names(adapter_id, salt, prompt))[: self.most_bytes // self._block_bytes]
        missing = [number for number, name in enumerate(names) if name not in self._where]
        if missing:
            first, last = missing[0], missing[-1] + 1
            lacking = [name for name in names[first:last] if name not in self._where]
            if len(lacking) < last - first:  # what stands between was left over: its beginning had to go
                self._drop({self._where[name] for name in names[first:last] if name in self._where})
            self._made += 1
            self._runs[self._made] = _Run(adapter_id, names[first:last], cut(first * BLOCK, (last - first) * BLOCK))
            self._where |= dict.fromkeys(names[first:last], self._made)
        self._touch(dict.fromkeys(self._where[name] for name in names if name in self._where))
        self.shrink(self.most_bytes)

    def shrink(self, most_bytes: int) -> None:
        """Give memory back until no more than so much is held."""
        while self.bytes > most_bytes and self.shrink_by_one():
            pass

    def shrink_by_one(self) -> bool:
        """The run unused for longest leaves; False: there is none."""
        if not self._runs:
            return False
        self._drop({next(iter(self._runs))})
        return True

    def forget(self, adapter_id: str) -> None:
        """Of an adapter whose name may come to mean another: one that was handed over as tensors."""
        self._drop({number for number, run in self._runs.items() if run.adapter_id == adapter_id})

    def _touch(self, runs: Mapping[int, object]) -> None:
        """A run is of no use without those before it: they leave after it."""
        for run in reversed(list(runs)):
            self._runs.move_to_end(run)

    def _drop(self, runs: set[int]) -> None:
        for number in runs:
            run = self._runs.pop(number)
            run.kept.release()
            for name in run.names:
                del self._where[name]


def _names(adapter_id: str | None, salt: str, tokens: Sequence[int]) -> Iterator[bytes]:
    """One for each whole block of a prompt."""
    name = hashlib.sha256(repr((adapter_id, salt)).encode()).digest()
    for first in range(0, len(tokens) - BLOCK + 1, BLOCK):
        name = hashlib.sha256(name + array("q", tokens[first : first + BLOCK]).tobytes()).digest()
        yield name
