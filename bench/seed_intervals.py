"""Does an interval over tasks and trainings hold the true effect? Simulated; writes results/bench-seed-intervals.json.

    python bench/seed_intervals.py [--runs 10000] [--check]

Task rates p ~ Beta(0.5, intra-class correlation 0.5); the treatment moves their log-odds by a constant (5 points on
average), by N(0, 1) a task (it helps some and hurts others) and by N(0, 0.5²) a task and training; each training has
an effect of its own, N(0, seed_sd²) points; 5 draws a task, training and arm. `alike`: without the two movements by
task. `domains`: tasks in domains of 1 to 9 whose movement is shared. Coverage and mean width of 95 % intervals:
`stats.mean_interval`, and `pooled`: the task bootstrap's standard error with trainings put together as more draws.
`--check` writes nothing and exits 1 if ours covers less than 93 % or more than 97 %.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit, stdtrit

from rune.analysis import stats

OUT = Path(__file__).resolve().parents[1] / "results" / "bench-seed-intervals.json"
EFFECT, DRAWS = 5.0, 5
TASKS, SEEDS, SPREADS = (25, 50, 164), (3, 5, 10), (0.0, 1.0, 3.0)
_NO_WEIGHTS = np.ones((1, 1))  # only the interval of one training resamples


def tables(kind: str, num_tasks: int, seeds: int, seed_sd: float, *, runs: int, seed: int) -> tuple[Any, list[str]]:
    """values_RTS in points whose true mean is EFFECT, and each task's domain ([] if tasks are drawn)."""
    rng = np.random.default_rng(seed)
    movement = 0.0 if kind == "alike" else 1.0
    sizes = [1 + d % 9 for d in range(num_tasks)] if kind == "domains" else [1] * num_tasks  # num_tasks domains
    unit_T = np.repeat(np.arange(num_tasks), sizes)
    shape = (runs, unit_T.size, seeds)
    bare_RT1 = _rates(rng, (runs, unit_T.size, 1))
    moved_RT1 = movement * rng.standard_normal((runs, num_tasks, 1))[:, unit_T]
    moved_RTS = moved_RT1 + 0.5 * movement * rng.standard_normal((runs, num_tasks, seeds))[:, unit_T]
    many = _rates(rng, (400_000,))
    q = logit(many) + movement * math.sqrt(1.25) * rng.standard_normal(many.size)
    shifts = np.linspace(-2.0, 3.0, 101)
    means = 100 * np.array(
        [(expit(q + s) - many).mean() for s in shifts]
    )  # of the same tasks bare: their chance cancels
    shift_R1S = np.interp(EFFECT + seed_sd * rng.standard_normal((runs, 1, seeds)), means, shifts)
    treated = rng.binomial(DRAWS, expit(logit(bare_RT1) + moved_RTS + shift_R1S))
    bare = rng.binomial(DRAWS, np.broadcast_to(bare_RT1, shape))
    return 100 * (treated - bare) / DRAWS, [f"d{u}" for u in unit_T] if kind == "domains" else []


def _rates(rng: Any, size: tuple[int, ...]) -> Any:
    return np.clip(rng.beta(0.5, 0.5, size), 1e-9, 1 - 1e-9)


def coverage(kind: str, num_tasks: int, seeds: int, seed_sd: float, *, runs: int, seed: int) -> dict[str, Any]:
    """Share of runs in which each interval holds the true effect, and its mean width in points."""
    hits, pooled, widths, narrow = 0, 0, [], []
    values_RTS, domains = tables(kind, num_tasks, seeds, seed_sd, runs=runs, seed=seed)
    for values_TS in values_RTS:
        ours = stats.mean_interval(values_TS, domains, _NO_WEIGHTS, level=0.95, low=-100.0, high=100.0)
        hits += ours.low <= EFFECT <= ours.high
        widths.append(ours.high - ours.low)
        by_task = values_TS.mean(axis=1)
        half = float(stdtrit(by_task.size - 1, 0.975)) * stats.cluster_standard_error(by_task)
        pooled += bool(abs(by_task.mean() - EFFECT) <= half)
        narrow.append(2 * half)
    cell = {"kind": kind, "units": num_tasks, "seeds": seeds, "seed_sd": seed_sd}
    found = {"coverage": hits / runs, "width": round(float(np.mean(widths)), 2)}
    return {**cell, **found, "pooled": pooled / runs, "pooled_width": round(float(np.mean(narrow)), 2)}


def measure(runs: int) -> list[dict[str, Any]]:
    cells = [("mixed", t, s, sd) for t in TASKS for s in SEEDS for sd in SPREADS]
    cells += [("alike", t, s, sd) for t in TASKS for s in SEEDS for sd in SPREADS]
    cells += [("domains", 25, s, sd) for s in SEEDS for sd in SPREADS]
    return [coverage(*cell, runs=runs, seed=number) for number, cell in enumerate(cells)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate intervals over tasks and trainings.")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--check", action="store_true", help="exit 1 if an interval covers too little or too much")
    args = parser.parse_args()
    started = time.monotonic()
    found = measure(args.runs)
    if not args.check:
        record = {"runs": args.runs, "effect": EFFECT, "draws": DRAWS, "cells": found}
        OUT.write_text(json.dumps(record, indent=1) + "\n")
    wrong = 0
    for c in found:
        wrong += not 0.93 <= c["coverage"] <= 0.97
        print(*c.values())
    print(f"{len(found)} cells, {wrong} outside their band; {time.monotonic() - started:.0f} s")
    return 1 if args.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
