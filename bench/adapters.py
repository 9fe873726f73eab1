"""How long it takes to make an adapter resident: from tensors, and from a PEFT folder.

    python bench/adapters.py --model MODEL --count 16 --out results/bench-adapters-cpu.json --label after

The JSON keeps one entry per label, so that a before and an after stand side by side. Milliseconds are the median
over the adapters after the first (which lays the bank out). CPU time where the device is the CPU, wall time else.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.adapters.peft import Adapter, Pair, target_linears
from rune.engines import torch as torch_engine
from rune.engines.local import torch_engine as _torch
from rune.runs import store
from rune.types import AdapterRef, ModelRef

RANK = 8


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--label", required=True, help="name of this measurement, e.g. before or after")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    digest = store.sha256_file(args.model / "model.safetensors")
    model = ModelRef(name=args.model.name, path=str(args.model), digest=digest, source="local")
    folders = Folders()
    engine = torch_engine.build(
        torch_engine.Config(), model=model, device=args.device, dtype=args.dtype, adapters=folders
    )
    made = [random_adapter(engine, seed) for seed in range(args.count)]

    def timed(work: Callable[[], object]) -> float:
        clock = time.process_time if args.device == "cpu" else time.perf_counter
        started = clock()
        work()
        if args.device == "cuda":
            torch.cuda.synchronize()
        return 1000 * (clock() - started)

    with tempfile.TemporaryDirectory() as scratch:
        places = [Path(scratch) / str(i) for i in range(len(made))]
        refs = [peft.write_peft(place, adapter) for place, adapter in zip(places, made, strict=True)]
        for place, ref in zip(places, refs, strict=True):
            folders.know(ref.adapter_id, place)
        tensors = [timed(lambda i=i, a=a: engine.put_adapter(f"t{i}", a)) for i, a in enumerate(made)]  # type: ignore[misc]
        read = [timed(lambda place=place: peft.read_peft(place)) for place in places]  # type: ignore[misc]
        both = [timed(lambda ref=ref: resident(engine, ref)) for ref in refs]  # type: ignore[misc]
    result = {
        "model": model.name,
        "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(0),
        "dtype": args.dtype,
        "rank": RANK,
        "adapters": args.count,
        "threads": args.threads,
        "megabytes_an_adapter": round(engine.pool.adapter_bytes / 1e6, 1),
        "put_tensors_ms": round(statistics.median(tensors[1:]), 2),
        "read_folder_ms": round(statistics.median(read[1:]), 2),
        "read_and_put_folder_ms": round(statistics.median(both[1:]), 2),
        "clock": "CPU time" if args.device == "cpu" else "wall time",
    }
    entries = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    entries[args.label] = result
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(entries, indent=1) + "\n")
    print(json.dumps({args.label: result}))
    return 0


def random_adapter(engine: _torch.TorchEngine, seed: int) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    pairs = {
        name: Pair(
            torch.randn(module.in_features, RANK, generator=rng),
            torch.randn(RANK, module.out_features, generator=rng) * 1e-3,
        )
        for name, module in target_linears(engine.network.model).items()
    }
    return Adapter(pairs=pairs, scale=2.0, base_model=engine.model.digest)


def resident(engine: _torch.TorchEngine, ref: AdapterRef) -> None:
    """What a request under an adapter in a folder does before anything is drawn."""
    engine._ensure([ref])


if __name__ == "__main__":
    sys.exit(main())
