"""Small random adapters, as objects in memory and as PEFT folders."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from rune.adapters import peft
from rune.adapters.peft import Adapter, Pair
from rune.adapters.registry import intake
from rune.adapters.registry.records import Entry, Fitness, MadeFrom, Place
from rune.adapters.registry.registry import Registry

BASE = hashlib.sha256(b"a base model").hexdigest()
OTHER = hashlib.sha256(b"another base model").hexdigest()
SIZES = {
    "model.layers.0.self_attn.q_proj": (12, 10),
    "model.layers.0.mlp.down_proj": (16, 12),
    "model.layers.1.self_attn.q_proj": (12, 10),
}


def adapter(
    seed: int, *, rank: int = 3, base: str = BASE, scale: float = 2.0, names: tuple[str, ...] = tuple(SIZES)
) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    pairs = {
        name: Pair(torch.randn(SIZES[name][0], rank, generator=rng), torch.randn(rank, SIZES[name][1], generator=rng))
        for name in names
    }
    return Adapter(pairs=pairs, scale=scale, base_model=base)


def delta(adapter: Adapter, name: str) -> torch.Tensor:
    """ΔW [I, O] in float64, dense."""
    pair = adapter.pairs[name]
    return adapter.scale * pair.a.double() @ pair.b.double()


def folder(path: Path, seed: int, **options: object) -> Path:
    peft.write_peft(path, adapter(seed, **options), base_model_name="org/base")  # type: ignore[arg-type]
    return path


def put(
    registry: Registry,
    seed: int,
    place: Place,
    *,
    fitness: float | None = None,
    made_from: MadeFrom | None = None,
    **options: object,
) -> Entry:
    ready = intake.prepare(
        adapter(seed, **options),  # type: ignore[arg-type]
        place,
        made_from or MadeFrom(),
        base_name="org/base",
        max_rank=registry.max_rank,
    )
    entry, _ = registry.insert(ready.draft, ready.config, ready.weights)
    if fitness is not None:
        registry.set_fitness(entry.id, measured(fitness))
    return registry.get(entry.id)


def measured(value: float, *, low: float = 0.0, high: float = 1.0) -> Fitness:
    return Fitness(
        value=value,
        low=low,
        high=high,
        level=0.95,
        alpha=0.7,
        pass_rate=value,
        generalization=value,
        inside_tasks=4,
        outside_tasks=4,
        draws=40,
        protocol="p",
        measured="2026-01-01T00:00:00Z",
    )
