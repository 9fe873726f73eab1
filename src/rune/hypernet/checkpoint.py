"""Trained hypernetworks and LoRAs on disk: weights as safetensors, everything needed to build them again as JSON.

    FOLDER/model.safetensors    the weights, in one of three precisions: `hypernet/precision.py`
    FOLDER/settings.json        its manifest: kind, base_model and base_name, layout (modules and sizes), trained_on and
                                trained_on_domains, precision, weights_sha256, settings_sha256 (of all other fields),
                                and what the kind wants to know of itself

`kind` is the name of a file in `hypernet/kinds/`: that part knows its own settings, its module, and how it is put to
work. This file is the one that reads and writes them all. Checkpoints from before precision and the two sums were
written load as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor, nn

from rune import config, plugins
from rune.adapters.factors import LoraTargets, StaticLora
from rune.errors import AdapterError, DataError
from rune.hypernet import precision as numbers
from rune.hypernet.outer_products import OuterProducts
from rune.hypernet.settings import HypernetConfig, LoraConfig, OuterProductsConfig, Precision
from rune.hypernet.trainer import HypernetWithStatic
from rune.models import identity
from rune.runs import store
from rune.types import ModelRef

KINDS = "hypernet.kinds"
WEIGHTS = "model.safetensors"
SETTINGS = "settings.json"
BESIDE = ("result.md", "result.json", "report.md")  # what a checkpoint was measured to do; adapters' cards quote it


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint in memory."""

    kind: str
    config: Any  # the kind's Config
    module: nn.Module
    layout: LoraTargets
    settings: Mapping[str, Any]
    sha256: str  # of its weights file

    @property
    def both(self) -> HypernetWithStatic | None:
        """None for what is of another kind than `hypernet`."""
        return self.module if isinstance(self.module, HypernetWithStatic) else None

    @property
    def hypernet(self) -> HypernetConfig | None:
        return self.config.hypernet if self.both is not None else None

    @property
    def static(self) -> StaticLora:
        """The constant part, or all there is of a LoRA. Raises DataError for a kind without one."""
        if isinstance(self.module, StaticLora):
            return self.module
        if self.both is None:
            raise DataError(
                f"a hypernetwork of kind '{self.kind}' has no constant part; leave the arms static and lora out"
            )
        return self.both.static


def save_lora(
    folder: Path,
    lora: StaticLora,
    layout: LoraTargets,
    settings: LoraConfig,
    model: ModelRef,
    *,
    trained_on: Sequence[str] = (),
    domains: Mapping[str, Sequence[str]] | None = None,
    precision: Precision = "float32",
) -> None:
    """`trained_on`: the task ids that shaped it; a checkpoint without them starts no run. Shipped ones are smaller.

    `domains`: benchmark → the domains of those tasks; a checkpoint without them starts no run that holds out domains.
    """
    about = {"kind": "lora", **_common(layout, model, trained_on, domains), "lora": config.plain(settings)}
    _write(folder, lora.state_dict(), about, precision)


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
    precision: Precision = "float32",
) -> None:
    """As `save_lora`."""
    about = {
        "kind": "hypernet",
        **_common(layout, model, trained_on, domains),
        "lora": config.plain(static),
        "hypernet": config.plain(settings),
    }
    _write(folder, both.inference_state_dict(), about, precision)


def save_outer_products(
    folder: Path,
    module: OuterProducts,
    layout: LoraTargets,
    settings: OuterProductsConfig,
    model: ModelRef,
    *,
    trained_on: Sequence[str] = (),
    domains: Mapping[str, Sequence[str]] | None = None,
    precision: Precision = "float32",
) -> None:
    """As `save_lora`; `settings` say how `module` was trained to read."""
    about = {
        "kind": "outer_products",
        **_common(layout, model, trained_on, domains),
        "outer_products": config.plain(settings),
    }
    _write(folder, module.state_dict(), about, precision)


def done(folder: Path) -> bool:
    return (folder / SETTINGS).is_file()


def load(folder: Path, model: ModelRef, *, device: str) -> Stored:
    """Any kind. Raises AdapterError if it was made for another base model, DataError if it is broken."""
    settings = _settings(folder)
    made_for = str(settings["base_model"])
    if made_for != model.digest:
        raise AdapterError(
            f"{folder}: made for base model {settings['base_name']} ({made_for[:12]}), "
            f"not for {model.name} ({model.digest[:12]}){identity.difference(model, made_for)}; "
            "use that model, or train again"
        )
    stored, _ = _read(folder, settings)
    stored.module.to(device).eval()
    return stored


class Compressed(NamedTuple):
    """What `compress` did."""

    numbers: int
    before: int  # bytes of the weights files
    after: int
    error: float  # ‖w − ŵ‖ / ‖w‖ over all matrices


