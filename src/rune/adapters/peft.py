"""LoRA as data: many adapters at once over one frozen model, and PEFT's folder layout.

y = W x + b + (α/r) B A x  (Hu et al. 2021, eq. 3), with *different* A, B per row of the batch: the adapters of a
batch are stacked and each target linear gets one grouped product, `[G, k·T, I] @ [G, I, R] @ [G, R, O]`, added to
its output. α/r is folded into B, base rows carry a zero adapter, smaller ranks are padded with zeros; all three
leave the product unchanged. Nothing is merged, so the base is never touched.

A and B may require gradients (they come straight from a hypernetwork) and nothing on their path is done in
place. `hypernet` trains through this file; the torch engine's decode loop keeps its own banks of the same layout.

Legend: G adapters in the batch · K rows of one adapter · N = G·K rows · T tokens · I inputs · O outputs · R rank
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rune.adapters.layout import CONFIG_FILE as CONFIG_FILE
from rune.adapters.layout import WEIGHTS_FILE as WEIGHTS_FILE
from rune.adapters.modules import MODULES
from rune.errors import AdapterError
from rune.runs import store
from rune.types import AdapterRef

_PREFIX = "base_model.model."


class Pair(NamedTuple):
    """One module's factors in the order a row vector meets them: x @ a @ b."""

    a: Tensor  # [I, R], or [G, I, R] when stacked
    b: Tensor  # [R, O], or [G, R, O] when stacked


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """One LoRA in memory. `pairs` maps a module's dotted name to its factors, α/r *not* yet applied."""

    pairs: Mapping[str, Pair]
    scale: float  # α/r (α/√r under rsLoRA)
    base_model: str = ""  # `ModelRef.digest` it was made for; "" when the folder does not say

    @property
    def rank(self) -> int:
        return max(pair.a.shape[1] for pair in self.pairs.values())


def target_linears(model: nn.Module, targets: Sequence[str] = MODULES) -> dict[str, nn.Linear]:
    """Dotted name → linear layer for every module whose last name is in `targets`, in model order.

    Raises AdapterError if there is none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets and isinstance(module, nn.Linear)  # bitsandbytes' are linears too
    }
    if not found:
        raise AdapterError(f"the model has no linear layer named {', '.join(targets)}; check target_modules")
    return found


def stack(adapters: Sequence[Adapter | None], *, device: Any = None, dtype: Any = None) -> dict[str, Pair]:
    """Adapters → module name → Pair([G, I, R], [G, R, O]) with α/r folded into B.

    None is the base model: zeros. R is the largest rank; modules that an adapter leaves out are zeros. Gradients
    flow back into the adapters' tensors.
    """
    present = [adapter for adapter in adapters if adapter is not None]
    if not present:
        return {}
    names = list(dict.fromkeys(name for adapter in present for name in adapter.pairs))
    stacked = {}
    for name in names:
        like = next(adapter.pairs[name] for adapter in present if name in adapter.pairs)
        rank = max(adapter.pairs[name].a.shape[1] for adapter in present if name in adapter.pairs)
        rows_a, rows_b = [], []
        for adapter in adapters:
            if adapter is None or name not in adapter.pairs:
                rows_a.append(like.a.new_zeros(like.a.shape[0], rank))
                rows_b.append(like.b.new_zeros(rank, like.b.shape[1]))
                continue
            a_IR, b_RO = adapter.pairs[name]
            short = rank - a_IR.shape[1]
            rows_a.append(nn.functional.pad(a_IR, (0, short)))
            rows_b.append(nn.functional.pad(b_RO * adapter.scale, (0, 0, 0, short)))
        stacked[name] = Pair(
            torch.stack(rows_a).to(device=device, dtype=dtype), torch.stack(rows_b).to(device=device, dtype=dtype)
        )
    return stacked


class LoraHooks:
    """Adds the adapters in use to the outputs of a model's target linears, through forward hooks.

    The model's modules, parameters and state dict stay as they are. Under gradient checkpointing the forward
    runs again inside `backward()`: keep that call within the same `using(...)`.
    """

    def __init__(self, model: nn.Module, targets: Sequence[str] = MODULES) -> None:
        self.linears = target_linears(model, targets)
        self._stack: Mapping[str, Pair] = {}
        self._slots_N: Tensor | None = None
        self._handles = [
            module.register_forward_hook(self._hook(name), always_call=False) for name, module in self.linears.items()
        ]

    def set(self, stacked: Mapping[str, Pair], slots_N: Tensor | None = None) -> None:
        """Choose the stacked adapters and the rows that each is applied to.

        Without `slots_N`, the N rows of a batch are G equal runs: rows g·K … g·K+K−1 wear adapter g. With it,
        row n has adapter `slots_N[n]` (gathered: for batches that cannot be sorted). Both are plain tensors,
        so a captured CUDA graph may be replayed after their contents were overwritten. Raises AdapterError for a
        module that was not hooked.
        """
        unknown = next((name for name in stacked if name not in self.linears), None)
        if unknown is not None:
            raise AdapterError(f"the adapter changes '{unknown}', which is not among the model's target linears")
        self._stack, self._slots_N = stacked, slots_N

    def clear(self) -> None:
        """Back to the bare base model."""
        self._stack, self._slots_N = {}, None

    @contextmanager
    def using(self, stacked: Mapping[str, Pair], slots_N: Tensor | None = None) -> Iterator[None]:
        """`set` for the length of a with-block; what was chosen before comes back after it."""
        before = self._stack, self._slots_N
        self.set(stacked, slots_N)
        try:
            yield
        finally:
            self._stack, self._slots_N = before

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str) -> Any:
        def add_delta(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            pair = self._stack.get(name)
            if pair is None:
                return None
            return add(output, inputs[0], pair, self._slots_N)

        return add_delta


def add(y_NTO: Tensor, x_NTI: Tensor, pair: Pair, slots_N: Tensor | None = None) -> Tensor:
    """y + B A x. Equal runs take one product that reads y and writes the sum: nothing of y's size in between."""
    groups, inputs, _ = pair.a.shape
    if slots_N is not None or y_NTO.dtype != x_NTI.dtype or x_NTI.shape[0] % groups:
        return y_NTO + delta(x_NTI, pair, slots_N).to(y_NTO.dtype)
    down_GKR = x_NTI.reshape(groups, -1, inputs) @ pair.a.to(x_NTI.dtype)
    y_GKO = y_NTO.reshape(groups, -1, y_NTO.shape[-1])
    return torch.baddbmm(y_GKO, down_GKR, pair.b.to(x_NTI.dtype)).view_as(y_NTO)


