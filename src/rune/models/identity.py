"""What a base model is: what its files hold, how they are loaded, and so which adapters fit it.

An adapter is a change of particular weights. NF4 changes the weights, so a quantised base has a digest of its own: an
adapter made for the one is refused by the other, unless a config says that it shall be carried over.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rune.config import digest
from rune.models import registry
from rune.types import ModelRef

Quantize = Literal["none", "nf4"]
# bitsandbytes: blocks of 64 weights, their scales quantised again. Another way is another name.
_AS = {"nf4": "nf4, double quantisation"}
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def quantised(model: ModelRef, quantize: str) -> ModelRef:
    """The same files loaded otherwise: another base, with a digest that says so. "none" is the model itself."""
    if quantize == "none":
        return model
    return replace(model, digest=_digest(model.digest, quantize), quantize=quantize, unquantised=model.digest)


def carrying(model: ModelRef, other: ModelRef) -> ModelRef:
    """`model`, which takes what was made for `other` too: the way to measure what quantising costs an adapter."""
    return model if model.digest == other.digest else replace(model, carries=other.digest)


def fits(model: ModelRef, made_for: str) -> bool:
    """Whether an adapter made for the base of this digest may be loaded into `model`."""
    return made_for in (model.digest, model.carries or model.digest)


def difference(model: ModelRef, made_for: str) -> str:
    """What tells two bases apart if it is quantisation alone, as words in brackets; "" if it is more."""
    files = model.unquantised or model.digest
    others = {files: "not quantised", **{_digest(files, q): f"quantised to {q.upper()}" for q in _AS}}
    if made_for not in others or made_for == model.digest:
        return ""
    return f" (the same weights, {others[made_for]}; this one is {others[model.digest]})"


def _digest(files: str, quantize: str) -> str:
    return digest([files, _AS[quantize]])


# --------------------------------------------------------------------------- where weights come from


def of_record(record: Mapping[str, Any], folder: Path) -> str:
    """What a cached model's files hold, from its `rune.json`: "4-bit weights (GGUF, Q4_K_M), dequantised"."""
    source = record.get("gguf_sha256")
    if not source:
        return of_folder(folder)
    kind = record.get("file_type") or next((s.file_type for s in registry.SPECS if s.gguf_sha256 == source), "")
    return _of_gguf(str(kind))


def known(sha256: str) -> str:
    """The same for weights that older records name by their sha256 alone; "" if nobody here has seen them."""
    found = next((s for s in registry.SPECS if sha256 and s.converted_sha256 == sha256), None)
    return _of_gguf(found.file_type) if found else ""


def _of_gguf(kind: str) -> str:
    """`kind`: Q4_K_M, Q8_0, F16, BF16, …; "" if it is not known."""
    if kind in _NAMES:
        return f"{_NAMES[kind]} weights (GGUF)"
    bits = next((c for c in kind if c.isdigit()), "")
    return f"{bits}-bit weights (GGUF, {kind}), dequantised" if bits else "weights of a GGUF file"


def of_folder(folder: Path) -> str:
    """ "bfloat16 weights": the type of most of what the folder's safetensors hold."""
    sizes: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                first, last = tensor["data_offsets"]
                sizes[tensor["dtype"]] = sizes.get(tensor["dtype"], 0) + last - first
    if not sizes:
        return ""
    most = max(sizes, key=lambda kind: sizes[kind])
    return f"{_NAMES.get(most, most)} weights"


def words(model: Mapping[str, Any], dtype: str) -> str:
    """For a page, from a manifest's `model` and `dtype`: "4-bit weights (GGUF, Q4_K_M), computed in bfloat16"."""
    weights = str(model.get("weights") or known(str(model.get("sha256", ""))) or "weights of unrecorded origin")
    if model.get("quantize", "none") != "none":
        weights += f", quantised to {str(model['quantize']).upper()} (bitsandbytes, double quantisation)"
    return f"{weights}, computed in {dtype}" if dtype else weights
