"""The forward pass of Qwen2 and Llama decoders over the Hugging Face module's own weights.

Why not the module's forward: a decode step of a small model is bound by kernel launches and Python. Here q, k, v
and gate, up are one product each, residuals are added inside the products, the cache is written in place, and
nothing in a step depends on values the host must read, so that a CUDA graph can replay it. The weights are shared
with the module (its parameters become views of the fused ones); nothing is copied but once, at fusing.

Legend: M tokens in a flat batch · P prompts · T tokens of the longest · B rows decoding · S cache length · H hidden
        F feed-forward · D head size · Q query heads · V key/value heads · I inputs · O outputs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from rune.errors import EngineError

FAMILIES = ("qwen2", "llama")


class Attend(Protocol):
    """Rotates, caches and attends: [M, (Q + 2V)·D] of layer `layer` → [M, Q·D]."""

    def __call__(self, layer: int, qkv_MO: Tensor, /) -> Tensor: ...


class Lora(Protocol):
    """Adds the batch's adapters, in place, to what one fused linear of one layer gave."""

    def add(self, layer: int, kind: str, x_MI: Tensor, out_MO: Tensor) -> None: ...

    def gate(self, layer: int, x_MI: Tensor, gate_up_MO: Tensor) -> Tensor | None:
        """silu(gate)·up with the adapters in it, in one go; None: `add`, then silu apart."""


class NoLora:
    """The base model."""

    def add(self, layer: int, kind: str, x_MI: Tensor, out_MO: Tensor) -> None:
        return None

    def gate(self, layer: int, x_MI: Tensor, gate_up_MO: Tensor) -> Tensor | None:
        return None


class Linear:
    """One or several linears over the same input as one product; quantised ones are called one by one."""

    def __init__(self, modules: Sequence[Any]) -> None:
        self.modules = list(modules)
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        if all(type(module) is nn.Linear for module in modules):
            self._fuse()

    def _fuse(self) -> None:
        if len(self.modules) == 1:
            self.weight, self.bias = self.modules[0].weight.data, self.modules[0].bias
            return
        self.weight = torch.cat([module.weight.data for module in self.modules])
        offset = 0
        for module in self.modules:  # no second copy of the weights stays behind
            module.weight.data = self.weight[offset : offset + module.out_features]
            offset += module.out_features
        if any(module.bias is not None for module in self.modules):
            self.bias = torch.cat(
                [
                    module.bias.data if module.bias is not None else self.weight.new_zeros(module.out_features)
                    for module in self.modules
                ]
            )

    def __call__(self, x_MI: Tensor) -> Tensor:
        if self.weight is None:
            return torch.cat([module(x_MI) for module in self.modules], dim=-1)
        return functional.linear(x_MI, self.weight, self.bias)

    def onto(self, residual_MO: Tensor, x_MI: Tensor) -> Tensor:
        """residual + W x + b, in one kernel where there is no bias."""
        if self.weight is None or self.bias is not None:
            return residual_MO + self(x_MI)
        return torch.addmm(residual_MO, x_MI, self.weight.t())


class Layer:
    def __init__(self, block: Any) -> None:
        attention, mlp = block.self_attn, block.mlp
        self.qkv = Linear([attention.q_proj, attention.k_proj, attention.v_proj])
        self.o = Linear([attention.o_proj])
        self.gate_up = Linear([mlp.gate_proj, mlp.up_proj])
        self.down = Linear([mlp.down_proj])
        self.norm_in, self.norm_out = block.input_layernorm.weight, block.post_attention_layernorm.weight