def delta(x_NTI: Tensor, pair: Pair, slots_N: Tensor | None = None) -> Tensor:
    """B A x for a batch whose rows wear the stacked adapters of `pair`; shape [N, T, O] (or [N, O] for 2-D x).

    Raises AdapterError where G equal runs do not make up the N rows.
    """
    a_GIR, b_GRO = pair.a.to(x_NTI.dtype), pair.b.to(x_NTI.dtype)
    if slots_N is not None:
        a_GIR, b_GRO = a_GIR[slots_N], b_GRO[slots_N]
    num_groups, rows = a_GIR.shape[0], x_NTI.shape[0]
    if rows % num_groups:
        raise AdapterError(f"{rows} rows cannot be {num_groups} equal runs; pass slots_N or pad the batch")
    x_GKI = x_NTI.reshape(num_groups, -1, x_NTI.shape[-1])
    return (x_GKI @ a_GIR @ b_GRO).reshape(*x_NTI.shape[:-1], b_GRO.shape[-1])


# --------------------------------------------------------------------------- measures


def content_id(adapter: Adapter) -> str:
    """sha256 of the weights file that `encode` gives: equal adapters, equal id, wherever they lie."""
    return hashlib.sha256(encode(adapter)[1]).hexdigest()


def earlier_id(adapter: Adapter) -> str:
    """The id of 32 digits in records of before: of names, shapes, bytes and scale."""
    digest = hashlib.sha256(f"scale={adapter.scale!r}".encode())
    for name in sorted(adapter.pairs):
        for letter, tensor in zip("ab", adapter.pairs[name], strict=True):
            flat = tensor.detach().cpu().contiguous()
            digest.update(f"{name}.{letter}:{tuple(flat.shape)}:{flat.dtype}".encode())
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


@torch.no_grad()
def delta_w_norms(adapter: Adapter) -> dict[str, float]:
    """‖(α/r) B A‖_F per module from r×r Gram matrices: ‖AB‖² = tr((AᵀA)(BBᵀ)). ΔW itself is never built."""
    norms = {}
    for name, (a_IR, b_RO) in adapter.pairs.items():
        a_IR, b_RO = a_IR.double(), b_RO.double()
        squared = ((a_IR.T @ a_IR) * (b_RO @ b_RO.T)).sum().item()
        norms[name] = abs(adapter.scale) * math.sqrt(max(squared, 0.0))
    return norms


