"""Which blocks of the pool of keys and values are free, and how many hold each of the others. The host's side alone.

A block is room for `BLOCK` positions of one row in every layer. A row holds the blocks of its positions, in order; rows
that share a prompt share the blocks that the prompt fills, which nobody writes to any more, and the prefix cache holds
some of those longer. A block is free when the last of its holders gave it back. Block 0 is nobody's: what is written
for a place without a row, or behind a row's end, goes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32  # positions
TYPICAL_SHARE = 8  # rows are planned for an eighth of what one may reach; longer ones take what the others leave


class Room(NamedTuple):
    """Rows drawn at once, and blocks beside block 0; without paging 0."""

    rows: int
    blocks: int = 0


class Blocks:
    """See the module's docstring. For one thread."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count, 0, -1))  # the last one is taken first: few pages of a CPU are ever written to
        self._holders = [0] * (count + 1)
        self._cached = [False] * (count + 1)  # the prefix cache is one of the holders
        self.spare = 0  # of which it is the only holder

    @property
    def free(self) -> int:
        return len(self._free)

    def unused(self) -> list[range]:
        """Runs of free blocks."""
        runs: list[range] = []
        for block in sorted(self._free):
            if runs and runs[-1].stop == block:
                runs[-1] = range(runs[-1].start, block + 1)
            else:
                runs.append(range(block, block + 1))
        return runs

    def take(self, count: int) -> list[int]:
        """So many free blocks; the caller has asked whether there are as many."""
        assert 0 <= count <= self.free
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def share(self, blocks: Sequence[int]) -> None:
        """One more holds them."""
        for block in blocks:
            assert self._holders[block]
            self.spare -= self._cached[block] and self._holders[block] == 1
            self._holders[block] += 1

    def give(self, blocks: Sequence[int]) -> None:
        """One of their holders needs them no longer."""
        for block in blocks:
            assert self._holders[block]
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free.append(block)
            else:
                self.spare += self._cached[block] and self._holders[block] == 1

    def cache(self, blocks: Sequence[int]) -> Cached:
        """The prefix cache holds them too, until it releases what it gets here."""
        self.share(blocks)
        for block in blocks:
            assert not self._cached[block]
            self._cached[block] = True
        return Cached(self, blocks)

    def uncache(self, blocks: Sequence[int]) -> None:
        """The prefix cache holds them no longer."""
        for block in blocks:
            self.spare -= self._holders[block] == 1
            self._cached[block] = False
        self.give(blocks)


class Copies(NamedTuple):
    """Some positions' keys and values [L, V, S, D], apart from any row's."""

    keys_LVSD: Tensor
    values_LVSD: Tensor

    @property
    def tokens(self) -> int:
        return self.keys_LVSD.shape[2]

    def first(self, tokens: int) -> Copies:
        return Copies(self.keys_LVSD[:, :, :tokens], self.values_LVSD[:, :, :tokens])

    def release(self) -> None:
        """Nothing to give back: the tensors go with the record."""

    @staticmethod
    def joined(parts: Sequence[Copies]) -> Copies:
        """One after another."""
        return Copies(*(torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True)))


class Cached:
    """Some positions' keys and values, in blocks that the prefix cache holds."""

    def __init__(self, pool: Blocks, blocks: Sequence[int]) -> None:
        self._pool, self.blocks = pool, tuple(blocks)

    @property
    def tokens(self) -> int:
        return BLOCK * len(self.blocks)

    def first(self, tokens: int) -> Cached:
        return Cached(self._pool, self.blocks[: tokens // BLOCK])

    def release(self) -> None:
        self._pool.uncache(self.blocks)


def needed(positions: int) -> int:
    """Blocks of so many positions."""
    return -(-positions // BLOCK)


def plan_room(free_bytes: int, *, row_bytes: int, block_bytes: int, longest: int, most_rows: int, beside: int) -> Room:
    """Rows and blocks that so many bytes carry: room.rows · row_bytes + (room.blocks + 1) · block_bytes at most.

    As many rows as find blocks for an eighth of the `longest` (in blocks) that one may reach, and blocks for all that
    they may reach and `beside` for prompts, or as many as there is room for. Never fewer than one row and the blocks of
    its longest, which may be more than the bytes carry: the caller looks.
    """
    typical = needed(longest * BLOCK // TYPICAL_SHARE)
    alone = (longest + 1) * block_bytes
    rows = min(most_rows, (free_bytes - block_bytes) // (row_bytes + typical * block_bytes))
    rows = max(1, min(rows, (free_bytes - alone) // row_bytes))
    blocks = min(rows * longest + beside, (free_bytes - rows * row_bytes) // block_bytes - 1)
    return Room(rows, max(blocks, longest))
