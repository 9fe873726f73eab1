"""How many passes read the prompts of a served load, counted on a CPU with a tiny model.

.venv/bin/python studies/generation-speed/passes.py    writes results/bench-generate-cpu/passes.json

`bench/generate.py`'s `session_1` and `session_100` on 48 tasks, 128 requests under way, with the limits that the engine
has on a GPU: without a prefix cache, with one where each number of known tokens has a pass of its own, and as it is.
Times are not told: a pass costs next to nothing here, and that is why a CPU does not show what it costs on a GPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT)]

import torch
from tests.conftest import make_tiny_model

import generate
from rune.engines.local import torch_engine
from rune.runs import store

OUT = ROOT / "results" / "bench-generate-cpu" / "passes.json"
WAYS = {
    "no cache": (0, 0),
    "a pass for each number of known tokens": (1 << 28, 0),
    "shared": (1 << 28, torch_engine.PASS_COST),
}
COUNTS = ("repacks", "passes", "prompt_tokens")


def main() -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "model").mkdir()
        model = make_tiny_model(Path(scratch) / "model", seed=0)
        found = {
            f"{adapters} registered": {way: counted(model.path, scratch, adapters, *how) for way, how in WAYS.items()}
            for adapters in (1, 100)
        }
    store.write_json(OUT, found)
    print(json.dumps(found, indent=2))
    return 0


def counted(model: str, scratch: str, adapters: int, prefix_bytes: int, pass_cost: int) -> dict[str, Any]:
    sys.argv = [
        "generate.py", "--model", model, "--out", scratch, "--mode", "gpu", "--num-tasks", "48", "--served-tokens", "8",
        "--in-flight", "128", "--prefix-bytes", str(prefix_bytes),
    ]  # fmt: skip
    bench = generate.Bench(generate.arguments())
    engine = bench.engine()
    engine._limits = replace(engine._limits, max_rows=256, burst=4, prefill_tokens=16384, pass_cost=pass_cost)
    engine.decoder.limits = engine._limits
    result = bench.session(adapters)
    bench.drop_engine()
    return {
        **{name: result[name] for name in COUNTS},
        "passes a repack": round(result["passes"] / result["repacks"], 2),
    }


if __name__ == "__main__":
    sys.exit(main())