def delta_w_norm(adapter: Adapter) -> float:
    """‖ΔW‖_F over all modules."""
    return math.sqrt(sum(norm**2 for norm in delta_w_norms(adapter).values()))


# --------------------------------------------------------------------------- PEFT folders

_MOST_ALPHA = 1e6  # far above any that trains; beyond it ΔW leaves the range of float32
_REFUSED = {
    "use_dora": "DoRA",
    "use_qalora": "QA-LoRA",
    "lora_bias": "a bias on B",
    "modules_to_save": "modules_to_save",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "fan_in_fan_out": "fan_in_fan_out",
    "layer_replication": "layer_replication",
    "target_parameters": "target_parameters",
    "trainable_token_indices": "trainable_token_indices",
    "alora_invocation_tokens": "activated LoRA",
}


def write_peft(
    folder: Path | str, adapter: Adapter, *, base_model_name: str = "", base_revision: str = ""
) -> AdapterRef:
    """Write one adapter as PEFT does; vLLM, SGLang and PEFT load the folder unchanged. Returns its record.

    Every pair must have the same rank (PEFT states one). `base_model_name` is what `from_pretrained` finds the base
    by; `adapter.base_model`, the digest of its weights, goes into the weights' metadata: PEFT warns of fields in its
    config that it does not know. The same adapter gives the same bytes wherever it is written.
    """
    folder = Path(folder)
    config, weights = encode(adapter, base_model_name=base_model_name, base_revision=base_revision)
    store.write_atomic(folder / WEIGHTS_FILE, weights)
    store.write_atomic(folder / CONFIG_FILE, config)
    return AdapterRef(
        adapter_id=hashlib.sha256(weights).hexdigest(),
        base_model=adapter.base_model,
        rank=adapter.rank,
        delta_w_norm=delta_w_norm(adapter),
    )


def encode(
    adapter: Adapter, *, base_model_name: str = "", base_revision: str = "", owner: str = ""
) -> tuple[bytes, bytes]:
    """The two files of a PEFT folder, config and weights, as bytes that depend on the adapter alone.

    The weights' metadata holds the base model's digest and the scale α/r: the sha256 of that one file names all that
    an adapter does. `owner` goes there too: the same adapter of two owners is then two files of two names. Raises
    AdapterError for pairs of several ranks.
    """
    ranks = {pair.a.shape[1] for pair in adapter.pairs.values()} | {p.b.shape[0] for p in adapter.pairs.values()}
    if len(ranks) != 1:
        raise AdapterError(f"an adapter needs pairs of one rank to be written, found ranks {sorted(ranks)}")
    (rank,) = ranks
    tensors = {}
    for name, (a_IR, b_RO) in adapter.pairs.items():
        tensors[_key(name, "A")] = a_IR.detach().cpu().T.contiguous()
        tensors[_key(name, "B")] = b_RO.detach().cpu().T.contiguous()
    modules = sorted({name.rpartition(".")[2] for name in adapter.pairs})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name or None,
        "revision": base_revision or None,
        "r": rank,
        "lora_alpha": adapter.scale * rank,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "use_dora": False,
        "use_rslora": False,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    metadata = {"format": "pt", "base_model": adapter.base_model, "scale": repr(float(adapter.scale))}
    metadata |= {"owner": owner} if owner else {}
    weights = _ordered(save(tensors, metadata))
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), weights


