"""What is lost if an adapter of outer products is cut to a lower rank: the 0.5B, four passes of 64 tokens, on a CPU.

    python bench/outer_products_rank.py [--tasks 6] [--out results/bench-outer-products-rank-cpu.json]

The generator is untrained: its step sizes are those it begins with, measured on the first task, so what is compared is
the ranks, not what an adapter is worth. An adapter is made from the siblings of a held-out private convention; `error`
is ‖ΔW − ΔW'‖ / ‖ΔW‖ over all modules, `solution` and `siblings` the mean log-probability, nats a token, of the task's
own solution and of what was read. Bytes are those of the PEFT folder in float32, seconds those of the cut.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "studies" / "reader-layers"))

from reader_layers import cases

from rune import console
from rune.adapters.factors import Adapters, Factors, concatenate, lowered, squared_norm
from rune.hypernet import base as bases
from rune.hypernet.base import Base, Text
from rune.hypernet.outer_products import MODULES, OuterProducts, observe, write
from rune.models import resolve
from rune.runs import store

MODEL = "qwen2.5-coder-0.5b-instruct"
PASSES, TOKENS = 4, 64
RANKS = (128, 64, 32, 16, 8)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("results/bench-outer-products-rank-cpu.json"))
    args = parser.parse_args()
    some = list({case.problem.domain: case for case in reversed(cases())}.values())[: args.tasks]
    base = bases.load(resolve.resolve(MODEL), device="cpu", dtype="float32")
    model: OuterProducts | None = None
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with torch.no_grad():
        for case in some:
            read = [base.encode(t.prompt, t.solution, answer=t.answer) for t in case.siblings]
            own = [base.encode(case.problem.prompt, case.own.solution, answer=case.own.answer)]
            if model is None:
                model = OuterProducts(base.layout(MODULES), passes=PASSES)
                model.calibrate(base, observe(base, [read], tokens=TOKENS))
            whole = write(base, model, [read], tokens=TOKENS)
            look(rows["bare"], base, None, own, read)
            look(rows[str(PASSES * TOKENS)], base, whole, own, read)
            for rank in RANKS:
                began = time.perf_counter()
                cut = lowered(whole, rank)
                rows[str(rank)]["seconds"].append(time.perf_counter() - began)
                off = concatenate(whole, {m: Factors(f.down_YNRI, -f.up_YNRO) for m, f in cut.items()})
                rows[str(rank)]["error"].append(float((squared_norm(off) / squared_norm(whole)).clamp_min(0).sqrt()))
                look(rows[str(rank)], base, cut, own, read)
            console.note({r: round(v["solution"][-1], 3) for r, v in rows.items()}.__str__())
    numbers = sum(s.inputs + s.outputs for s in base.layout(MODULES).sizes.values()) * base.layout(MODULES).layers
    found: dict[str, Any] = {
        rank: {name: statistics.fmean(values) for name, values in row.items()} for rank, row in rows.items()
    }
    for rank in found:
        if rank.isdigit():
            found[rank]["megabytes"] = 4 * numbers * int(rank) / 1e6
    store.write_json(args.out, {"model": MODEL, "tasks": len(some), "torch": torch.__version__, "ranks": found})
    console.out(args.out.read_text(encoding="utf-8"))
    return 0


def look(row: dict[str, list[float]], base: Base, worn: Adapters | None, own: list[Text], read: list[Text]) -> None:
    for name, texts in (("solution", own), ("siblings", read)):
        one_by_one = [float(base.log_prob(base.rows([text]), worn).mean()) for text in texts]
        row[name].append(statistics.fmean(one_by_one))


if __name__ == "__main__":
    sys.exit(main())
