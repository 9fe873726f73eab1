"""The prefix cache: keys and values of prompts that were read before, block by block, for those that begin alike.

A block is known by what the model had read up to its end: the adapter, everything before the block, and its own
tokens, in one chain of sha256. So no adapter ever gets another's keys, and an alias that names another adapter now gets
that one's. Requests of different `Request.salt` share nothing: how fast an answer comes tells no tenant what another
has asked. The blocks unused for longest leave when `most_bytes` are held, the end of a prompt before its beginning.

Only submitted requests use it: a list of requests is drawn as if it were alone.

Legend: L layers · V key/value heads · D head size · S positions of a block
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

BLOCK = 32  # tokens


class Block(NamedTuple):
    """What the model made of `BLOCK` tokens."""

    adapter_id: str | None
    keys_LVSD: Tensor
    values_LVSD: Tensor

    @property
    def bytes(self) -> int:
        return 2 * self.keys_LVSD.numel() * self.keys_LVSD.element_size()


class PrefixCache:
    """See the module's docstring. For one thread."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.bytes = 0
        self.hits = 0  # tokens that were not read again
        self.asked = 0  # tokens of all prompts

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, adapter_id: str | None, salt: str, prompt: Sequence[int]) -> list[Block]:
        """The blocks that a prompt begins with. At least its last token is left to read: it gives the next one."""
        names: list[bytes] = []
        found: list[Block] = []
        for name in _names(adapter_id, salt, prompt[:-1]):
            block = self._blocks.get(name)
            if block is None:
                break
            names.append(name)
            found.append(block)
        for name in reversed(names):  # a block is of no use without those before it: they leave after it
            self._blocks.move_to_end(name)
        self.asked += len(prompt)
        self.hits += len(found) * BLOCK
        return found

    def keep(
        self, adapter_id: str | None, salt: str, prompt: Sequence[int], cut: Callable[[int], tuple[Tensor, Tensor]]
    ) -> None:
        """A prompt that was read. `cut(first)`: keys and values of the block that begins there, copied."""
        names = list(_names(adapter_id, salt, prompt))
        for number, name in enumerate(names):
            if name not in self._blocks:
                block = self._blocks[name] = Block(adapter_id, *cut(number * BLOCK))
                self.bytes += block.bytes
        for name in reversed(names):
            self._blocks.move_to_end(name)
        self.shrink(self.most_bytes)

    def shrink(self, most_bytes: int) -> None:
        """Give memory back until no more than so much is held."""
        while self.bytes > most_bytes:
            _, oldest = self._blocks.popitem(last=False)
            self.bytes -= oldest.bytes

    def forget(self, adapter_id: str) -> None:
        """Of an adapter whose name may come to mean another: one that was handed over as tensors."""
        for name in [name for name, block in self._blocks.items() if block.adapter_id == adapter_id]:
            self.bytes -= self._blocks.pop(name).bytes


def _names(adapter_id: str | None, salt: str, tokens: Sequence[int]) -> Iterator[bytes]:
    """One for each whole block of a prompt."""
    name = hashlib.sha256(repr((adapter_id, salt)).encode()).digest()
    for first in range(0, len(tokens) - BLOCK + 1, BLOCK):
        name = hashlib.sha256(name + array("q", tokens[first : first + BLOCK]).tobytes()).digest()
        yield name
