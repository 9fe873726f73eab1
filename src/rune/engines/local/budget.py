"""One number of bytes on the device for all that a session keeps there beside the model.

    total = rows · (keys and values of a row, its logits)  +  adapters  +  prefixes of prompts

Prefixes get at most an eighth, adapters at least a quarter; rows take the rest, up to the number that is wanted, and
what they leave is the adapters'.
"""

from __future__ import annotations

from typing import NamedTuple

from rune.errors import EngineError

PREFIX_SHARE, ADAPTER_SHARE = 8, 4  # parts of the whole: at most 1/8, at least 1/4


class Budget(NamedTuple):
    """How `device_bytes` are spent."""

    rows: int  # drawn at once
    prefixes: int  # bytes
    adapters: int  # bytes

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
        raise EngineError(
            f"engine.settings.device_bytes = {total} is too little: one request of {window} tokens takes {row_bytes}, "
            f"beside adapters; set {enough} or more, or a smaller engine.settings.window"
        )
    return Budget(rows, prefixes, total - prefixes - rows * row_bytes)
