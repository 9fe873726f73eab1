"""CUDA graphs by shape: the first run of a shape is eager (it warms libraries up), the second is recorded."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from rune import console


class Graphs:
    """Replays what was recorded for a key. Everything the work touches must stay at its address; else `clear`."""

    def __init__(self, *, enabled: bool) -> None:
        self.enabled = enabled
        self.recorded = 0
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._seen: set[Hashable] = set()
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def clear(self) -> None:
        """Forget everything recorded. The next graphs get a new memory pool: an emptied one cannot be reused."""
        self._graphs.clear()
        self._seen.clear()
        self._pool = None

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        graph = self._graphs.get(key)
        if graph is None and self.enabled and key in self._seen:
            graph = self._record(key, work)
        if graph is not None:
            graph.replay()
            return
        self._seen.add(key)
        work()

    def _record(self, key: Hashable, work: Callable[[], None]) -> torch.cuda.CUDAGraph | None:
        """Record without running. `torch.cuda.graph` would collect garbage and empty the allocator each time."""
        current = torch.cuda.current_stream()
        self._stream = self._stream or torch.cuda.Stream()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            console.warn(f"CUDA graphs are off, steps run eagerly: {str(error).splitlines()[0]}")
            self.enabled = False
            self._graphs.clear()
            return None
        current.wait_stream(self._stream)
        self._graphs[key] = graph
        self.recorded += 1
        return graph
