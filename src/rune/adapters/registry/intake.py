"""From a PEFT folder, ours or another's, to an entry; and back to an adapter in memory.

What is kept is written anew in one form, so that the same adapter has the same bytes and the same id whoever wrote
its folder. Refused, in one line: DoRA, biases, several ranks, unknown modules, NaN, an adapter that changes nothing,
too high a rank, an unknown base model (see `peft.read_peft` for the kinds of LoRA).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rune.adapters import peft
from rune.adapters.modules import MODULES
from rune.adapters.registry.records import Draft, Entry, MadeFrom, Place
from rune.adapters.registry.registry import Registry
from rune.errors import AdapterError, DataError

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Prepared(NamedTuple):
    """An adapter ready to be brought in."""

    draft: Draft
    config: bytes
    weights: bytes


def prepare(
    adapter: peft.Adapter,
    place: Place,
    made_from: MadeFrom,
    *,
    base_name: str = "",
    base_revision: str = "",
    max_rank: int,
    owner: str = "",
) -> Prepared:
    """An adapter in memory as files and a draft. Raises AdapterError if it is refused.

    `owner` sets it apart from the same adapter of others: an id then tells nobody what somebody else has.
    """
    if not _DIGEST.fullmatch(adapter.base_model):
        raise AdapterError(
            "the adapter does not say which base model it belongs to; add --base MODEL (a name that "
            "`rune models list` shows, or the sha256 of the weights)"
        )
    unknown = sorted({name.rpartition(".")[2] for name in adapter.pairs} - set(MODULES))
    if unknown:
        raise AdapterError(f"the adapter changes '{unknown[0]}'; known target modules: {', '.join(MODULES)}")
    if adapter.rank > max_rank:
        raise AdapterError(
            f"the adapter has rank {adapter.rank}, the limit is {max_rank}; reduce it, or raise --max-rank"
        )
    norm = peft.delta_w_norm(adapter)
    if not norm > 0:
        raise AdapterError("the adapter changes nothing: its ΔW is zero")
    config, weights = peft.encode(adapter, base_model_name=base_name, base_revision=base_revision, owner=owner)
    draft = Draft(
        id=hashlib.sha256(weights).hexdigest(),
        base=adapter.base_model,
        base_name=base_name,
        place=place,
        rank=adapter.rank,
        modules=tuple(sorted({name.rpartition(".")[2] for name in adapter.pairs})),
        parameters=sum(pair.a.numel() + pair.b.numel() for pair in adapter.pairs.values()),
        size=len(weights),
        delta_w_norm=norm,
        made_from=made_from,
    )
    return Prepared(draft, config, weights)


def read(
    folder: Path, place: Place, made_from: MadeFrom, *, base: str = "", base_name: str = "", max_rank: int
) -> Prepared:
    """A PEFT folder. `base` is what the user says of its base model; a folder of ours says it too.

    Raises AdapterError with the folder's name.
    """
    adapter = peft.read_peft(folder)
    if base and adapter.base_model and adapter.base_model != base:
        raise AdapterError(
            f"{folder}: made for base model {adapter.base_model[:12]}…, --base says {base[:12]}…; leave --base out"
        )
    adapter = peft.Adapter(pairs=adapter.pairs, scale=adapter.scale, base_model=adapter.base_model or base)
    written = json.loads((folder / peft.CONFIG_FILE).read_text(encoding="utf-8"))
    try:
        return prepare(
            adapter,
            place,
            made_from,
            base_name=base_name or str(written.get("base_model_name_or_path") or ""),
            base_revision=str(written.get("revision") or ""),
            max_rank=max_rank,
        )
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from None


def load(registry: Registry, found: Entry, *, base: str = "") -> peft.Adapter:
    """An adapter in memory, its bytes verified. Raises AdapterError for damage, another base, too high a rank."""
    registry.check(found, base=base)
    adapter = peft.read_peft(registry.objects.verify(found.id))
    if adapter.base_model != found.base or adapter.rank != found.rank:
        raise AdapterError(f"adapter {found.short}: its entry and its files disagree; run `rune adapters verify`")
    return adapter


def load_all(registry: Registry, entries: Sequence[Entry]) -> list[peft.Adapter]:
    """Adapters that are to be combined: of one base. Raises DataError for none, AdapterError as `load` does."""
    if not entries:
        raise DataError("no adapters to combine; name one or more")
    return [load(registry, found, base=entries[0].base) for found in entries]
