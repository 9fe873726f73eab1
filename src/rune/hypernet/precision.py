"""The numbers of a checkpoint as they are stored: float32, float16, or int8 with a scale for each output channel.

    s = max |w| / 127 over the inputs that one output channel sums        q = round(w / s), −127 … 127        ŵ = s · q

int8, exactly. Every matrix of LEAST numbers or more is stored under its own name as int8, and beside it under
NAME.scale its scales in float32, of the same shape but 1 along the inputs: so that `q * scale` is the weight, whichever
axis that is. A row of zeros has scale 0. All else (biases, norms, statistics, small matrices, elementwise scales) is
float32, integers stay. Symmetric: there is no zero point. Inputs are the last axis, as of every `nn.Linear` and of a
LoRA's A and B, whose rows are its rank; of the matrices in INPUTS_BEFORE the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rune.hypernet.settings import Precision

SCALE = ".scale"
LEAST = 1 << 14  # numbers; smaller matrices are no part of the size
INPUTS_BEFORE = ("read_YWK", "project_SDW")  # stored […, inputs, outputs]
ELEMENTWISE = ("scale_YI",)  # no product sums over these
_MOST = 127


def packed(state: Mapping[str, Tensor], precision: Precision) -> dict[str, Tensor]:
    """A module's state as it is stored, on the CPU. float16 is for all floating-point numbers alike."""
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        whole = value.detach().to("cpu")
        if not whole.is_floating_point():
            found[name] = whole.clone()
        elif precision != "int8":
            found[name] = whole.to(getattr(torch, precision), copy=True).contiguous()
        elif _is_matrix(name, whole):
            found[name], found[name + SCALE] = _quantised(whole.float(), -2 if _named(name, INPUTS_BEFORE) else -1)
        else:
            found[name] = whole.to(torch.float32, copy=True).contiguous()
    return found


def unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state again, of any precision. Raises ValueError where int8 numbers and scales do not fit each other."""
    found: dict[str, Tensor] = {}
    for name, value in stored.items():
        if name.endswith(SCALE) and stored.get(name.removesuffix(SCALE), value).dtype is torch.int8:
            continue
        if value.dtype is not torch.int8:
            found[name] = value
            continue
        scale = stored.get(name + SCALE)
        if scale is None:
            raise ValueError(f"'{name}' is int8 and has no '{name}{SCALE}'")
        if scale.dim() != value.dim() or any(s not in (1, v) for s, v in zip(scale.shape, value.shape, strict=True)):
            raise ValueError(f"'{name}{SCALE}' is {list(scale.shape)}, which scales no {list(value.shape)}")
        found[name] = value.float() * scale.float()
    return found


def relative_error(exact: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> float:
    """‖w − ŵ‖ / ‖w‖ over the matrices of a state."""
    off = whole = 0.0
    for name, value in exact.items():
        if _is_matrix(name, value) and value.is_floating_point():
            off += float((value.cpu().double() - stored[name].double()).square().sum())
            whole += float(value.cpu().double().square().sum())
    return (off / whole) ** 0.5 if whole else 0.0


def _is_matrix(name: str, value: Tensor) -> bool:
    return value.dim() >= 2 and value.numel() >= LEAST and not _named(name, ELEMENTWISE)


def _named(name: str, some: tuple[str, ...]) -> bool:
    """A parameter of that name, or one of a dictionary of that name."""
    return any(part in some for part in name.split(".")[-2:])


def _quantised(whole: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    scale = whole.abs().amax(axis, keepdim=True) / _MOST
    steps = torch.where(scale > 0, whole / scale, torch.zeros_like(whole)).round().clamp(-_MOST, _MOST)
    return steps.to(torch.int8).contiguous(), scale.contiguous()