def compress(folder: Path, output: Path, precision: Precision) -> Compressed:
    """A checkpoint of any kind written again in another precision, with what it was measured to do beside it.

    Raises DataError if it is broken, or if `output` holds a checkpoint, this one or another: that one would be lost.
    """
    if output.resolve() == folder.resolve():
        raise DataError(
            f"{output}: the checkpoint itself; give another folder, as less precise weights do not come back"
        )
    if done(output):
        raise DataError(f"{output}: holds a checkpoint already; give another folder, or remove it first")
    settings = _settings(folder)
    _, state = _read(folder, settings)
    written = _write(output, state, settings, precision)
    for name in BESIDE:
        if (folder / name).is_file():
            store.write_atomic(output / name, (folder / name).read_bytes())
    return Compressed(
        sum(t.numel() for t in state.values()),
        (folder / WEIGHTS).stat().st_size,
        (output / WEIGHTS).stat().st_size,
        numbers.relative_error(state, numbers.unpacked(written)),
    )


def copy(folder: Path, output: Path) -> None:
    """A checkpoint as it is, byte for byte; its settings last, so that their presence means that it is whole."""
    for name in (WEIGHTS, SETTINGS):
        store.write_atomic(output / name, (folder / name).read_bytes())


def _settings(folder: Path) -> dict[str, Any]:
    """Raises DataError for what is no checkpoint's."""
    if not done(folder):
        raise DataError(f"{folder}: no checkpoint (no {SETTINGS}); run `rune train` first")
    settings = store.read_json(folder / SETTINGS)
    if not isinstance(settings, dict) or not {"base_model", "base_name"} <= settings.keys():
        raise _unfit(folder, "it names no base model")
    return settings


def _read(folder: Path, settings: Mapping[str, Any]) -> tuple[Stored, dict[str, Tensor]]:
    """The module with its weights, on the CPU, and these as they were read. Raises DataError."""
    stored = _empty(folder, settings)
    if settings.get("settings_sha256", _sum(settings)) != _sum(settings):
        raise _unfit(folder, "they were changed after they were written, and the weights belong to what stood there")
    state, digest = _fill(stored.module, folder, str(settings.get("weights_sha256", "")))
    return dataclasses.replace(stored, sha256=digest), state


def _empty(folder: Path, settings: Mapping[str, Any]) -> Stored:
    """What the settings describe, its weights not read yet. Raises DataError."""
    try:
        layout, kind = LoraTargets.parse(settings["layout"]), str(settings["kind"])
        known = plugins.available(KINDS)
        if kind not in known:
            raise ValueError(f"kind {kind!r} is none of {', '.join(known)}")
        part = plugins.load(KINDS, kind)
        sections = {field.name: settings[field.name] for field in dataclasses.fields(part.Config)}
        own = config.build(part.Config, sections, where=str(folder / SETTINGS))
        return Stored(kind, own, part.build(own, layout), layout, settings, "")
    except KeyError as error:
        raise _unfit(folder, f"{error} is missing") from None
    except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError, MemoryError) as error:
        raise _unfit(folder, str(error)) from None


def _unfit(folder: Path, why: str) -> DataError:
    first = why.splitlines()[0][:200] if why else "unknown"
    return DataError(f"{folder / SETTINGS}: not a checkpoint's settings ({first}); train again, or copy it again")


def _common(
    layout: LoraTargets, model: ModelRef, trained_on: Sequence[str], domains: Mapping[str, Sequence[str]] | None
) -> dict[str, Any]:
    return {
        "trained_on": list(trained_on),
        **({} if domains is None else {"trained_on_domains": {k: list(v) for k, v in domains.items()}}),
        "base_model": model.digest,
        "base_name": model.name,
        "layout": layout.plain(),
    }


def _write(
    folder: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any], precision: Precision
) -> dict[str, Tensor]:
    """The tensors as they were written."""
    tensors = numbers.packed(state, precision)
    data = save(tensors, metadata={"format": "pt"})
    store.write_atomic(folder / WEIGHTS, data)
    # Last, so that its presence means that the weights are whole.
    about = {**settings, "precision": precision, "weights_sha256": hashlib.sha256(data).hexdigest()}
    store.write_json(folder / SETTINGS, {**about, "settings_sha256": _sum(about)})
    return tensors


def _sum(settings: Mapping[str, Any]) -> str:
    """sha256 of settings, their own sum apart, whatever the order and the spaces of the file."""
    plain = {name: value for name, value in settings.items() if name != "settings_sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _fill(module: nn.Module, folder: Path, expected: str) -> tuple[dict[str, Tensor], str]:
    """Read a module's weights; returns them and the sha256 of their file. `expected`: that of the settings, or ""."""
    try:
        data = (folder / WEIGHTS).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if expected and digest != expected:
            raise RuntimeError(f"damaged: sha256 {digest[:12]}, settings say {expected[:12]}")
        tensors = numbers.unpacked(load_tensors(data))
        found = module.load_state_dict(tensors, strict=False)  # copies into float32 whatever the file's dtype
        missing = [name for name in found.missing_keys if not name.startswith("guess.")]
        if missing or found.unexpected_keys:
            raise RuntimeError(f"'{[*missing, *found.unexpected_keys][0]}' is on one side only")
        bad = next((name for name, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)
        if bad is not None:
            raise RuntimeError(f"'{bad}' holds NaN or infinity")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        # Of a wrong size torch says which it is in its second line.
        said = " ".join(str(error).removeprefix("Error(s) in loading state_dict for ").split("\n\t")[:2])
        raise DataError(
            f"{folder / WEIGHTS}: does not fit its {SETTINGS} ({said[:200]}); copy it again, or train again"
        ) from None
    return tensors, digest
