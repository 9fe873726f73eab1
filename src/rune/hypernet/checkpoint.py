"""Trained LoRAs and hypernetworks on disk: weights as safetensors, everything needed to build them again as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rune import config
from rune.adapters.factors import LoraTargets, StaticLora
from rune.errors import AdapterError, DataError
from rune.hypernet.settings import HypernetConfig, LoraConfig
from rune.hypernet.trainer import HypernetWithStatic, new_hypernet
from rune.runs import store
from rune.types import ModelRef

WEIGHTS = "model.safetensors"
SETTINGS = "settings.json"


class Stored(NamedTuple):
    """A checkpoint in memory; `hypernet` is None for a static LoRA."""

    static: StaticLora
    both: HypernetWithStatic | None
    layout: LoraTargets
    settings: Mapping[str, Any]
    hypernet: HypernetConfig | None


def save_lora(
    folder: Path,
    lora: StaticLora,
    layout: LoraTargets,
    settings: LoraConfig,
    model: ModelRef,
    *,
    trained_on: Sequence[str] = (),
    domains: Mapping[str, Sequence[str]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """`trained_on`: the task ids that shaped it; a checkpoint without them starts no run. float16 is for shipping.

    `domains`: benchmark → the domains of those tasks; a checkpoint without them starts no run that holds out domains.
    """
    _write(folder, lora.state_dict(), {"kind": "lora", **_common(layout, settings, model, trained_on, domains)}, dtype)


def save_hypernet(
    folder: Path,
    both: HypernetWithStatic,
    layout: LoraTargets,
    static: LoraConfig,
    settings: HypernetConfig,
    model: ModelRef,
    *,
    trained_on: Sequence[str] = (),
    domains: Mapping[str, Sequence[str]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """As `save_lora`."""
    about = {
        "kind": "hypernet",
        **_common(layout, static, model, trained_on, domains),
        "hypernet": config.plain(settings),
    }
    _write(folder, both.inference_state_dict(), about, dtype)


def done(folder: Path) -> bool:
    return (folder / SETTINGS).is_file()


def load(folder: Path, model: ModelRef, *, device: str) -> Stored:
    """Either kind. Raises AdapterError if it was made for another base model, DataError if it is broken."""
    if not done(folder):
        raise DataError(f"{folder}: no checkpoint (no {SETTINGS}); run `rune train` first, or pass --checkpoint DIR")
    settings = store.read_json(folder / SETTINGS)
    try:
        made_for, name = str(settings["base_model"]), settings["base_name"]
    except (KeyError, TypeError):
        raise _unfit(folder, "it names no base model") from None
    if made_for != model.digest:
        raise AdapterError(
            f"{folder}: made for base model {name} ({made_for[:12]}), "
            f"not for {model.name} ({model.digest[:12]}); use that model, or train again"
        )
    stored = _empty(folder, settings)
    _fill(stored.both or stored.static, folder)
    (stored.both or stored.static).to(device).eval()
    return stored


def _empty(folder: Path, settings: Mapping[str, Any]) -> Stored:
    """What the settings describe, its weights not read yet. Raises DataError."""
    try:
        layout = LoraTargets.parse(settings["layout"])
        kind, raw = settings["kind"], settings["lora"]
        lora = config.build(LoraConfig, raw, where=f"{folder / SETTINGS}: lora")
        static = StaticLora(layout, rank=lora.rank, alpha=lora.alpha)
        if kind == "lora":
            return Stored(static, None, layout, settings, None)
        if kind != "hypernet":
            raise ValueError(f"kind {kind!r} is neither lora nor hypernet")
        hypernet = config.build(HypernetConfig, settings["hypernet"], where=f"{folder / SETTINGS}: hypernet")
        both = HypernetWithStatic(static, new_hypernet(layout, hypernet))
    except KeyError as error:
        raise _unfit(folder, f"{error} is missing") from None
    except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        raise _unfit(folder, str(error)) from None
    return Stored(static, both, layout, settings, hypernet)


def _unfit(folder: Path, why: str) -> DataError:
    first = why.splitlines()[0][:200] if why else "unknown"
    return DataError(f"{folder / SETTINGS}: not a checkpoint's settings ({first}); train again, or copy it again")


def _common(
    layout: LoraTargets,
    lora: LoraConfig,
    model: ModelRef,
    trained_on: Sequence[str],
    domains: Mapping[str, Sequence[str]] | None,
) -> dict[str, Any]:
    return {
        "trained_on": list(trained_on),
        **({} if domains is None else {"trained_on_domains": {k: list(v) for k, v in domains.items()}}),
        "base_model": model.digest,
        "base_name": model.name,
        "layout": layout.plain(),
        "lora": config.plain(lora),
    }


def _write(folder: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any], dtype: torch.dtype) -> None:
    tensors = {
        name: t.detach().to("cpu", dtype if t.is_floating_point() else t.dtype, copy=True).contiguous()
        for name, t in state.items()
    }
    store.write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    # Last, so that its presence means that the weights are whole.
    store.write_json(folder / SETTINGS, settings)


def _fill(module: nn.Module, folder: Path) -> None:
    try:
        tensors = load_file(folder / WEIGHTS)
        found = module.load_state_dict(tensors, strict=False)  # copies into float32 whatever the file's dtype
        missing = [name for name in found.missing_keys if not name.startswith("guess.")]
        if missing or found.unexpected_keys:
            raise RuntimeError(f"'{[*missing, *found.unexpected_keys][0]}' is on one side only")
        bad = next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)
        if bad is not None:
            raise RuntimeError(f"'{bad}' holds NaN or infinity")
    except (SafetensorError, OSError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{folder / WEIGHTS}: does not fit its {SETTINGS} ({first}); train again") from None
