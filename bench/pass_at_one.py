"""Do two samplers solve equally many tasks? Scores both files and writes the paired difference with its interval.

    python bench/pass_at_one.py results/bench-generate-h100/samples-ours_none.jsonl.gz \\
        results/bench-generate-h100/samples-generate_all.jsonl.gz --out results/bench-generate-h100/pass-at-one.json

Both files hold the same number of draws of the same HumanEval tasks. The samplers use different random numbers, so
draws are compared task by task: the interval resamples tasks, as the gate's does. `noise_points` is what the same
comparison gives between two halves of one file's draws, so that "equal within noise" has something to be held against.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from rune.analysis import stats
from rune.benchmarks.scorers import execution
from rune.sandbox import fork
from rune.scoring import samples_file
from rune.types import Outcome

RESAMPLES = 10_000


def read(path: Path) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def passes(samples: list[dict[str, Any]], workers: int) -> dict[str, list[bool]]:
    """Task → one verdict per draw, in the order of draws."""
    tasks = samples_file.problems("humaneval", "").problems
    ordered = sorted(samples, key=lambda sample: (sample["task_id"], sample["draw"]))
    jobs = [execution.program(str(i), s["program"], tasks[s["task_id"]]) for i, s in enumerate(ordered)]
    with fork.build(fork.Config(workers=workers)) as sandbox:
        found = {int(e.key): e.outcome is Outcome.PASSED for e in sandbox.judge(jobs)}
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for index, sample in enumerate(ordered):
        verdicts[sample["task_id"]].append(found[index])
    return verdicts


def difference(first: dict[str, list[bool]], second: dict[str, list[bool]]) -> dict[str, float]:
    """pass@1 of `first` minus that of `second`, in points, with its 95 % interval over tasks."""
    names = sorted(first)
    values = [100 * (sum(first[name]) / len(first[name]) - sum(second[name]) / len(second[name])) for name in names]
    weights = stats.task_weights(len(names), RESAMPLES, 0)
    interval = stats.task_interval(values, weights, level=0.95, low=-100.0, high=100.0)
    return {
        "points": round(sum(values) / len(values), 3), "low": round(interval.low, 3), "high": round(interval.high, 3)
    }  # fmt: skip


def half(verdicts: dict[str, list[bool]], start: int) -> dict[str, list[bool]]:
    return {name: found[start::2] for name, found in verdicts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    samples = [read(path) for path in (args.first, args.second)]
    drawn = [Counter(sample["task_id"] for sample in some) for some in samples]
    if drawn[0] != drawn[1]:
        print("the files hold different tasks or numbers of draws; give two of one run", file=sys.stderr)
        return 2
    verdicts = [passes(some, args.workers) for some in samples]
    result = {
        "files": [args.first.name, args.second.name],
        "tasks": len(drawn[0]),
        "draws": len(samples[0]),
        "pass_at_1": [round(100 * sum(map(sum, found.values())) / len(samples[0]), 3) for found in verdicts],
        "difference": difference(*verdicts),
        "noise_points": [difference(half(found, 0), half(found, 1)) for found in verdicts],
        "mean_tokens": [round(sum(s["num_tokens"] for s in some) / len(some), 1) for some in samples],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    result["equal_within_noise"] = result["difference"]["low"] <= 0 <= result["difference"]["high"]  # type: ignore[index]
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
