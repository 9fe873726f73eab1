"""Which adapters a device holds. Registered is more: the rest lie on the disk until somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Places for adapters beside the model, and who has them; counters are since the engine was built."""

    places: int
    resident: tuple[str, ...]  # ids, the one unused for longest first
    pinned: frozenset[str]  # ids that never leave by themselves
    loads: int  # to the device
    evictions: int
    load_seconds: float  # of all loads together
    held: int = 0  # adapters in host memory, read from the disk before or ahead of time
    held_bytes: int = 0
    held_hits: int = 0  # of the loads, those that needed no disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefixes:
    """Prefixes of prompts that were read before; counters are since the session began."""

    blocks: int
    bytes: int
    hits: int  # tokens of prompts that were not read again
    asked: int  # tokens of all prompts
