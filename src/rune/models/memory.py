"""What a model needs in memory, counted from its shape: before the download, without torch.

Counts weights, key-value cache, resident adapters, optimiser states and the activations that a backward pass
keeps. It is arithmetic, not a measurement: allocators round up and libraries take a share (some 1 GiB with CUDA),
so leave a tenth free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune.errors import ModelError
from rune.runs import store

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The sizes of a Llama- or Qwen2-like decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    tied: bool
    qkv_bias: bool
    head_dim: int = 0  # 0: hidden / heads

    @property
    def head(self) -> int:
        return self.head_dim or self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """All weights, the embedding once if it is tied."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        attention = 2 * self.hidden * q + 2 * self.hidden * kv + (q + 2 * kv if self.qkv_bias else 0)
        layer = attention + 3 * self.hidden * self.ffn + 2 * self.hidden
        return self.layers * layer + self.hidden + self.vocab * self.hidden * (1 if self.tied else 2)

    def lora_parameters(self, rank: int) -> int:
        """A and B of rank `rank` on all seven projections of every layer."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        sides = 2 * (self.hidden + q) + 2 * (self.hidden + kv) + 3 * (self.hidden + self.ffn)
        return self.layers * rank * sides


def shape_of(config: Mapping[str, Any], *, name: str) -> Shape:
    """From a model's config.json. Raises ModelError for another architecture."""
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2"):
        raise ModelError(f"{name}: no memory model for architecture '{kind}'; known: llama, qwen2")
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or 0)
    return Shape(
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads", heads)),
        ffn=int(config["intermediate_size"]),
        vocab=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2",
        head_dim=0 if head_dim == hidden // heads else head_dim,
    )


# From the models' published configurations, so that a dry run needs no download; a test compares what is in the cache.
PUBLISHED = {
    "qwen2.5-coder-0.5b-instruct": Shape(
        layers=24, hidden=896, heads=14, kv_heads=2, ffn=4864, vocab=151936, tied=True, qkv_bias=True
    ),
    "qwen2.5-coder-1.5b-instruct": Shape(
        layers=28, hidden=1536, heads=12, kv_heads=2, ffn=8960, vocab=151936, tied=True, qkv_bias=True
    ),
    "qwen2.5-coder-7b-instruct": Shape(
        layers=28, hidden=3584, heads=28, kv_heads=4, ffn=18944, vocab=152064, tied=False, qkv_bias=True
    ),
    "smollm2-135m-instruct": Shape(
        layers=30, hidden=576, heads=9, kv_heads=3, ffn=1536, vocab=49152, tied=True, qkv_bias=False
    ),
}


def known_shape(name: str, folder: Path | None = None) -> Shape | None:
    """The shape of a registry name, or of the model in `folder`; None if neither says."""
    if folder is not None and (folder / "config.json").is_file():
        return shape_of(store.read_json(folder / "config.json"), name=name)
    return PUBLISHED.get(name)


def estimate_sampling(shape: Shape, *, dtype: str, rows: int, tokens: int, adapters: int, rank: int) -> dict[str, int]:
    """Bytes by part while `rows` sequences of at most `tokens` tokens are drawn, `adapters` of `rank` resident."""
    size = BYTES[dtype]
    return {
        "weights": shape.parameters * size,
        "key-value cache": rows * tokens * 2 * shape.layers * shape.kv_heads * shape.head * size,
        "adapters": adapters * shape.lora_parameters(rank) * size,
        "logits": rows * shape.vocab * 4 * 2,
    }


def estimate_training(shape: Shape, *, dtype: str, rows: int, tokens: int, rank: int, trained: int) -> dict[str, int]:
    """Bytes by part of one step over `rows` × `tokens` with a frozen base and `trained` float32 parameters.

    Each layer keeps what its backward needs: about 8 vectors of the hidden size, 4 of the feed-forward size and
    the attention's, per token; the loss keeps logits in float32 with their gradient.
    """
    size = BYTES[dtype]
    attention = (shape.heads + 2 * shape.kv_heads) * shape.head
    kept = shape.layers * (8 * shape.hidden + 4 * shape.ffn + 2 * attention + 7 * rank) * size
    return {
        "weights": shape.parameters * size,
        "activations": rows * tokens * kept,
        "logits and their gradient": rows * tokens * shape.vocab * (4 + 4),
        "trained parameters, gradient, two moments": trained * 4 * 4,
    }


def gib(parts: Mapping[str, int]) -> float:
    """The sum in GiB."""
    return sum(parts.values()) / 2**30
