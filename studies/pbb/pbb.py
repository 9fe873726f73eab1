"""Programming by Backprop: the trajectories that its runs import, and what came out of them.

    python studies/pbb/pbb.py corpus --out runs/pbb        train.jsonl, given.jsonl, for configs/pbb-*.toml
    python studies/pbb/pbb.py tell RUN … --out results/pbb  result.json, result.md: by kind, size and steps as well

Question, design, predictions and rule: README.md beside this file. Intervals are paired and over functions: each draw
of the bootstrap takes whole functions (or compositions), with all their tasks, seeds and draws.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rune import config
from rune.benchmarks import pbb
from rune.runs import store
from rune.runs.store import RunDir
from rune.study.folders import reopen
from rune.types import Outcome, Split, Verdict

ARMS = ("vanilla", "teacher", "tuned", "tuned_wrong", "tuned_mean")
CONTRASTS = (
    ("tuned", "tuned_wrong"), ("tuned", "tuned_mean"), ("tuned", "vanilla"), ("tuned_wrong", "vanilla"),
    ("tuned_mean", "vanilla"), ("teacher", "vanilla"), ("tuned", "teacher"),
)  # fmt: skip
RESAMPLES, LEVEL = 10_000, 0.95


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    one = verbs.add_parser("corpus")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(do=corpus)
    two = verbs.add_parser("tell")
    two.add_argument("runs", type=Path, nargs="+")
    two.add_argument("--out", type=Path, required=True)
    two.set_defaults(do=tell)
    args = parser.parse_args()
    args.do(args)
    return 0


def corpus(args: argparse.Namespace) -> None:
    """What training functions show (for `collect.imports`), and what every task is given (`collect.shown`)."""
    from rune.study.config import load

    settings = load(Path(__file__).parents[2] / "configs" / "pbb-0.5b.toml").settings
    part = config.build(pbb.Config, settings.benchmark.settings, where="benchmark.settings")
    train = {f.name for f in pbb.functions(part) if f.split is Split.TRAIN}
    args.out.mkdir(parents=True, exist_ok=True)
    given = pbb.given(part)
    store.write_jsonl(args.out / "given.jsonl", given)
    store.write_jsonl(args.out / "train.jsonl", [t for t in given if t.domain in train])
    print(f"{args.out}: {len(given)} trajectories given, of {len(train)} functions that train")


# --------------------------------------------------------------------------- what came out


class Scores(NamedTuple):
    """Passes of one arm over the tasks of a run: [tasks], as shares of all draws of all seeds."""

    share_T: np.ndarray
    draws: int


def tell(args: argparse.Namespace) -> None:
    found = {run.name: one(run) for run in map(Path.resolve, args.runs)}
    args.out.mkdir(parents=True, exist_ok=True)
    store.write_json(args.out / "result.json", {"level": LEVEL, "resamples": RESAMPLES, "runs": found})
    store.write_atomic(args.out / "result.md", page(found))
    print(args.out / "result.md")


def one(run: Path) -> dict[str, Any]:
    """All figures of one run."""
    experiment = reopen(run)
    part = config.build(pbb.Config, experiment.settings.benchmark.settings, where="benchmark.settings")
    asked = {t.problem.task_id: t for t in pbb.tasks(part) if t.problem.split is Split.HELD_OUT}
    passed: dict[str, dict[str, list[int]]] = {arm: defaultdict(list) for arm in ARMS}
    seconds: dict[str, float] = defaultdict(float)
    for place in experiment.places():
        for verdict in store.read_jsonl(place.folder / "verdicts.jsonl", Verdict):
            passed[verdict.condition][verdict.task_id].append(verdict.outcome is Outcome.PASSED)
        for stage, told in place.folder.manifest().get("stages", {}).items():
            seconds[stage] += float(told.get("seconds", 0.0))
    tasks = [asked[name] for name in sorted(asked)]
    names = [t.problem.task_id for t in tasks]
    scores = {
        arm: Scores(np.array([np.mean(found[name]) for name in names]), sum(map(len, found.values())))
        for arm, found in passed.items()
    }
    domains = [t.problem.domain for t in tasks]
    manifest = RunDir.open(run).told()
    never = scores["vanilla"].share_T == 0
    every = np.ones(len(tasks), bool)
    classes: dict[str, Callable[[pbb.Task], str]] = {
        "functions": lambda t: "one function" if len(t.functions) == 1 else "composition",
        "kind": lambda t: t.problem.category,
        "input size": lambda t: t.size,
        "steps executed": lambda t: t.steps,
    }
    return {
        "model": manifest.get("model"),
        "device": manifest.get("device") or RunDir.open(experiment.places()[0].folder.path).told().get("device"),
        "reason": part.reason,
        "seeds": list(experiment.settings.design.seeds),
        "tasks": len(tasks),
        "functions": len(set(domains)),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "arms": {arm: {"pass_at_1": 100 * float(s.share_T.mean()), "draws": s.draws} for arm, s in scores.items()},
        "contrasts": contrasts(scores, domains, every),
        "floor_never_answers": {"tasks": int(never.sum()), "contrasts": contrasts(scores, domains, never)},
        "by": {
            name: {
                label: {
                    "tasks": int(member.sum()),
                    "arms": {arm: 100 * float(s.share_T[member].mean()) for arm, s in scores.items()},
                    "tuned - tuned_wrong": contrast(scores, domains, member, "tuned", "tuned_wrong"),
                }
                for label in sorted({of(t) for t in tasks})
                for member in (np.array([of(t) == label for t in tasks]),)
            }
            for name, of in classes.items()
        },
    }  # fmt: skip


def contrasts(scores: Mapping[str, Scores], domains: Sequence[str], member: np.ndarray) -> dict[str, Any]:
    return {f"{a} - {b}": contrast(scores, domains, member, a, b) for a, b in CONTRASTS}


def contrast(scores: Mapping[str, Scores], domains: Sequence[str], member: np.ndarray, a: str, b: str) -> Any:
    """Difference in points with its percentile interval over functions; None where there are fewer than two."""
    difference_T = (scores[a].share_T - scores[b].share_T)[member]
    labels = np.array(domains)[member]
    own = sorted(set(labels))
    if len(own) < 2:
        return None
    sums = np.array([difference_T[labels == d].sum() for d in own])
    sizes = np.array([(labels == d).sum() for d in own])
    drawn = np.random.default_rng(0).integers(0, len(own), (RESAMPLES, len(own)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"points": 100 * float(difference_T.mean()), "low": 100 * float(low), "high": 100 * float(high)}


def page(found: Mapping[str, Any]) -> str:
    """result.md: every figure from result.json."""
    lines = ["# Programming by Backprop", "", f"Intervals: {LEVEL:.0%}, paired, over functions."]
    for name, run in found.items():
        lines += [
            "", f"## {name}", "",
            f"{run['model']['name']} on {run['device']}; {run['tasks']} held-out tasks of "
            f"{run['functions']} functions and compositions; seeds {', '.join(map(str, run['seeds']))}; "
            f"{'with' if run['reason'] else 'without'} room to reason.", "",
            "| arm | pass@1 | draws |", "|---|---:|---:|",
            *(f"| {arm} | {told['pass_at_1']:.1f} | {told['draws']} |" for arm, told in run["arms"].items()), "",
            f"| contrast, points | all tasks | {run['floor_never_answers']['tasks']} that the floor never answers |",
            "|---|---:|---:|",
            *(f"| {c} | {span(told)} | {span(run['floor_never_answers']['contrasts'][c])} |"
              for c, told in run["contrasts"].items()),
        ]  # fmt: skip
        for by, classes in run["by"].items():
            lines += ["", f"| {by} | tasks | {' | '.join(ARMS)} | tuned − tuned_wrong |", f"|---|---:|{'---:|' * 6}"]
            for label, told in classes.items():
                values = " | ".join(f"{told['arms'][arm]:.1f}" for arm in ARMS)
                lines.append(f"| {label} | {told['tasks']} | {values} | {span(told['tuned - tuned_wrong'])} |")
    return "\n".join(lines) + "\n"


def span(told: Mapping[str, float] | None) -> str:
    return "–" if told is None else f"{told['points']:+.1f} [{told['low']:+.1f}, {told['high']:+.1f}]"


if __name__ == "__main__":
    sys.exit(main())
