"""LoRA factors of all layers at once, the static LoRA, and products of ΔW that never build ΔW.

Every norm and inner product goes through r×r Gram matrices: ⟨B₁A₁, B₂A₂⟩_F = Σ (B₁ᵀB₂ ∘ A₁A₂ᵀ). A factor pair means
ΔW = B A exactly: alpha / rank and strength are folded into B, so ranks can be concatenated and nothing is scaled twice.
"""

# Shapes: Y layers · N adapters · R rank · I inputs · O outputs of a module · K, L, J numbers of singular values
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rune.errors import ModelError


class Factors(NamedTuple):
    """ΔW[y, n] = up[y, n]ᵀ · down[y, n], for one module type over all layers."""

    down_YNRI: Tensor  # "A"
    up_YNRO: Tensor  # "B" transposed, scale folded in


Adapters = Mapping[str, Factors]  # module type → factors; N adapters at once


@dataclass(frozen=True, slots=True)
class Size:
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraTargets:
    """Which linear layers of a base model carry LoRA, and how large they are."""

    layers: int
    width: int  # of the residual stream
    sizes: Mapping[str, Size]  # module type → size, in the order of modules.MODULES
    paths: Mapping[str, str]  # module type → "model.layers.{}.self_attn.q_proj"

    def plain(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "width": self.width,
            "sizes": {m: [s.inputs, s.outputs] for m, s in self.sizes.items()},
            "paths": dict(self.paths),
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> LoraTargets:
        """From `plain`. Raises KeyError, TypeError or ValueError if `raw` is not that."""
        sizes = {m: Size(*map(int, s)) for m, s in raw["sizes"].items()}
        paths = {m: str(path) for m, path in dict(raw["paths"]).items()}
        if set(paths) != set(sizes) or any(path.count("{}") != 1 for path in paths.values()):
            raise ValueError("layout: paths must name each module of sizes once, with {} where the layer's number goes")
        return cls(layers=int(raw["layers"]), width=int(raw["width"]), sizes=sizes, paths=paths)


def layout_of(model: Any, modules: tuple[str, ...]) -> LoraTargets:
    """Find the layers named `…layers.<i>.….<module>` in a Hugging Face decoder. Raises ModelError if one is missing."""
    found: dict[str, dict[int, tuple[str, Size]]] = {m: {} for m in modules}
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[-1] in found and "layers" in parts and hasattr(module, "in_features"):
            at = parts.index("layers") + 1
            path = ".".join([*parts[:at], "{}", *parts[at + 1 :]])
            size = Size(int(module.in_features), int(module.out_features))
            found[parts[-1]][int(parts[at])] = (path, size)
    layers = len(next(iter(found.values())))
    for module_type, by_layer in found.items():
        if not by_layer or sorted(by_layer) != list(range(layers)) or len(set(by_layer.values())) != 1:
            raise ModelError(f"{type(model).__name__}: no uniform '{module_type}' in all layers; choose other modules")
    first = {m: by_layer[0] for m, by_layer in found.items()}
    return LoraTargets(
        layers=layers,
        width=int(model.config.hidden_size),
        sizes={m: size for m, (_, size) in first.items()},
        paths={m: path for m, (path, _) in first.items()},
    )


class StaticLora(nn.Module):
    """One LoRA for every task: A drawn like PEFT's, B zero, so ΔW is exactly zero at the start."""

    def __init__(self, layout: LoraTargets, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.rank, self.scale = rank, alpha / rank
        self.down_YRI = nn.ParameterDict(
            {m: nn.Parameter(kaiming(layout.layers, rank, s.inputs)) for m, s in layout.sizes.items()}
        )
        self.up_YRO = nn.ParameterDict(
            {m: nn.Parameter(torch.zeros(layout.layers, rank, s.outputs)) for m, s in layout.sizes.items()}
        )

    def factors(self) -> dict[str, Factors]:
        """The adapter, N = 1."""
        return {m: Factors(a[:, None], self.scale * self.up_YRO[m][:, None]) for m, a in self.down_YRI.items()}


def kaiming(*shape: int) -> Tensor:
    """Uniform with PEFT's bound 1/√inputs (kaiming_uniform with a = √5); the last dimension is the inputs."""
    return (torch.rand(*shape) * 2 - 1) / math.sqrt(shape[-1])


def concatenate(first: Adapters, second: Adapters, *, strength: float | Tensor = 1.0) -> dict[str, Factors]:
    """ΔW = ΔW₁ + strength · ΔW₂ with the ranks side by side. N = 1 in `first` serves every adapter of `second`."""
    joined = {}
    for module, (a2, b2) in second.items():
        a1, b1 = first[module]
        count = a2.shape[1]
        a1, b1 = a1.expand(-1, count, -1, -1), b1.expand(-1, count, -1, -1)
        joined[module] = Factors(torch.cat([a1.to(a2), a2], 2), torch.cat([b1.to(b2), strength * b2], 2))
    return joined


def select(adapters: Adapters, index: Tensor | slice) -> dict[str, Factors]:
    """Some of the N adapters."""
    return {m: Factors(a[:, index], b[:, index]) for m, (a, b) in adapters.items()}


def lowered(adapters: Adapters, rank: int) -> dict[str, Factors]:
    """The adapters of `rank` whose ΔW are nearest in every layer (Frobenius; Eckart and Young 1936).

    Through QR of the factors and an SVD of R×R, in float64; half of each singular value in either factor, and zeros
    where there are fewer than `rank`.
    """
    found = {}
    for module, (down_YNRI, up_YNRO) in adapters.items():
        right_YNIK, b_YNKR = torch.linalg.qr(down_YNRI.double().transpose(-1, -2))
        left_YNOL, a_YNLR = torch.linalg.qr(up_YNRO.double().transpose(-1, -2))
        u_YNLJ, s_YNJ, v_YNJK = torch.linalg.svd(a_YNLR @ b_YNKR.transpose(-1, -2), full_matrices=False)
        kept = min(rank, s_YNJ.shape[-1])
        root_YNJ1 = s_YNJ[..., :kept, None].sqrt()
        down = root_YNJ1 * (v_YNJK[..., :kept, :] @ right_YNIK.transpose(-1, -2))
        up = root_YNJ1 * (left_YNOL @ u_YNLJ[..., :kept]).transpose(-1, -2)
        pad = (0, 0, 0, rank - kept)
        found[module] = Factors(
            *(torch.nn.functional.pad(t, pad).to(d.dtype) for t, d in ((down, down_YNRI), (up, up_YNRO)))
        )
    return found


def inner(first: Factors, second: Factors) -> Tensor:
    """⟨ΔW₁, ΔW₂⟩_F of each layer and adapter pair [Y, N]; the two N broadcast."""
    a_YNRS = first.down_YNRI @ second.down_YNRI.transpose(-1, -2)
    b_YNRS = first.up_YNRO @ second.up_YNRO.transpose(-1, -2)
    return (a_YNRS * b_YNRS).sum((-1, -2))


def squared_norm(adapters: Adapters) -> Tensor:
    """‖ΔW‖²_F over all modules and layers, of each adapter [N]."""
    return torch.stack([inner(f, f).sum(0) for f in adapters.values()]).sum(0)


def weights_of(model: nn.Module, layout: LoraTargets) -> Iterator[tuple[str, int, Tensor]]:
    """(module type, layer, weight [O, I]) of every adapted layer of the base model."""
    for module, path in layout.paths.items():
        for layer in range(layout.layers):
            yield module, layer, _dense(model.get_submodule(path.format(layer)))


def _dense(linear: Any) -> Tensor:
    """The weights [O, I] that a linear layer multiplies with; of an NF4 one those that its four bits stand for."""
    weight: Tensor = linear.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes import functional

    dense: Tensor = functional.dequantize_4bit(weight.data, state)
    return dense


def to_dtype(adapters: Adapters, dtype: torch.dtype) -> dict[str, Any]:
    """Every factor in one dtype, once, instead of once per product."""
    return {m: type(f)(f.down_YNRI.to(dtype), f.up_YNRO.to(dtype)) for m, f in adapters.items()}
