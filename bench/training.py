"""Phase B's training step: seconds, tokens per second, and which kernels take the time.

    python bench/training.py --model MODEL --device cuda --out results/bench-training-h100.json

Task families as corpus, the families study's settings; warm-up steps are not counted. The share of the counted floor
(two products a weight forward, two backward for the activations, over the matrix rate measured here) stands beside.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from rune.adapters.factors import StaticLora
from rune.benchmarks import families
from rune.hypernet import base as bases
from rune.hypernet import trainer
from rune.hypernet.data import Corpus
from rune.hypernet.features import FeatureTable, Reader
from rune.hypernet.objective import Objective
from rune.hypernet.settings import MODULES, HypernetConfig, PairMix, Schedule, Weights
from rune.models import resolve
from rune.runs import store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--groups", type=int, default=24)
    parser.add_argument("--families", type=int, default=120)
    parser.add_argument("--taps", type=int, nargs="*", default=[0, 2, 4, 6])
    parser.add_argument("--max-tokens", type=int, default=384)
    parser.add_argument("--cudnn", action="store_true", help="let cuDNN do the attention, which bases.load forbids")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    model = resolve.resolve(args.model, sources=resolve.SOURCES, cache=None)
    base = bases.load(model, device=args.device, dtype="bfloat16" if cuda else "float32")
    if args.cudnn:
        torch.backends.cuda.enable_cudnn_sdp(True)
    problems = families.generate(families.Config(seed=0, families=args.families, held_out=args.families // 10, tasks=6))
    corpus = Corpus(base, families.trajectories(problems, None, seed=0), max_tokens=args.max_tokens)
    config = HypernetConfig(
        schedule=Schedule(steps=1000, learning_rate=5e-4, checkpoint_every=1000),
        rank=8, alpha=16.0, groups=args.groups, targets=2, taps=tuple(args.taps),
        pairs=PairMix(recall=0.4, family=0.6, max_sources=3),
        weights=Weights(target_contrast=0.1, kl_base=0.02, lesson=0.3), max_tokens=args.max_tokens,
    )  # fmt: skip
    reader = Reader(base.model, base.tokenizer, taps=config.taps, digest=model.digest, folder=None)
    table = FeatureTable(reader.read(corpus.trajectories))
    layout = base.layout(MODULES)
    both = trainer.HypernetWithStatic(StaticLora(layout, rank=8, alpha=16.0), trainer.new_hypernet(layout, config)).to(
        base.device
    )
    both.train()
    objective = Objective(base, corpus, table, both, config, layout, {}, 0)
    optimiser = torch.optim.AdamW(both.parameters(), lr=1e-4)

    def step(number: int) -> int:
        done = objective.take(number)
        optimiser.zero_grad(set_to_none=True)
        done.loss.backward()
        optimiser.step()
        return done.tokens

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    for number in (1, 2, 3):
        step(number)
    wait()
    started = time.perf_counter()
    tokens = sum(step(8 * n + 1) for n in range(args.steps))  # steps without the term that comes every eighth
    wait()
    seconds = (time.perf_counter() - started) / args.steps
    weights = sum(p.numel() for n, p in base.model.named_parameters() if "embed" not in n and "lm_head" not in n)
    result: dict[str, Any] = {
        "seconds_per_step": seconds,
        "tokens_per_step": tokens / args.steps,
        "tokens_per_second": tokens / args.steps / seconds,
        "floor_seconds": 4 * weights * tokens / args.steps / matrix_rate(args.device),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "config": dataclasses.asdict(config),
        "kernels": profile(step, cuda),
    }
    store.write_json(args.out, result)
    shown = {k: v for k, v in result.items() if k not in ("config", "kernels")}
    print(json.dumps(shown, indent=1), file=sys.stderr)
    for row in result["kernels"]:
        print(f"{row['ms']:8.2f} ms {row['calls']:6d} × {row['name']}", file=sys.stderr)
    return 0


def matrix_rate(device: str) -> float:
    """Floating-point operations a second of a large product in the training's dtype."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def profile(step: Any, cuda: bool) -> list[dict[str, Any]]:
    """One step's forty dearest kernels (operators on a CPU)."""
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities) as record:
        step(9)
        if cuda:
            torch.cuda.synchronize()
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = sorted(record.key_averages(), key=lambda e: -getattr(e, field))[:40]
    return [{"name": e.key[:110], "ms": getattr(e, field) / 1000, "calls": e.count} for e in rows]


if __name__ == "__main__":
    sys.exit(main())