def _ordered(data: bytes) -> bytes:
    """A safetensors file with its header's keys in order: the library writes the metadata as a hash map gives it."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8, as the format asks
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


class Opened(NamedTuple):
    """A PEFT folder of which nothing but its settings has been read."""

    folder: Path
    file: Any  # safetensors' handle
    rank: int
    scale: float  # α/r (α/√r under rsLoRA)
    base_model: str  # "" when the folder does not say

    def layer(self, name: str) -> tuple[Tensor, Tensor]:
        """(down_RI, up_RO) of one module in float32, the scale folded into `up`. Raises AdapterError without it."""
        try:
            down_RI, up_OR = (self.file.get_tensor(_key(name, letter)).float() for letter in "AB")
        except SafetensorError as error:
            raise AdapterError(f"{self.folder}: nothing for '{name}' ({error})") from None
        return down_RI, self.scale * up_OR.T


def _key(name: str, letter: str) -> str:
    return f"{_PREFIX}{name}.lora_{letter}.weight"


def read_peft(folder: Path | str, *, device: str = "cpu") -> Adapter:
    """Read a PEFT LoRA folder whole. Raises AdapterError as `open_peft` does, and for numbers that are not finite."""
    opened = open_peft(folder, device=device)
    try:
        tensors = {key: opened.file.get_tensor(key) for key in opened.file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise _unreadable(opened.folder, error) from None
    pairs = _pairs(tensors, opened.rank, opened.folder)
    return Adapter(pairs=pairs, scale=opened.scale, base_model=opened.base_model)


def open_peft(folder: Path | str, *, device: str = "cpu") -> Opened:
    """Read a PEFT LoRA folder's settings.

    Raises AdapterError if it is missing, corrupt, of an unknown kind, or its config scales otherwise than the weights
    file says: an adapter's id is the digest of that file alone.
    """
    folder = Path(folder)
    rank, scale = _settings(folder)
    try:
        file = safe_open(str(folder / WEIGHTS_FILE), framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise _unreadable(folder, error) from None
    metadata = file.metadata() or {}
    try:
        stated = float(metadata.get("scale", scale))  # PEFT's own files state none
    except ValueError:
        stated = math.nan
    if not math.isclose(stated, scale, rel_tol=1e-9, abs_tol=1e-12):
        raise AdapterError(
            f"{folder / CONFIG_FILE}: contradicts the weights file, which says α/r = {metadata['scale']}, "
            f"not {scale:g}; write the adapter again"
        )
    return Opened(folder, file, rank, scale, metadata.get("base_model", ""))


def _settings(folder: Path) -> tuple[int, float]:
    """Rank and α/r of a plain LoRA's config. Raises AdapterError."""
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        if rank < 1 or not math.isfinite(alpha) or abs(alpha) > _MOST_ALPHA:
            raise ValueError(f"r = {rank}, lora_alpha = {alpha:g}")
    except FileNotFoundError:
        raise AdapterError(f"{folder}: no {CONFIG_FILE}; expected a PEFT LoRA folder") from None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise AdapterError(f"{folder / CONFIG_FILE}: not a PEFT LoRA config ({error!r})") from None
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{folder}: peft_type {config.get('peft_type')!r} is not supported; only LORA is")
    if config.get("bias", "none") != "none":
        raise AdapterError(f"{folder}: bias={config['bias']!r} is not supported; train with bias='none'")
    for key, what in _REFUSED.items():
        if config.get(key):
            raise AdapterError(f"{folder}: {what} is not supported; export a plain LoRA ({key} unset)")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return rank, scale


def _unreadable(folder: Path, error: Exception) -> AdapterError:
    return AdapterError(f"{folder / WEIGHTS_FILE}: cannot be read ({error}); write the adapter again")


def _pairs(tensors: Mapping[str, Tensor], rank: int, folder: Path) -> dict[str, Pair]:
    # NaN and infinity survive a sum, which is several times cheaper to ask; only a bad sum looks at every number.
    if tensors and not torch.stack([tensor.sum().float() for tensor in tensors.values()]).isfinite().all():
        bad = next((key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
        if bad is not None:
            raise AdapterError(f"{folder}: '{bad}' holds NaN or infinity; write the adapter again")
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, dot, letter = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not dot or letter not in ("A", "B") or not key.startswith(_PREFIX):
            raise AdapterError(f"{folder}: unexpected tensor '{key}'; expected {_PREFIX}<module>.lora_A|B.weight")
        halves.setdefault(name, {})[letter] = tensor.T
    if not halves:
        raise AdapterError(f"{folder}: {WEIGHTS_FILE} holds no LoRA weights")
    for name, half in halves.items():
        if set(half) != {"A", "B"}:
            raise AdapterError(f"{folder}: module '{name}' has only one of lora_A and lora_B")
        if half["A"].ndim != 2 or half["B"].ndim != 2 or half["A"].shape[1] != rank or half["B"].shape[0] != rank:
            raise AdapterError(f"{folder}: '{name}' is not of the rank {rank} that {CONFIG_FILE} states")
    return {name: Pair(half["A"], half["B"]) for name, half in halves.items()}
