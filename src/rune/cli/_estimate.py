"""What a config will cost: memory counted from shapes, time from counted work over a measured machine.

The time model is two numbers of this machine, multiplications a second and bytes of weights a second, both measured on
products of the shapes that a model asks for and as they come over a second (not the fastest: a busy machine is slow in
the run too), and a count of what the config asks for. A prompt costs one multiplication with all weights per token,
once for all its samples; a decode step reads all weights and multiplies them by every row, one after the other; a
training step costs four passes' worth of multiplications on a frozen base (forward, and backward through activations).
`adapt` reads each task's trajectories through the lower layers, fine-tunes where an arm does, runs every adapter once
to see that it is live, and swaps some. What is made once for all tasks that are given the same counts as one a task,
the most that there can be. The base model is loaded once to draw and once to train. Not counted: attention, sandbox
time (about 5 ms a program), the gains or losses of particular kernels, and an arm that stands in no class below.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rune import config, plugins
from rune.errors import ModelError
from rune.models import memory

if TYPE_CHECKING:
    from rune.study.config import RunConfig

ANSWER_TOKENS = 200  # mean length of a HumanEval answer of these models; the limit is reached by few
PROMPT_TOKENS = 300
TRAJECTORY_TOKENS = 1500
CHARS_PER_TOKEN = 3  # of code and error texts
BYTES_PER_TOKEN = 5  # of a trajectory file, whose records hold more than what is read of them
HYPERNET_PARAMETERS = 15_000_000  # encoder and shared heads at the recipe's sizes
ROWS = {"cpu": 64, "cuda": 256}  # sequences decoded together
PROBE_TOKENS = 200  # of the prompt that an adapter is proved live with, beside the bare model
LOAD_PASSES = 4  # over the weights' bytes, when a model is loaded: read, converted, checked, laid out
NO_ADAPTER = ("vanilla", "rag", "teacher")
# Arms with an adapter for each task.
ONE_A_TASK = ("hypernet", "wrong_trajectory", "hypernet_centred", "oracle", "tuned", "tuned_wrong")
ONE_FOR_ALL = ("lora", "static", "empty_trajectory", "hypernet_mean", "tuned_mean")
# The trajectories of every task, with the context encoder.
READS = ("hypernet", "wrong_trajectory", "hypernet_mean", "hypernet_centred")
TUNES = ("oracle", "tuned", "tuned_wrong", "tuned_mean")  # on what every task is given; of one config only once
WRONG = 0.5  # share of attempts that fail and are tried again


class Probe(NamedTuple):
    """Two measured numbers."""

    flops: float  # a second, in products as large as a prompt's
    bandwidth: float  # bytes of weights a second, as a decode step of one row reads them

    @property
    def text(self) -> str:
        return f"{self.flops / 1e9:,.0f} Gflop/s, {self.bandwidth / 1e9:,.0f} GB/s"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Counted work and memory of one config."""

    shape: memory.Shape
    device: str
    dtype: str
    collect_rows: int  # sequences decoded together
    sample_rows: int
    collect_tokens: float
    collect_prompts: float  # tokens
    sample_tokens: float
    sample_prompts: float  # tokens, with what arms put before the task
    train_tokens: float
    read_tokens: float  # by the context encoder, as many as would cost the same if all layers read them
    adapt_tokens: float  # to make adapters, prove them live and swap some; counted in the same way
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
    collect_rows, sample_rows = (max(1, min(ROWS[device], count)) for count in (wanted, draws))
    lower = min(1.0, max(hyper.taps) / shape.layers)  # share of the layers that trajectories are read through
    rank = lora.rank + hyper.rank
    pairs = hyper.groups * hyper.targets
    contrast = 2 if hyper.weights.target_contrast or hyper.weights.source_contrast else 1
    step = {"lora": lora.rows * lora.max_tokens, "hypernet": contrast * pairs * hyper.max_tokens}
    trained = {"lora": shape.lora_parameters(lora.rank), "hypernet": HYPERNET_PARAMETERS + shape.lora_parameters(rank)}
    width = {"lora": lora.max_tokens, "hypernet": hyper.max_tokens}
    features = lower  # of a trajectory's tokens, once, before training
    learned = float(lora.schedule.steps * step["lora"] + hyper.schedule.steps * step["hypernet"]) / 2
    texts = min(collect.keep, wanted) + _bytes(collect.imports) / BYTES_PER_TOKEN / TRAJECTORY_TOKENS
    if (outer := settings.train.outer_products) is not None and settings.train.kind == "outer_products":
        own, teacher = outer.generator, outer.teacher
        rank = max(own.passes * own.tokens, teacher.rank)
        step = {
            "teachers": teacher.together * teacher.rows * outer.max_tokens,
            "hypernet": outer.groups * outer.max_tokens,
        }
        corrections = 2 * 2 * shape.layers * shape.hidden * own.correction
        trained = {
            "teachers": teacher.together * shape.lora_parameters(teacher.rank),
            "hypernet": corrections + shape.layers * (shape.heads * shape.head + shape.ffn),
        }
        width = dict.fromkeys(step, outer.max_tokens)
        # Of an adapter, in tokens that are learned: two rows; half as much for each that is only read.
        read = own.passes * (1 + outer.max_sources) / 2
        features, lower = 0.0, float(own.passes)
        learned = float(texts * teacher.steps * teacher.rows * outer.max_tokens) / 2
        learned += outer.schedule.steps * step["hypernet"] * (2 + (2 + read) / 2) / 2
    stages: dict[str, Mapping[str, int]] = {}
    for name, tokens in width.items():
        stages[name] = memory.estimate_training(
            shape, dtype=dtype, rows=step[name] // tokens, tokens=tokens, rank=rank, trained=trained[name]
        )
        if settings.engine.name in ("torch", "vllm"):  # it drew the attempts, and will draw the samples
            stages[name] = {**stages[name], "the engine's weights": shape.parameters * memory.BYTES[dtype]}
    stages["sample"] = memory.estimate_sampling(
        shape,
        dtype=dtype,
        rows=sample_rows,
        tokens=PROMPT_TOKENS + sample.max_new_tokens,
        adapters=held_out * 2,
        rank=rank,
    )
    return Plan(
        shape=shape,
        device=device,
        dtype=dtype,
        collect_rows=collect_rows,
        sample_rows=sample_rows,
        collect_tokens=wanted * attempts * ANSWER_TOKENS,
        # An attempt after the first also reads what failed before it.
        collect_prompts=wanted * (attempts * PROMPT_TOKENS + (attempts - 1) * ANSWER_TOKENS),
        sample_tokens=float(draws * min(ANSWER_TOKENS, sample.max_new_tokens)),
        sample_prompts=float(held_out * (len(settings.adapt.arms) * PROMPT_TOKENS + _context_tokens(settings))),
        train_tokens=0.0 if settings.train.use else learned,
        read_tokens=texts * TRAJECTORY_TOKENS * features,
        adapt_tokens=_adapt_tokens(settings, held_out, lower),
        memory=stages,
    )


