"""Microseconds of the adapters' decode kernels, tiling by tiling, on a GPU: what `lora_kernels.TILINGS` was chosen by.

    python bench/adapter_kernels.py --model MODEL --out results/bench-generate-h100/adapter_kernels.json

164 different adapters × 5 rows, bf16. For each kind of product, each tiling is first held against plain torch, then
recorded once over all layers as a CUDA graph (1.4 GB of adapters: the cache holds none of it) and replayed; the best of
three readings counts. Beside them: plain torch's grouped products, and the silu that gate·up's kernel replaces.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rune.adapters.peft import Adapter, Pair, target_linears
from rune.engines import torch as torch_engine
from rune.engines.local import lora_kernels
from rune.engines.local.adapter_pool import AdapterPool
from rune.engines.local.lora_kernels import Ragged, Tiling
from rune.engines.local.network import Network
from rune.types import ModelRef

CANDIDATES = {
    "qkv": [(True, 256, 256, 4), (True, 512, 256, 4), (True, 1024, 256, 4), (True, 256, 128, 4), (False, 512, 256, 4)],
    "o": [(True, 256, 256, 4), (True, 512, 256, 4), (True, 1024, 256, 4), (True, 256, 128, 4), (False, 512, 256, 4)],
    "gate_up": [(False, 512, 256, 4), (False, 512, 128, 4), (False, 512, 512, 8), (False, 1024, 256, 4)],
    "down": [(False, 512, 256, 4), (False, 512, 128, 4), (False, 1024, 256, 4), (True, 512, 512, 8)],
}


@torch.inference_mode()
def measure(network: Network, *, adapters: int = 164, rows: int = 5, rank: int = 8) -> dict[str, Any]:
    """Microseconds a layer for every tiling, and the best tiling of each kind."""
    pool = AdapterPool(network)
    pool.reserve(adapters)
    rng = torch.Generator(device=network.device).manual_seed(0)
    pairs = {}
    for name, linear in target_linears(network.model).items():
        a_IR = torch.randn(linear.in_features, rank, generator=rng, device=network.device) * linear.in_features**-0.5
        b_RO = torch.randn(rank, linear.out_features, generator=rng, device=network.device) * 0.3
        pairs[name] = Pair(a_IR, b_RO)
    names = [str(index) for index in range(adapters)]
    for index, name in enumerate(names):  # different numbers, so that a wrong slot shows
        pool.put(name, Adapter(pairs=pairs, scale=1.0 + index / adapters))
    pool.activate(names)
    table_N3 = torch.tensor([[g * rows, rows, g] for g in range(adapters)], dtype=torch.int32, device=network.device)
    found: dict[str, Any] = {"adapters": adapters, "rows": rows, "rank": rank, "microseconds": {}, "best": {}}
    total = adapters * rows
    for kind, spec in pool.kinds.items():
        x_MI = torch.randn(total, spec.inputs, generator=rng, device=network.device).to(network.dtype)
        out_MO = torch.randn(total, sum(spec.parts), generator=rng, device=network.device).to(network.dtype)
        grouped, untouched_MO = pool.grouped(adapters, rows), out_MO.clone()

        def plain(kind: str = kind, x_MI: Any = x_MI, out_MO: Any = out_MO, lora: Any = grouped) -> Any:
            for layer in range(pool.num_layers):
                lora.add(layer, kind, x_MI, out_MO)
            return network.silu_mul(out_MO) if kind == "gate_up" else out_MO

        expected = out_MO.clone()
        grouped.add(0, kind, x_MI, expected)
        expected = network.silu_mul(expected) if kind == "gate_up" else expected
        times: dict[str, float | None] = {"plain torch": per_layer(plain, pool.num_layers)}
        if kind == "gate_up":
            times["silu alone"] = per_layer(lambda y=out_MO: [network.silu_mul(y) for _ in range(24)], 24)  # type: ignore[misc]
        for candidate in CANDIDATES[kind]:
            ragged = Ragged(pool, table_N3, {**lora_kernels.TILINGS, kind: Tiling(*candidate)})
            label = json.dumps(candidate)
            try:
                got = apply(ragged, 0, kind, x_MI, untouched_MO.clone())
                worst = ((got.float() - expected.float()).abs() / (1 + expected.float().abs())).max().item()
                if not worst <= 0.06:
                    raise RuntimeError(f"differs from plain torch by {worst:.2g}")

                def work(ragged: Ragged = ragged, kind: str = kind, x_MI: Any = x_MI, out_MO: Any = out_MO) -> None:
                    for layer in range(pool.num_layers):
                        apply(ragged, layer, kind, x_MI, out_MO)

                times[label] = per_layer(work, pool.num_layers)
            except Exception as error:  # a tiling that does not fit this GPU is out of the race
                times[label] = None
                print(f"{kind} {label}: {str(error)[:200]}", file=sys.stderr)
        found["microseconds"][kind] = times
        ranked = sorted((t, label) for label, t in times.items() if t is not None and label.startswith("["))
        found["best"][kind] = json.loads(ranked[0][1])
    return found


def apply(ragged: Ragged, layer: int, kind: str, x_MI: Any, out_MO: Any) -> Any:
    if kind == "gate_up":
        return ragged.gate(layer, x_MI, out_MO)
    ragged.add(layer, kind, x_MI, out_MO)
    return out_MO


def per_layer(work: Callable[[], Any], layers: int, *, replays: int = 10) -> float:
    """Microseconds a layer of `work` over all layers, as a replayed CUDA graph; the best of three."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()  # compiles, and warms libraries up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    best = float("inf")
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        for _ in range(replays):
            graph.replay()
        end.record()
        end.synchronize()
        best = min(best, 1000 * start.elapsed_time(end) / replays / layers)
    return round(best, 2)


def tilings(found: dict[str, Any]) -> dict[str, Tiling]:
    return {kind: Tiling(*values) for kind, values in found["best"].items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model = ModelRef(name=args.model.name, path=str(args.model), digest="", source="local")
    engine = torch_engine.build(torch_engine.Config(), model=model, device="cuda", dtype="bfloat16")
    found = measure(engine.network)
    found["gpu"] = torch.cuda.get_device_name(0)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
