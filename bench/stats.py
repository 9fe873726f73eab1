"""False passes, power and coverage of the statistics, by simulation; writes its tables into docs/statistics.md.

    python bench/stats.py [--runs 4000] [--check]

Coverage: task rates p ~ Beta(0.5, intra-class correlation), draws ~ Binomial(k, p) in both arms, and an effect that
moves all log-odds alike or helps some tasks and hurts others. A method's interval covers if the true population
effect lies in it. `--check` writes nothing and
exits 1 if the task bootstrap covers less than 93 % or more than 97 % anywhere.
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

from rune.analysis import power, stats
from rune.analysis.power import Baseline, Design

ROOT = Path(__file__).resolve().parents[1]
DOC = ROOT / "docs" / "statistics.md"
OUT = ROOT / "results" / "bench-stats.json"
DESIGNS = ((25, 5), (30, 5), (30, 20), (64, 10), (164, 5), (164, 20))
EFFECT = 5.0


def coverage(num_tasks: int, k: int, icc: float, effect_sd: float, *, runs: int, seed: int) -> dict[str, float]:
    """Share of runs in which each interval holds the true effect (95 % wanted)."""
    base = Baseline(0.5, icc)
    rng = np.random.default_rng(seed)
    shift = power._shift(base, EFFECT / 100, effect_sd)
    weights = stats.task_weights(num_tasks, 2000, seed)
    hits = {"task bootstrap": 0, "percentile bootstrap": 0, "all draws independent": 0}
    widths = []
    for _ in range(runs):
        logits = power._task_logits(base, (1, num_tasks), rng)[0]
        treated = rng.binomial(k, power._expit(logits + effect_sd * rng.standard_normal(num_tasks) + shift))
        bare = rng.binomial(k, power._expit(logits))
        values = 100 * (treated - bare) / k
        ours = stats.task_interval(values, weights, level=0.95, low=-100.0, high=100.0)
        plain = np.quantile(weights @ values, [0.025, 0.975])
        draws = num_tasks * k
        rates = treated.sum() / draws, bare.sum() / draws
        error = 196 * math.sqrt(sum(p * (1 - p) / draws for p in rates))
        hits["task bootstrap"] += ours.low <= EFFECT <= ours.high
        hits["percentile bootstrap"] += bool(plain[0] <= EFFECT <= plain[1])
        hits["all draws independent"] += abs(values.mean() - EFFECT) <= error
        widths.append(ours.high - ours.low)
    return {**{name: count / runs for name, count in hits.items()}, "width": float(np.mean(widths))}


def single_arm(num_tasks: int, k: int, icc: float, *, runs: int, seed: int) -> tuple[float, float]:
    """Coverage of one arm's pass@1: by tasks, and as if all draws were independent."""
    rng = np.random.default_rng(seed)
    weights = stats.task_weights(num_tasks, 2000, seed)
    ours = naive = 0
    for _ in range(runs):
        total = 1 / icc - 1
        passes = rng.binomial(k, rng.beta(0.5 * total, 0.5 * total, size=num_tasks))
        interval = stats.task_interval(100 * passes / k, weights, level=0.95, low=0.0, high=100.0)
        rate = passes.mean() / k
        ours += interval.low <= 50.0 <= interval.high
        naive += abs(rate - 0.5) <= 1.96 * math.sqrt(rate * (1 - rate) / (num_tasks * k))
    return ours / runs, naive / runs


def measure(runs: int) -> dict[str, Any]:
    designs, covered, arms = [], [], []
    for num_tasks, k in DESIGNS:
        for icc in (0.5, 0.2):
            for effect_sd in (0.0, 1.0):
                found = power.simulate(
                    Baseline(0.5, icc),
                    Design(num_tasks, k),
                    threshold=EFFECT,
                    alpha=0.05,
                    target_power=0.8,
                    effect_sd=effect_sd,
                    simulations=runs,
                    seed=0,
                )
                designs.append({"tasks": num_tasks, "k": k, "icc": icc, "mixed": effect_sd, "power": found})
        for effect_sd in (0.0, 1.0):
            rates = coverage(num_tasks, k, 0.5, effect_sd, runs=runs, seed=1)
            covered.append({"tasks": num_tasks, "k": k, "mixed": effect_sd, **rates})
        ours, naive = single_arm(num_tasks, k, 0.5, runs=runs, seed=2)
        arms.append({"tasks": num_tasks, "k": k, "task bootstrap": ours, "all draws independent": naive})
        print(f"{num_tasks} × {k} done", file=sys.stderr, flush=True)
    return {"runs": runs, "effect": EFFECT, "designs": designs, "coverage": covered, "single_arm": arms}