def _context_tokens(settings: RunConfig) -> float:
    """What the arms in context put before one task, all of them together."""
    whole = settings.retrieve.top_k * TRAJECTORY_TOKENS
    arms = settings.adapt.arms
    rag = 0.0
    if "rag" in arms:
        part = config.build(plugins.load("conditions", "rag").Config, settings.adapt.settings.get("rag", {}))
        rag = min(whole, settings.retrieve.top_k * part.max_chars / CHARS_PER_TOKEN)
    return rag + whole * ("teacher" in arms)


def _adapt_tokens(settings: RunConfig, held_out: int, lower: float) -> float:
    """Tokens through the whole model, or as many as would cost the same."""
    parts = {
        arm: config.build(plugins.load("conditions", arm).Config, settings.adapt.settings.get(arm, {}))
        for arm in settings.adapt.arms
        if arm in TUNES
    }
    trainings = {part.tuned() if arm == "tuned_mean" else part for arm, part in parts.items()}
    tuned = held_out * sum(t.steps * t.rows * t.max_tokens for t in trainings)  # half as long, and twice a forward pass
    several = [arm for arm in settings.adapt.arms if arm in ONE_A_TASK]
    adapters = held_out * len(several) + sum(arm in ONE_FOR_ALL for arm in settings.adapt.arms)
    reading = sum(arm in READS for arm in settings.adapt.arms)
    read = held_out * reading * settings.retrieve.top_k * TRAJECTORY_TOKENS * lower
    live = 2 * adapters * PROBE_TOKENS
    swapped = 2 * len(several) * min(settings.adapt.swap_tasks, held_out) * (PROMPT_TOKENS + ANSWER_TOKENS)
    tasks = min(settings.adapt.rank_tasks, held_out)
    ranked = len(several) * tasks * tasks * (PROMPT_TOKENS + ANSWER_TOKENS)
    return float(tuned + read + live + swapped + ranked)


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
    """A second of products of many rows with a few layers, and a second of products of one row: those read weights."""
    import torch

    kind = getattr(torch, dtype)
    inputs, outputs, layers, rows = (4096, 16384, 8, 8192) if device == "cuda" else (1024, 4096, 16, 256)
    weights = [torch.randn(outputs, inputs, device=device).to(kind) for _ in range(layers)]  # more than a cache holds
    many, one = (torch.randn(count, inputs, device=device).to(kind) for count in (rows, 1))
    numbers = layers * inputs * outputs
    long, short = (_mean_seconds(lambda x=x: [x @ w.T for w in weights], device) for x in (many, one))  # type: ignore[misc]
    return Probe(2 * rows * numbers / long, numbers * weights[0].element_size() / short)


def _mean_seconds(work: Callable[[], object], device: str) -> float:
    """Over at least a second, after one that does not count."""
    import torch

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    wait()
    begun, times = time.perf_counter(), 0
    while times == 0 or time.perf_counter() - begun < 1.0:
        work()
        wait()
        times += 1
    return (time.perf_counter() - begun) / times


def times(plan: Plan, probe: Probe) -> dict[str, float]:
    """Seconds by stage, with their sum."""
    parameters = plan.shape.parameters
    weights = parameters * memory.BYTES[plan.dtype] / probe.bandwidth  # to read all of them once
    token = 2 * parameters / probe.flops  # to multiply one row with all of them
    load = LOAD_PASSES * weights
    found = {
        "collect": load + plan.collect_tokens * (weights / plan.collect_rows + token) + plan.collect_prompts * token,
        "train": load + (2 * plan.train_tokens + plan.read_tokens) * token,
        "adapt": plan.adapt_tokens * token,
        "sample": plan.sample_tokens * (weights / plan.sample_rows + token) + plan.sample_prompts * token,
    }
    return {**found, "in all": sum(found.values())}


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def total(parts: Mapping[str, int]) -> str:
    return f"{memory.gib(parts):.1f} GiB"
