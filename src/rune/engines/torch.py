"""The engine in this process, with torch: its settings. The engine, `local/torch_engine.py`, is loaded when built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rune.adapters.folders import AdapterSource, Folders
from rune.types import ModelRef

if TYPE_CHECKING:
    from rune.engines.local.torch_engine import TorchEngine


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[engine]` when name = "torch". Zero means: chosen for the device."""

    max_rows: int = 0  # rows decoded at once (1024 on a GPU, 64 on a CPU), if memory carries them
    memory_fraction: float = 0.85  # share of the memory free at the start that a batch may take
    prefill_tokens: int = 0  # prompt tokens in one pass (16384 on a GPU, 2048 on a CPU)
    burst: int = 0  # steps between two looks at the tokens (4 on a GPU, 1 on a CPU)
    max_adapters: int = 1024  # kept resident; adapters from folders beyond it leave, oldest first
    window: int = 4096  # tokens that prompt and answer of a submitted request may reach; `complete` looks at its own
    device_bytes: int = 0  # rows, adapters and prefixes of submitted requests together; 0: by memory_fraction
    host_bytes: int = 512 << 20  # adapters in host memory, for submitted requests; 0: each is read from the disk
    prefix_bytes: int = 256 << 20  # keys and values of submitted prompts, for those that begin alike; 0: none
    kv_layout: str = ""  # "paged": rows get room for keys and values as they grow; "static": all they may need at once
    graphs: bool = True  # CUDA graphs

    def __post_init__(self) -> None:
        if min(self.max_rows, self.prefill_tokens, self.burst) < 0 or min(self.max_adapters, self.window) < 1:
            raise ValueError(
                "max_rows, prefill_tokens and burst must be at least 0, max_adapters and window at least 1"
            )
        if self.kv_layout not in ("", "paged", "static"):
            raise ValueError(f"kv_layout must be paged, static or left out, found {self.kv_layout!r}")
        if min(self.device_bytes, self.host_bytes, self.prefix_bytes) < 0:
            raise ValueError("device_bytes, host_bytes and prefix_bytes must be at least 0")
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(f"memory_fraction must be in (0, 1], found {self.memory_fraction}")


def build(
    config: Config, *, model: ModelRef, device: str, dtype: str, adapters: AdapterSource | None = None
) -> TorchEngine:
    """Load the model. Raises ModelError, or EngineError for a family that the loop does not know."""
    from rune.engines.local.torch_engine import TorchEngine
    from rune.models import loader

    return TorchEngine(config, model, loader.load(model, device=device, dtype=dtype), adapters or Folders())
