"""Which adapters a device holds. Registered is more: the rest lie on the disk until somebody asks for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Places for adapters beside the model, and who has them; counters are since the engine was built."""

    places: int
    resident: tuple[str, ...]  # ids, the one unused for longest first
    pinned: frozenset[str]  # ids that never leave by themselves
    loads: int  # from a folder
    evictions: int
    load_seconds: float  # of all loads together
