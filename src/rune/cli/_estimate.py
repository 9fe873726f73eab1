"""What a config will cost: memory counted from shapes, time from counted work over a measured machine.

The time model is two numbers of this machine, multiplications a second and bytes a second, and a count of what
the config asks for. A prompt costs one multiplication with all weights per token, once for all its samples; a decode
step reads all weights once and multiplies them by every row; a training step costs four passes' worth of
multiplications on a frozen base (forward, and backward through activations). Not counted: loading, attention, contexts
that an arm puts before its tasks, sandbox time (about 5 ms a program) and the gains or losses of particular kernels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rune.errors import ModelError
from rune.models import memory

if TYPE_CHECKING:
    from rune.study.config import RunConfig

ANSWER_TOKENS = 200  # mean length of a HumanEval answer of these models; the limit is reached by few
PROMPT_TOKENS = 300
TRAJECTORY_TOKENS = 1500
BYTES_PER_TOKEN = 5  # of a trajectory file, whose records hold more than what is read of them
HYPERNET_PARAMETERS = 15_000_000  # encoder and shared heads at the recipe's sizes
ROWS = {"cpu": 64, "cuda": 256}  # sequences decoded together
WRONG = 0.5  # share of attempts that fail and are tried again


class Probe(NamedTuple):
    """Two measured numbers."""

    flops: float  # a second
    bandwidth: float  # bytes a second

    @property
    def text(self) -> str:
        return f"{self.flops / 1e9:,.0f} Gflop/s, {self.bandwidth / 1e9:,.0f} GB/s"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Counted work and memory of one config."""

    shape: memory.Shape
    device: str
    dtype: str
    rows: int
    collect_tokens: float
    collect_prompts: float  # tokens
    sample_tokens: float
    sample_prompts: float  # tokens
    train_tokens: float
    read_tokens: float  # by the context encoder, as many as would cost the same if all layers read them
    memory: Mapping[str, Mapping[str, int]]  # stage → part → bytes

    @property
    def largest(self) -> Mapping[str, int]:
        return max(self.memory.values(), key=lambda parts: sum(parts.values()))


def plan(settings: RunConfig, *, held_out: int, train: int, folder: Path | None) -> Plan:
    """Raises ModelError if nothing is known of the model's shape."""
    shape = memory.known_shape(settings.model.name, folder)
    if shape is None:
        name = settings.model.name
        raise ModelError(f"{name}: its size is not known before it is here; run `rune models pull {name}` first")
    device, dtype = where(settings.model.device, settings.model.dtype)
    sample, collect, lora, hyper = settings.sample, settings.collect, settings.train.lora, settings.train.hypernet
    tasks = collect.tasks or train
    attempts = sum(WRONG**i for i in range(collect.max_attempts))
    wanted = tasks * collect.chains
    draws = held_out * sample.n * len(settings.adapt.arms)
    rows = min(ROWS[device], max(wanted, draws))
    rank = lora.rank + hyper.rank
    pairs = hyper.groups * hyper.targets
    contrast = 2 if hyper.weights.target_contrast or hyper.weights.source_contrast else 1
    step = {"lora": lora.rows * lora.max_tokens, "hypernet": contrast * pairs * hyper.max_tokens}
    trained = {"lora": shape.lora_parameters(lora.rank), "hypernet": HYPERNET_PARAMETERS + shape.lora_parameters(rank)}
    width = {"lora": lora.max_tokens, "hypernet": hyper.max_tokens}
    stages: dict[str, Mapping[str, int]] = {}
    for name in ("lora", "hypernet"):
        tokens = width[name]
        stages[name] = memory.estimate_training(
            shape, dtype=dtype, rows=step[name] // tokens, tokens=tokens, rank=rank, trained=trained[name]
        )
        if settings.engine.name in ("torch", "vllm"):  # it drew the attempts, and will draw the samples
            stages[name] = {**stages[name], "the engine's weights": shape.parameters * memory.BYTES[dtype]}
    stages["sample"] = memory.estimate_sampling(
        shape, dtype=dtype, rows=rows, tokens=PROMPT_TOKENS + sample.max_new_tokens, adapters=held_out * 2, rank=rank
    )
    return Plan(
        shape=shape,
        device=device,
        dtype=dtype,
        rows=rows,
        collect_tokens=wanted * attempts * ANSWER_TOKENS,
        # An attempt after the first also reads what failed before it.
        collect_prompts=wanted * (attempts * PROMPT_TOKENS + (attempts - 1) * ANSWER_TOKENS),
        sample_tokens=float(draws * min(ANSWER_TOKENS, sample.max_new_tokens)),
        sample_prompts=float(held_out * len(settings.adapt.arms) * PROMPT_TOKENS),
        train_tokens=float(lora.schedule.steps * step["lora"] + hyper.schedule.steps * step["hypernet"]) / 2,
        read_tokens=(min(collect.keep, wanted) * TRAJECTORY_TOKENS + _bytes(collect.imports) / BYTES_PER_TOKEN)
        * min(1.0, max(hyper.taps) / shape.layers),
        memory=stages,
    )


def _bytes(files: Iterable[str]) -> int:
    return sum(path.stat().st_size for path in map(Path, files) if path.is_file())


def where(device: str, dtype: str) -> tuple[str, str]:
    """The device a run would use, and its number type. A GPU config on a machine without one is timed on the CPU."""
    import torch

    present = torch.cuda.is_available()
    used = "cuda" if present and device != "cpu" else "cpu"
    wanted_gpu = used == "cuda" or device == "cuda"
    return used, dtype if dtype != "auto" else "bfloat16" if wanted_gpu else "float32"


def measure(device: str, dtype: str) -> Probe:
    """A second of matrix products and copies."""
    import torch

    size = 8192 if device == "cuda" else 768
    kind = getattr(torch, dtype)
    a = torch.randn(size, size, device=device).to(kind)
    flops = 2 * size**3 / _fastest(lambda: a @ a, device)
    block = torch.zeros((1 << 30 if device == "cuda" else 1 << 26), dtype=torch.uint8, device=device)
    return Probe(flops, 2 * block.numel() / _fastest(lambda: block.clone(), device))


def _fastest(work: Callable[[], object], device: str) -> float:
    import torch

    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < 0.5:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def times(plan: Plan, probe: Probe) -> dict[str, float]:
    """Seconds by stage, with their sum."""
    parameters = plan.shape.parameters
    size = memory.BYTES[plan.dtype]
    step = max(parameters * size / probe.bandwidth, 2 * parameters * plan.rows / probe.flops)
    per_token = step / plan.rows
    per_read = 2 * parameters / probe.flops
    found = {
        "collect": plan.collect_tokens * per_token + plan.collect_prompts * per_read,
        "train": (4 * plan.train_tokens + 2 * plan.read_tokens) * parameters / probe.flops,
        "sample": plan.sample_tokens * per_token + plan.sample_prompts * per_read,
    }
    return {**found, "in all": sum(found.values())}


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def total(parts: Mapping[str, int]) -> str:
    return f"{memory.gib(parts):.1f} GiB"
