"""How long one adapter takes, and how long it takes to compare a thousand: one JSON.

    python bench/hypernet.py --out results/bench-hypernet.json

adapter      a trajectory of about 2,000 tokens → a PEFT-ready adapter, features included, hypernetwork untrained (time
             does not depend on the weights); median of 5. Asked: at most 2 s on 2 CPU cores, 50 ms on an H100.
diagnostics  pairwise inner products of ΔW of N adapters, rank 8, all layers of a 7B model, from random factors made
             layer by layer on the device (their generation is not timed).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from rune import console
from rune.adapters import convert
from rune.adapters.factors import StaticLora
from rune.hypernet import checkpoint, export, trainer
from rune.hypernet.base import load
from rune.hypernet.diagnostics import gram
from rune.hypernet.settings import MODULES, HypernetConfig, LoraConfig, PairMix, Schedule, Weights
from rune.models import resolve
from rune.runs import store
from rune.types import Attempt, ModelRef, Outcome, Trajectory

# Qwen2.5-7B: hidden 3584, key/value 512, ffn 18944, 28 layers.
SIZES_7B = {
    "q_proj": (3584, 3584), "k_proj": (3584, 512), "v_proj": (3584, 512), "o_proj": (3584, 3584),
    "gate_proj": (3584, 18944), "up_proj": (3584, 18944), "down_proj": (18944, 3584),
}  # fmt: skip
LAYERS_7B = 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--adapters", type=int, help="compared; default 1000 on a GPU, 50 on a CPU")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/rune").expanduser())
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = resolve.resolve(args.model, sources=resolve.SOURCES, cache=args.cache)
    result = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads",
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "adapter": adapter(model, device),
        "diagnostics": diagnostics(args.adapters or (1000 if device == "cuda" else 50), device),
    }
    store.write_json(args.out, result)
    console.out(args.out.read_text(encoding="utf-8"))


def adapter(model: ModelRef, device: str) -> dict[str, Any]:
    """Seconds from a trajectory to an adapter in memory."""
    dtype = export.reading_dtype(device)
    schedule = Schedule(steps=1, learning_rate=1e-3)
    lora = LoraConfig(schedule=schedule, rank=8, alpha=16.0, rows=1)
    settings = HypernetConfig(
        schedule=schedule, rank=8, alpha=16.0, groups=2, targets=1, pairs=PairMix(recall=1.0), weights=Weights()
    )
    base = load(model, device="cpu", dtype="float32")
    layout = base.layout(lora.modules)
    both = trainer.HypernetWithStatic(StaticLora(layout, rank=8, alpha=16.0), trainer.new_hypernet(layout, settings))
    sizes = {
        "static": sum(p.numel() for p in both.static.parameters()),
        "encoder": sum(p.numel() for p in both.hypernet.encoder.parameters()),
        "hypernet": sum(p.numel() for p in both.hypernet.parameters()),
    }
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_hypernet(Path(folder), both, layout, lora, settings, model, precision="float16")
        megabytes = (Path(folder) / checkpoint.WEIGHTS).stat().st_size / 1e6
        del base
        source = export.AdapterGenerator(Path(folder), model, device=device, dtype=dtype)
    trajectory = long_trajectory(source)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        made = source.generate([[trajectory]])
        convert.to_adapter(made, layout, base_model=model.digest)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {
        "tokens": len(source.writer.reader.read([trajectory])[0].kind_T),
        "seconds_median": statistics.median(times[1:]),
        "seconds_all": times,
        "dtype": dtype,
        "parameters": sizes,
        "checkpoint_megabytes_fp16": megabytes,
    }


def long_trajectory(source: export.AdapterGenerator, tokens: int = 2000) -> Trajectory:
    """Failed attempts are added until the limit is reached; each of its own, so that nothing is shared."""
    code = "def solve(items):\n" + "".join(
        f"    total_{i} = sum(x for x in items if x % {i + 2} == 0)\n" for i in range(9)
    )
    trajectory = Trajectory(
        trajectory_id="long", task_id="long", benchmark="", prompt='def solve(items):\n    """Sum."""', attempts=(),
        solution=code + "    return total_0\n",
    )  # fmt: skip
    while True:
        number = len(trajectory.attempts)
        attempt = Attempt(
            code=code + f"    return total_{number}\n", outcome=Outcome.FAILED, error_kind="WrongAnswer",
            error=f"solve([1, 2, 3]): expected {number}, got {number + 1}",
        )  # fmt: skip
        longer = dataclasses.replace(trajectory, attempts=(*trajectory.attempts, attempt))
        if len(source.writer.reader.read([longer])[0].kind_T) > tokens:
            return trajectory
        trajectory = longer


def diagnostics(count: int, device: str, rank: int = 8) -> dict[str, Any]:
    """Seconds for the N × N Gram matrix over all layers and modules of a 7B model."""
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    total = torch.zeros(count, count, device=device, dtype=torch.float64)
    seconds = 0.0
    for layer in range(LAYERS_7B):
        for module in MODULES:
            inputs, outputs = SIZES_7B[module]
            down, up = torch.randn(count, rank, inputs, device=device), torch.randn(count, rank, outputs, device=device)
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            if layer == 0 and module == MODULES[0]:
                gram(down, up)  # warm-up: the first product loads the library
                started = time.perf_counter()
            total += gram(down, up).double()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - started
    return {"adapters": count, "rank": rank, "model": "7B: 28 layers, 7 modules", "seconds": seconds}


if __name__ == "__main__":
    main()
