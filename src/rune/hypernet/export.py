"""Trajectories in, adapters out: the hypernetwork at work, without the upper layers of the base model."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rune.adapters import convert
from rune.adapters.factors import Factors, concatenate, select
from rune.adapters.peft import Adapter
from rune.adapters.registry.records import MadeFrom, Source
from rune.errors import DataError
from rune.hypernet import checkpoint
from rune.hypernet.features import FeatureTable, Reader
from rune.models import loader
from rune.runs import store
from rune.types import ModelRef, Trajectory


class AdapterGenerator:
    """A loaded checkpoint and the first layers of its base model."""

    def __init__(self, folder: Path, model: ModelRef, *, device: str, dtype: str) -> None:
        """Raises AdapterError if the checkpoint was made for another base model, DataError if it is no hypernetwork."""
        self.stored = checkpoint.load(folder, model, device=device)
        if self.stored.both is None or self.stored.hypernet is None:
            raise DataError(f"{folder}: a static LoRA, not a hypernetwork; pass the folder checkpoints/hypernet")
        self.both = self.stored.both
        self.digest = store.sha256_file(folder / checkpoint.WEIGHTS)  # of what is loaded now, whatever lies there later
        self.model, self.device = model, device
        taps = self.stored.hypernet.taps
        base, tokenizer = load_trunk(model, max(taps), device=device, dtype=dtype)
        self.reader = Reader(base, tokenizer, taps=taps, digest=model.digest, folder=None)

    @torch.no_grad()
    def generate(self, sets: Sequence[Sequence[Trajectory]], *, strength: float = 1.0) -> dict[str, Factors]:
        """One adapter per set, N = len(sets): static part + strength · trajectory part. An empty set is legal.

        Factors: down [Y, N, R, I], up [Y, N, R, O], with R = static rank + trajectory rank.
        """
        flat = [t for one in sets for t in one]
        if flat:
            table, numbers = FeatureTable(self.reader.read(flat)), iter(range(len(flat)))
            steps = table.batch([[next(numbers) for _ in one] for one in sets])
        else:
            # One token that the mask hides: only the shapes are needed.
            table = FeatureTable(self.reader.read([_NOTHING]))
            steps = table.batch([[] for _ in sets])
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            made = self.both.hypernet(steps)
        return concatenate(self.static(), made.factors, strength=strength)

    def static(self) -> dict[str, Factors]:
        """The constant part alone: the control that says how much is due to trajectories. N = 1."""
        return {m: Factors(f.down_YNRI.detach(), f.up_YNRO.detach()) for m, f in self.both.static.factors().items()}

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


_NOTHING = Trajectory(trajectory_id="nothing", task_id="nothing", benchmark="", prompt="nothing", attempts=())


class Made(NamedTuple):
    """An adapter and what the registry keeps of its origin."""

    adapter: Adapter
    made_from: MadeFrom


def adapter_from(generator: AdapterGenerator, trajectories: Sequence[Trajectory], *, strength: float = 1.0) -> Made:
    """One adapter from all of these trajectories, for use outside of a run: float32, α/r = 1 (B carries the scale).

    `strength`: λ, the factor on the part of ΔW that comes from the trajectories.
    """
    made = generator.generate([list(trajectories)], strength=strength)
    adapter = convert.to_adapter(made, generator.stored.layout, base_model=generator.model.digest)
    sources = tuple(Source(trajectory_id=t.trajectory_id, task_id=t.task_id) for t in trajectories)
    return Made(adapter, MadeFrom(sources=sources, hypernet=generator.digest, how=f"hypernet, strength {strength:g}"))


def outside(folder: Path, model: ModelRef, *, device: str) -> AdapterGenerator:
    """A generator for use outside of a run. Raises as `AdapterGenerator` does."""
    return AdapterGenerator(folder, model, device=device, dtype=reading_dtype(device))


@functools.lru_cache(maxsize=2)
def maker(folder: Path, model: ModelRef, device: str, dtype: str) -> AdapterGenerator:
    """An `AdapterGenerator` that several arms share."""
    return AdapterGenerator(folder, model, device=device, dtype=dtype)


def reading_dtype(device: str) -> str:
    """What the base model reads trajectories in when an adapter is made outside of a run.

    bfloat16 where the hardware multiplies it (twice as fast on a CPU; trained checkpoints read so too), else float32.
    """
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # private: absent in other versions of torch
    native = any(getattr(torch.cpu, name, lambda: False)() for name in asked)
    return "bfloat16" if device == "cuda" or native else "float32"


@functools.lru_cache(maxsize=1)
def load_trunk(model: ModelRef, layers: int, *, device: str, dtype: str) -> tuple[Any, Any]:
    """The base model cut to its first layers, and its tokenizer: the rest is never read from disk.

    Frozen, so that the checkpoints of a process share it.
    """
    return loader.load(model, device=device, dtype=dtype, layers=layers), loader.tokenizer(model)
