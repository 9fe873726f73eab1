"""The one place that loads a base model: for the engine, for training, and cut to its first layers to read features."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rune.errors import ModelError
from rune.types import ModelRef


def load(model: ModelRef, *, device: str, dtype: str, layers: int | None = None) -> Any:
    """The Hugging Face module, frozen, in eval mode, on `device`.

    Args:
        model: Where the weights lie, and how they are loaded: with `quantize` "nf4", linear layers become 4-bit
            NormalFloat with double quantisation (Dettmers et al. 2023, QLoRA), on a GPU and on a CPU alike.
        device: "cpu" or "cuda".
        dtype: "float32" or "bfloat16": of the weights, or of the products where they are quantised.
        layers: Keep the first so many decoder layers only; the others are never read from disk.

    Raises:
        ModelError: The folder holds no model that transformers reads, or bitsandbytes is missing for nf4.
    """
    options: dict[str, Any] = {
        "dtype": getattr(torch, dtype), "attn_implementation": "sdpa", "local_files_only": True
    }  # fmt: skip
    if model.quantize == "nf4":
        options |= _nf4(device, dtype)
    before = logging.get_verbosity()
    try:
        if layers is not None:
            options["config"] = _cut(model, layers)
            logging.set_verbosity_error()  # it would list every weight that is left out
        loaded: Any = AutoModelForCausalLM.from_pretrained(model.path, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.name}: cannot be loaded from {model.path}: {str(error).splitlines()[0]}") from None
    finally:
        logging.set_verbosity(before)
    if model.quantize == "nf4":
        _keep_differentiable(loaded)
    else:
        loaded = loaded.to(device)
    return loaded.eval().requires_grad_(False)


def _keep_differentiable(loaded: Any) -> None:
    """On a CPU with bf16 instructions bitsandbytes packs weights anew at the first pass in eval mode, for a product
    without gradient: an adapter under it would learn nothing from the layers above, or stop with an error."""
    for module in loaded.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def tokenizer(model: ModelRef) -> Any:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(model.path, local_files_only=True)


def _cut(model: ModelRef, layers: int) -> Any:
    settings = AutoConfig.from_pretrained(model.path, local_files_only=True)
    settings.num_hidden_layers = layers
    if getattr(settings, "layer_types", None):
        settings.layer_types = settings.layer_types[:layers]
    return settings


def _nf4(device: str, dtype: str) -> dict[str, Any]:
    try:
        import bitsandbytes  # noqa: F401 - only to give the error below before anything is loaded
    except ImportError:
        raise ModelError(
            "[model] quantize = 'nf4' needs bitsandbytes; install it with: pip install 'rune-lora[qlora]'"
        ) from None
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": quantization, "device_map": {"": device}}
