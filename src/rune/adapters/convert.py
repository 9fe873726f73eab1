"""Between factors (one tensor a module, all layers and adapters) and PEFT's form (a pair a linear layer)."""

# Shapes: Y layers · N adapters · R rank · I inputs · O outputs of a module
from __future__ import annotations

from pathlib import Path

import torch

from rune.adapters.factors import Adapters, Factors, LoraTargets
from rune.adapters.peft import Adapter, Pair, read_peft, write_peft
from rune.errors import AdapterError
from rune.models import registry
from rune.types import AdapterRef, ModelRef


def to_adapter(
    adapters: Adapters, layout: LoraTargets, *, base_model: str, dtype: torch.dtype = torch.float32
) -> Adapter:
    """N = 1 → the engines' record, ready for `put_adapter` or `write_peft`. alpha / rank is 1: B carries the scale."""
    stacked = {}
    for module, (down_YNRI, up_YNRO) in adapters.items():
        for layer in range(layout.layers):
            a_IR = down_YNRI[layer, 0].to(dtype).T.contiguous()
            stacked[layout.paths[module].format(layer)] = Pair(a_IR, up_YNRO[layer, 0].to(dtype).contiguous())
    return Adapter(pairs=stacked, scale=1.0, base_model=base_model)


def from_adapter(adapter: Adapter, layout: LoraTargets) -> dict[str, Factors]:
    """The way back: N = 1, the adapter's scale folded into B. What it has beyond the layout is left out.

    Raises AdapterError if it lacks a module of the layout.
    """
    factors = {}
    for module, path in layout.paths.items():
        missing = [name for layer in range(layout.layers) if (name := path.format(layer)) not in adapter.pairs]
        if missing:
            raise AdapterError(
                f"the adapter has no '{missing[0]}'; what fits has {', '.join(layout.paths)} in {layout.layers} layers"
            )
        found = [adapter.pairs[path.format(layer)] for layer in range(layout.layers)]
        down_YNRI = torch.stack([pair.a.T for pair in found])[:, None].float()
        factors[module] = Factors(down_YNRI, torch.stack([pair.b for pair in found])[:, None].float() * adapter.scale)
    return factors


def write(
    folder: Path, adapters: Adapters, layout: LoraTargets, model: ModelRef, *, dtype: torch.dtype = torch.float32
) -> AdapterRef:
    """One adapter (N = 1) as a PEFT folder."""
    name, revision = registry.hub_name(model.name)
    adapter = to_adapter(adapters, layout, base_model=model.digest, dtype=dtype)
    return write_peft(folder, adapter, base_model_name=name, base_revision=revision)


def read(folder: Path, layout: LoraTargets, *, device: str = "cpu") -> dict[str, Factors]:
    """A PEFT folder as factors, N = 1. Raises AdapterError for one that is none, or lacks a module of the layout."""
    adapter = read_peft(folder, device=device)
    try:
        return from_adapter(adapter, layout)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from None
