"""Out of the registry: PEFT folders that vLLM, SGLang and PEFT load, with a note of what they were made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rune.adapters.layout import CONFIG_FILE, WEIGHTS_FILE
from rune.adapters.registry import origin
from rune.adapters.registry.records import Entry, MadeFrom
from rune.adapters.registry.registry import Registry
from rune.errors import StoreError
from rune.runs import store

if TYPE_CHECKING:
    from rune.adapters.peft import Adapter


def one(registry: Registry, found: Entry, output: Path) -> None:
    """An adapter as it lies in the registry, byte by byte, verified. Raises AdapterError, StoreError."""
    source = registry.objects.verify(found.id)
    _empty(output)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        store.write_atomic(output / name, (source / name).read_bytes())
    sources = tuple(registry.sources(found.id))
    parents = tuple((e.parent, e.weight) for e in registry.lineage(found.id).ancestors if e.child == found.id)
    origin.write(output, MadeFrom(sources=sources, hypernet=found.hypernet, how=found.how, parents=parents))


def composed(
    registry: Registry, whole: Adapter, parts: Sequence[tuple[str, float]], output: Path, *, base_name: str
) -> None:
    """An adapter made of entries; `parts` are their ids and weights."""
    from rune.adapters import peft

    _empty(output)
    peft.write_peft(output, whole, base_model_name=base_name)
    sources = {s.trajectory_id: s for digest, _ in parts for s in registry.sources(digest)}
    weights: dict[str, float] = defaultdict(float)
    for digest, weight in parts:
        weights[digest] += weight
    origin.write(output, MadeFrom(sources=tuple(sources.values()), how="composed", parents=tuple(weights.items())))


def _empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder}: there is something already; give -o another folder")
