"""Time of `rune gate` and `rune report`, as processes and without torch: a real run, and the largest one intended.

    python bench/reporting.py [--repeat 3] [--run results/phase1-0.5b] [--check]

The real run is the committed one; the large one has 164 tasks × 8 arms × 20 draws (26,240 verdicts), real HumanEval
tasks with invented passes, since only its size matters here. Each verb runs on a copy, `--repeat` times; the best
wall time and its CPU time are written to results/bench-report.json. `--check` writes nothing
and exits 1 if a limit is missed or a verb loaded torch. Not covered: the browser that opens the page.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OUT = ROOT / "results" / "bench-report.json"
LIMITS = {"real": {"gate": 3.0, "report": 10.0}, "large": {"gate": 30.0, "report": 30.0}}
ARMS = ("vanilla", "rag", "lora", "hypernet", "static", "wrong_trajectory", "empty_trajectory", "teacher")
FAILED = 10  # exit code of a gate that failed, which is no error
CODE = (
    "import sys; from rune.cli.main import main; code = main(sys.argv[1:]);"
    "print('torch' in sys.modules, file=sys.stderr); sys.exit(code)"
)


def timed(verb: str, folder: Path) -> dict[str, Any]:
    """One process from start to end: wall and CPU seconds, peak memory, and whether torch was loaded."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CODE, verb, str(folder)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, FAILED):
        raise SystemExit(done.stderr)
    return {
        "seconds": round(wall, 2),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "torch_loaded": done.stderr.strip().splitlines()[-1] == "True",
    }


def large(root: Path) -> Path:
    """All of HumanEval held out, against a corpus of 100 trajectories (copies: their content is not the point)."""
    from tests.report import runs

    from rune.types import Problem, Split

    def edit(tasks: list[Problem]) -> list[Problem]:
        held_out = [replace(task, split=Split.HELD_OUT) for task in tasks]
        return held_out + [replace(task, task_id=f"Train/{task.task_id}", split=Split.TRAIN) for task in tasks[:100]]

    return runs.build(root, name="large", held_out=164, n=20, arms=ARMS, edit_problems=edit).path


def measure(folder: Path, repeat: int) -> dict[str, Any]:
    """Both verbs, the best of `repeat` each."""
    found: dict[str, Any] = {verb: [timed(verb, folder) for _ in range(repeat)] for verb in ("gate", "report")}
    best = {verb: min(runs, key=lambda r: float(r["seconds"])) for verb, runs in found.items()}
    return {
        "verdicts": sum(1 for _ in (folder / "verdicts.jsonl").open()),
        **best,
        "report_bytes": (folder / "report.html").stat().st_size,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Time gate and report; write results/bench-report.json.")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--run", type=Path, default=ROOT / "results" / "phase1-0.5b")
    parser.add_argument("--check", action="store_true", help="no record; exit 1 if a limit is missed or torch loaded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        real = Path(scratch) / args.run.name
        shutil.copytree(args.run, real)
        found = {"real": measure(real, args.repeat), "large": measure(large(Path(scratch)), args.repeat)}
    load = os.getloadavg()[0]
    record = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load": round(load, 1),
        "repeat": args.repeat,
        "limits_seconds": LIMITS,
        **found,
    }
    if not args.check:
        OUT.write_text(json.dumps(record, indent=2) + "\n")
    missed = []
    for size, limits in LIMITS.items():
        for verb, limit in limits.items():
            one = found[size][verb]
            print(
                f"{size:5} {verb:6} {one['seconds']:6.2f} s wall, {one['cpu_seconds']:6.2f} s CPU (limit {limit:g} s)"
            )
            if one["seconds"] > limit or one["torch_loaded"]:
                missed.append(f"{size} {verb}")
    together = found["large"]["gate"]["seconds"] + found["large"]["report"]["seconds"]
    print(f"large, both: {together:.2f} s (limit 30 s); load {load:.1f}")
    if together > 30:
        missed.append("large, both")
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
