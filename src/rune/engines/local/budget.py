"""One number of bytes on the device for all that a session keeps there beside the model.

    total = rows · (keys and values of a row, its logits)  +  adapters  +  prefixes of prompts

Prefixes get at most an eighth, adapters at least a quarter; rows take the rest, up to the number that is wanted, and
what they leave is the adapters'. Where keys and values are paged, rows and prefixes share one pool of blocks.
"""

from __future__ import annotations

from typing import NamedTuple

from rune.engines.local.blocks import needed, plan_room
from rune.errors import EngineError

PREFIX_SHARE, ADAPTER_SHARE = 8, 4  # parts of the whole: at most 1/8, at least 1/4


class Budget(NamedTuple):
    """How `device_bytes` are spent."""

    rows: int  # drawn at once
    prefixes: int  # bytes
    adapters: int  # bytes
    blocks: int = 0  # of rows and prefixes together, where they are paged

    def places(self, adapter_bytes: int) -> int:
        """How many adapters of this size are held: each once, and those in the batch a second time, lined up."""
        copies = self.adapters // max(adapter_bytes, 1)
        return copies // 2 if copies <= 2 * self.rows else copies - self.rows


def divide(total: int, *, row_bytes: int, most_rows: int, prefix_bytes: int, window: int) -> Budget:
    """Raises EngineError if not one row of `window` tokens fits."""
    prefixes = min(prefix_bytes, total // PREFIX_SHARE)
    rows = min(most_rows, (total - prefixes - total // ADAPTER_SHARE) // row_bytes)
    if rows < 1:
        enough = -(-row_bytes * PREFIX_SHARE // (PREFIX_SHARE - 1 - PREFIX_SHARE // ADAPTER_SHARE)) + PREFIX_SHARE
        raise _too_little(total, row_bytes, window, enough)
    return Budget(rows, prefixes, total - prefixes - rows * row_bytes)


def divide_paged(
    total: int, *, row_bytes: int, block_bytes: int, most_rows: int, prefix_bytes: int, window: int
) -> Budget:
    """The same with a pool of blocks; `row_bytes` are then beside keys and values. Raises EngineError as `divide`."""
    prefixes = min(prefix_bytes, total // PREFIX_SHARE)
    longest = needed(-(-window // 64) * 64)
    room = plan_room(
        total - total // ADAPTER_SHARE, row_bytes=row_bytes, block_bytes=block_bytes, longest=longest,
        most_rows=most_rows, beside=prefixes // block_bytes,
    )  # fmt: skip
    adapters = total - room.rows * row_bytes - (room.blocks + 1) * block_bytes
    if adapters < total // ADAPTER_SHARE:
        least = row_bytes + (longest + 1) * block_bytes
        raise _too_little(total, least, window, -(-least * ADAPTER_SHARE // (ADAPTER_SHARE - 1)))
    return Budget(room.rows, prefixes, adapters, room.blocks)


def _too_little(total: int, least: int, window: int, enough: int) -> EngineError:
    return EngineError(
        f"engine.settings.device_bytes = {total} is too little: one request of {window} tokens takes {least}, "
        f"beside adapters; set {enough} or more, or a smaller engine.settings.window"
    )
