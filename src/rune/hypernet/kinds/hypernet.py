"""An encoder over the base model's first layers, heads for A and B, and a static LoRA beneath: `hypernet/model.py`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rune.adapters.factors import Factors, LoraTargets, StaticLora, concatenate
from rune.hypernet.base import Base
from rune.hypernet.features import FeatureTable, Reader
from rune.hypernet.settings import HypernetConfig, LoraConfig
from rune.hypernet.trainer import HypernetWithStatic, new_hypernet
from rune.models import loader
from rune.types import ModelRef, Trajectory

HOW = "in one forward pass"  # for a model card: how an adapter is made
_NOTHING = Trajectory(trajectory_id="nothing", task_id="nothing", benchmark="", prompt="nothing", attempts=())


@dataclass(frozen=True, kw_only=True)
class Config:
    """What settings.json says of it."""

    lora: LoraConfig
    hypernet: HypernetConfig


def build(config: Config, layout: LoraTargets) -> HypernetWithStatic:
    """With weights that are still to be read. Raises ConfigError for an unknown encoder or setting of it."""
    static = StaticLora(layout, rank=config.lora.rank, alpha=config.lora.alpha)
    return HypernetWithStatic(static, new_hypernet(layout, config.hypernet))


def writer(
    config: Config,
    module: HypernetWithStatic,
    model: ModelRef,
    *,
    device: str,
    dtype: str,
    base: Callable[[], Base] | None,
) -> Writer:
    """It reads with a trunk of its own: `base` would do, but most of it is not needed."""
    return Writer(config.hypernet.taps, module, model, device=device, dtype=dtype)


class Writer:
    """Trajectories in, adapters out, in one pass of the first layers."""

    def __init__(
        self, taps: Sequence[int], module: HypernetWithStatic, model: ModelRef, *, device: str, dtype: str
    ) -> None:
        self.module, self.device = module, device
        trunk, tokenizer = _load_trunk(model, max(taps), device=device, dtype=dtype)
        self.reader = Reader(trunk, tokenizer, taps=taps, digest=model.digest, folder=None)

    @torch.no_grad()
    def generate(self, sets: Sequence[Sequence[Trajectory]], *, strength: float) -> dict[str, Factors]:
        """Static part + strength · trajectory part; R = static rank + trajectory rank. An empty set is legal."""
        flat = [t for one in sets for t in one]
        if flat:
            table, numbers = FeatureTable(self.reader.read(flat)), iter(range(len(flat)))
            steps = table.batch([[next(numbers) for _ in one] for one in sets])
        else:
            # One token that the mask hides: only the shapes are needed.
            table = FeatureTable(self.reader.read([_NOTHING]))
            steps = table.batch([[] for _ in sets])
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            made = self.module.hypernet(steps)
        static = {m: Factors(*(t.detach() for t in f)) for m, f in self.module.static.factors().items()}
        return concatenate(static, made.factors, strength=strength)


@functools.lru_cache(maxsize=1)
def _load_trunk(model: ModelRef, layers: int, *, device: str, dtype: str) -> tuple[Any, Any]:
    """The base model cut to its first layers, and its tokenizer: the rest is never read from disk.

    Frozen, so that the checkpoints of a process share it.
    """
    return loader.load(model, device=device, dtype=dtype, layers=layers), loader.tokenizer(model)