def tables(found: dict[str, Any]) -> str:
    """The Markdown between the markers."""
    by = {(d["tasks"], d["k"], d["icc"], d["mixed"]): d["power"] for d in found["designs"]}

    def pair(n: int, k: int, effect_sd: float, value: Any) -> str:
        return " / ".join(value(by[n, k, icc, effect_sd]) for icc in (0.5, 0.2))

    def percent(x: float) -> str:
        return f"{100 * x:.1f}"

    def reach(p: power.Power) -> str:
        return f"{p.detectable:.1f}" if math.isfinite(p.detectable) else "> 25"

    lines = [
        f"{found['runs']:,} simulated experiments per cell; base 50 %; two figures: intra-class correlation 0.5 / 0.2.",
        "",
        "| tasks × k | passes by luck, % | the same, mixed effects | passes at +5, % | significant at +5, % "
        "| significant at +10, % | detectable, points | the same, mixed effects |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {n} × {k} | {pair(n, k, 0.0, lambda p: percent(p.false_pass))} "
        f"| {pair(n, k, 1.0, lambda p: percent(p.false_pass))} "
        f"| {pair(n, k, 0.0, lambda p: percent(p.at_threshold.passes))} "
        f"| {pair(n, k, 0.0, lambda p: percent(p.at_threshold.significant))} "
        f"| {pair(n, k, 0.0, lambda p: percent(p.at_twice.significant))} "
        f"| {pair(n, k, 0.0, reach)} | {pair(n, k, 1.0, reach)} |"
        for n, k in DESIGNS
    ]
    lines += [
        "",
        "Coverage of 95 % intervals for a true effect of 5 points (intra-class correlation 0.5), in percent of runs:",
        "",
        "| tasks × k | effects | **task bootstrap** (ours) | plain percentile bootstrap | draws as if independent |",
        "|---|---|---:|---:|---:|",
    ]
    lines += [
        f"| {c['tasks']} × {c['k']} | {'mixed' if c['mixed'] else 'alike'} | **{percent(c['task bootstrap'])}** "
        f"| {percent(c['percentile bootstrap'])} | {percent(c['all draws independent'])} |"
        for c in found["coverage"]
    ]
    lines += [
        "",
        "Coverage of one arm's pass@1 (50 %):",
        "",
        "| tasks × k | **task bootstrap** (ours) | draws as if independent |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {a['tasks']} × {a['k']} | **{percent(a['task bootstrap'])}** | {percent(a['all draws independent'])} |"
        for a in found["single_arm"]
    ]
    return "\n".join(lines)


def write(found: dict[str, Any]) -> None:
    begin, end = "<!-- bench-stats:begin -->", "<!-- bench-stats:end -->"
    text = DOC.read_text(encoding="utf-8")
    before, rest = text.split(begin, 1)
    _, after = rest.split(end, 1)
    DOC.write_text(f"{before}{begin}\n{tables(found)}\n{end}{after}")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    record = {**found, "designs": [{**d, "power": d["power"]._asdict()} for d in found["designs"]]}
    OUT.write_text(json.dumps(record, indent=1, default=str) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate the statistics; write docs/statistics.md.")
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--check", action="store_true", help="no record; exit 1 if an interval does not cover 93–97 %%")
    args = parser.parse_args()
    started = time.monotonic()
    found = measure(args.runs)
    if not args.check:
        write(found)
    rates = [c["task bootstrap"] for c in (*found["coverage"], *found["single_arm"])]
    print(f"task bootstrap covers {100 * min(rates):.1f}–{100 * max(rates):.1f} %; {time.monotonic() - started:.0f} s")
    return 1 if args.check and not 0.93 <= min(rates) <= max(rates) <= 0.97 else 0


if __name__ == "__main__":
    sys.exit(main())
