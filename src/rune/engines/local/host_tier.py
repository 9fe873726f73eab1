"""Adapters in host memory, between the disk and the device; read ahead for requests that wait.

An adapter is named by its content, so what was read once is right for ever. Those unused for longest leave when
`most_bytes` are held.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from rune.adapters.peft import Adapter
from rune.errors import RuneError
from rune.types import AdapterRef


class HostTier:
    """See the module's docstring. Safe for several threads."""

    def __init__(self, read: Callable[[AdapterRef], Adapter], most_bytes: int) -> None:
        """`read`: from the disk, or AdapterError; one call at a time. 0 bytes: nothing is kept or fetched."""
        self._read, self._most_bytes = read, most_bytes
        self._held: OrderedDict[str, Adapter] = OrderedDict()
        self._reading: dict[str, Future[None]] = {}
        self._guard, self._disk = threading.Lock(), threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self.bytes = 0
        self.hits = 0  # adapters that were wanted and were here

    def __len__(self) -> int:
        return len(self._held)

    def fetch(self, ref: AdapterRef) -> None:
        """Begin to read an adapter that somebody will want, unless it is here."""
        with self._guard:
            if not self._most_bytes or ref.adapter_id in self._held or ref.adapter_id in self._reading:
                return
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "rune-adapters")
            self._reading[ref.adapter_id] = self._thread.submit(self._fetched, ref)

    def ready(self, ref: AdapterRef) -> bool:
        """Whether there is nothing to wait for: what was fetched has come, or could not be read."""
        with self._guard:
            return ref.adapter_id not in self._reading

    def take(self, ref: AdapterRef) -> Adapter:
        """An adapter from here, from a read that is under way, or from the disk now. Raises AdapterError."""
        with self._guard:
            reading = self._reading.get(ref.adapter_id)
        if reading is not None:
            reading.result()
        with self._guard:
            held = self._held.get(ref.adapter_id)
            if held is not None:
                self._held.move_to_end(ref.adapter_id)
                self.hits += 1
                return held
        with self._disk:
            adapter = self._read(ref)
        self._keep(ref.adapter_id, adapter)
        return adapter

    def close(self) -> None:
        """Forget everything, and end the thread."""
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(cancel_futures=True)
        with self._guard:
            self._held.clear()
            self._reading.clear()
            self.bytes = 0

    def _fetched(self, ref: AdapterRef) -> None:
        try:
            with suppress(RuneError, OSError), self._disk:  # whoever takes it will read again, and hear why
                self._keep(ref.adapter_id, self._read(ref))
        finally:
            with self._guard:
                self._reading.pop(ref.adapter_id, None)

    def _keep(self, adapter_id: str, adapter: Adapter) -> None:
        size = size_of(adapter)
        with self._guard:
            if adapter_id in self._held or size > self._most_bytes:
                return
            self._held[adapter_id] = adapter
            self.bytes += size
            while self.bytes > self._most_bytes:
                _, oldest = self._held.popitem(last=False)
                self.bytes -= size_of(oldest)


def size_of(adapter: Adapter) -> int:
    """Bytes of its factors."""
    return sum(factor.numel() * factor.element_size() for pair in adapter.pairs.values() for factor in pair)
