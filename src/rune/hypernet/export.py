"""Trajectories in, adapters out: a hypernetwork of any kind at work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from rune import plugins
from rune.adapters import convert
from rune.adapters.factors import Factors, LoraTargets, select
from rune.adapters.peft import Adapter
from rune.adapters.registry.records import MadeFrom, Source
from rune.errors import DataError
from rune.hypernet import checkpoint
from rune.hypernet.base import Base
from rune.types import ModelRef, Trajectory


class Writer(Protocol):
    """What a part of `hypernet/kinds/` puts to work: its `writer(…)` gives one."""

    def generate(self, sets: Sequence[Sequence[Trajectory]], *, strength: float) -> dict[str, Factors]: ...


class AdapterGenerator:
    """A loaded checkpoint, and what of its base model it reads trajectories with."""

    def __init__(
        self, folder: Path, model: ModelRef, *, device: str, dtype: str, base: Callable[[], Base] | None = None
    ) -> None:
        """`base`: the whole base model, if the process has it; a kind that reads with all of it loads it otherwise.

        Raises AdapterError if the checkpoint was made for another base model, DataError if it is no hypernetwork.
        """
        self.stored = checkpoint.load(folder, model, device=device)
        part = plugins.load(checkpoint.KINDS, self.stored.kind)
        if not hasattr(part, "writer"):
            raise DataError(f"{folder}: a static LoRA, not a hypernetwork; pass the folder checkpoints/hypernet")
        self.digest = self.stored.sha256  # of what is loaded now, whatever lies there later
        self.model, self.device, self.how = model, device, str(part.HOW)
        self.writer: Writer = part.writer(
            self.stored.config, self.stored.module, model, device=device, dtype=dtype, base=base
        )

    @property
    def layout(self) -> LoraTargets:
        """The modules that its adapters change."""
        return self.stored.layout

    def generate(self, sets: Sequence[Sequence[Trajectory]], *, strength: float = 1.0) -> dict[str, Factors]:
        """One adapter per set, N = len(sets): constant part + strength · trajectory part, as far as the kind has them.

        Factors: down [Y, N, R, I], up [Y, N, R, O]. Raises DataError for a set that the kind cannot read.
        """
        return self.writer.generate(sets, strength=strength)

    def static(self) -> dict[str, Factors]:
        """The constant part alone: the control that says how much is due to trajectories. N = 1. Raises DataError."""
        return {m: Factors(*(t.detach() for t in f)) for m, f in self.stored.static.factors().items()}

    def iter_generate(
        self, sets: Sequence[Sequence[Trajectory]], *, strength: float, batch: int = 1
    ) -> Iterator[dict[str, Factors]]:
        """`generate`, yielding adapters with N = 1 in order.

        One at a time by default: sums over another batch round differently, and a resumed stage must make the same.
        """
        for start in range(0, len(sets), batch):
            made = self.generate(sets[start : start + batch], strength=strength)
            for n in range(len(sets[start : start + batch])):
                yield select(made, slice(n, n + 1))


class Made(NamedTuple):
    """An adapter and what the registry keeps of its origin."""

    adapter: Adapter
    made_from: MadeFrom


def adapter_from(generator: AdapterGenerator, trajectories: Sequence[Trajectory], *, strength: float = 1.0) -> Made:
    """One adapter from all of these trajectories, for use outside of a run: float32, α/r = 1 (B carries the scale).

    `strength`: λ, the factor on the part of ΔW that comes from the trajectories.
    """
    made = generator.generate([list(trajectories)], strength=strength)
    adapter = convert.to_adapter(made, generator.layout, base_model=generator.model.digest)
    sources = tuple(Source(trajectory_id=t.trajectory_id, task_id=t.task_id) for t in trajectories)
    how = f"{generator.stored.kind}, strength {strength:g}"
    return Made(adapter, MadeFrom(sources=sources, hypernet=generator.digest, how=how))


def outside(folder: Path, model: ModelRef, *, device: str) -> AdapterGenerator:
    """A generator for use outside of a run. Raises as `AdapterGenerator` does."""
    return AdapterGenerator(folder, model, device=device, dtype=reading_dtype(device))


@functools.lru_cache(maxsize=2)
def maker(
    folder: Path, model: ModelRef, device: str, dtype: str, base: Callable[[], Base] | None = None
) -> AdapterGenerator:
    """An `AdapterGenerator` that several arms share."""
    return AdapterGenerator(folder, model, device=device, dtype=dtype, base=base)


def reading_dtype(device: str) -> str:
    """What the base model reads trajectories in when an adapter is made outside of a run.

    bfloat16 where the hardware multiplies it (twice as fast on a CPU; trained checkpoints read so too), else float32.
    """
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: absent in other versions of torch
    native = any(getattr(torch.cpu, name, lambda: False)() for name in asked)
    return "bfloat16" if device == "cuda" or native else "float32"