class Network:
    """A decoder whose attention and adapters are handed in with each call."""

    def __init__(self, model: Any) -> None:
        config = model.config
        if config.model_type not in FAMILIES or getattr(config, "hidden_act", "silu") != "silu":
            raise EngineError(
                f"the torch engine decodes {' and '.join(FAMILIES)} models, this one is '{config.model_type}'; "
                "use --set engine.name=vllm or openai"
            )
        if getattr(config, "use_sliding_window", False):
            raise EngineError("the torch engine has no sliding window; set use_sliding_window to false or use vllm")
        self.model = model
        self.config = config
        self.hidden = config.hidden_size
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = getattr(config, "head_dim", None) or self.hidden // self.heads
        self.ffn = config.intermediate_size
        self.vocabulary = model.lm_head.weight.shape[0]
        self.max_positions = config.max_position_embeddings
        self.eps = config.rms_norm_eps
        self.layers = [Layer(block) for block in model.model.layers]
        self.embedding, self.head = model.model.embed_tokens.weight, model.lm_head.weight
        self.norm = model.model.norm.weight
        self.device, self.dtype = self.embedding.device, self.embedding.dtype
        self.silu_mul = silu_mul
        self._rope: tuple[Tensor, Tensor] | None = None

    def rope_table(self) -> tuple[Tensor, Tensor]:
        """cos, sin [S, D] for every position the model has, by its own rotary module; recorded graphs point into it."""
        if self._rope is None:
            positions_1S = torch.arange(self.max_positions, device=self.device)[None]
            cos_1SD, sin_1SD = self.model.model.rotary_emb(self.embedding[:1, :1], positions_1S)
            self._rope = cos_1SD[0].contiguous(), sin_1SD[0].contiguous()
        return self._rope

    def forward(self, ids_M: Tensor, attend: Attend, lora: Lora) -> Tensor:
        """Token ids → final hidden states [M, H], normalised."""
        x_MH = functional.embedding(ids_M, self.embedding)
        for index, layer in enumerate(self.layers):
            h_MH = self._normalise(x_MH, layer.norm_in)
            qkv_MO = layer.qkv(h_MH)
            lora.add(index, "qkv", h_MH, qkv_MO)
            y_MO = attend(index, qkv_MO)
            x_MH = layer.o.onto(x_MH, y_MO)
            lora.add(index, "o", y_MO, x_MH)
            h_MH = self._normalise(x_MH, layer.norm_out)
            gate_up_MO = layer.gate_up(h_MH)
            f_MF = lora.gate(index, h_MH, gate_up_MO)
            if f_MF is None:
                lora.add(index, "gate_up", h_MH, gate_up_MO)
                f_MF = self.silu_mul(gate_up_MO)
            x_MH = layer.down.onto(x_MH, f_MF)
            lora.add(index, "down", f_MF, x_MH)
        return self._normalise(x_MH, self.norm)

    def logits(self, hidden_MH: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.mm(hidden_MH, self.head.t(), out=out)

    def _normalise(self, x_MH: Tensor, weight_H: Tensor) -> Tensor:
        return functional.rms_norm(x_MH, (self.hidden,), weight_H, self.eps)

    def split_heads(self, qkv_MO: Tensor) -> tuple[Tensor, Tensor]:
        """[M, (Q + 2V)·D] → queries and keys together [M, Q + V, D], values [M, V, D] (views)."""
        qk = (self.heads + self.kv_heads) * self.head_size
        return (
            qkv_MO[:, :qk].unflatten(-1, (self.heads + self.kv_heads, self.head_size)),
            qkv_MO[:, qk:].unflatten(-1, (self.kv_heads, self.head_size)),
        )


def silu_mul(gate_up_MO: Tensor) -> Tensor:
    gate_MF, up_MF = gate_up_MO.chunk(2, dim=-1)
    return functional.silu(gate_MF) * up_MF


def rotate(x_MND: Tensor, cos_M1D: Tensor, sin_M1D: Tensor) -> Tensor:
    """Rotary embedding, halves convention (Su et al. 2021, as Qwen2 and Llama lay it out)."""
    left, right = x_MND.chunk(2, dim=-1)
    return x_MND * cos_M1D + torch.cat((-right, left), dim=-1) * sin_M1D
