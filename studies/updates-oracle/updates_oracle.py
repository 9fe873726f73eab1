"""The oracle on CodeUpdateArena: can a LoRA of the generated size carry an update at all, if gradient steps make it?

Plan, prediction and rule: README.md beside this file. Beside the exploration, whose cases and scoring it shares:

    cd studies/updates-oracle
    python updates_oracle.py draw --data DATA --lessons FOLDER --out OUT    there: train, draw
    python updates_oracle.py tell --data DATA --lessons FOLDER --out OUT    here: judge, numbers, figure

FOLDER holds real-*.jsonl, the trajectories of results/updates-exploration/records.tar.xz. For every scored task one
LoRA is fine-tuned on the solutions of up to three other tasks of its update, many of them side by side in one batch;
each has its own initial weights, data, gradient norm and moments, so that it is what it would be alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "updates-exploration"))

import numpy as np
import torch
import updates

from rune import prompts
from rune.adapters import convert
from rune.adapters.factors import Factors, select, to_dtype
from rune.corpus import overlap
from rune.hypernet import base as bases
from rune.hypernet import losses, side_by_side
from rune.hypernet.settings import MODULES, Schedule
from rune.runs import store
from rune.types import Sample, Trajectory

# Shapes: Y layers · N adapters · R rank · I inputs · O outputs · B rows, N equal runs · P response tokens

DRAWS = 5
RANK, ALPHA = 8, 16.0  # as generated ones
SCHEDULE = Schedule(steps=40, learning_rate=5e-4, checkpoint_every=40)  # the arm oracle's rate
ROWS = 2  # solutions a step
TOGETHER = 16  # adapters in one batch
SCORED = 3  # tasks of an update that are scored, at most
MAX_TOKENS = 768  # of prompt and solution
BLOCK = 40  # tasks that are drawn in one go, all arms
ARMS = ("oracle", "wrong", "vanilla", "context_sibling1", "own", "oracle_half")
CONTRASTS = (
    ("oracle", "wrong"), ("oracle", "vanilla"), ("oracle", "context_sibling1"), ("wrong", "vanilla"),
    ("context_sibling1", "vanilla"), ("own", "oracle"), ("oracle_half", "oracle"), ("oracle_half", "vanilla"),
)  # fmt: skip


class Job(NamedTuple):
    """One LoRA: what it is called and the solutions it learns."""

    arm: str
    case: updates.Case
    lessons: tuple[Trajectory, ...]

    @property
    def key(self) -> str:
        return f"{self.arm}/{self.case.problem.task_id}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("draw", "tell"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public data sets")
    parser.add_argument("--lessons", type=Path, required=True, help="real-*.jsonl of the exploration")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--train-seconds", type=float, default=1e9, help="no batch of LoRAs is begun after so many")
    parser.add_argument("--skip", type=int, default=0, help="go on after so many LoRAs, where another run ended")
    parser.add_argument("--updates", type=int, default=0, help="only the first so many, in the order drawn; 0: all")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: checks the path, claims nothing")
    args = parser.parse_args()
    {"draw": draw, "tell": tell}[args.do](args)
    return 0


def jobs_of(cases: Sequence[updates.Case], base: bases.Base, limit: int = 0) -> list[Job]:
    """In the order of training: updates shuffled; of each, its scored tasks, then the first one's own solution."""

    def short(lesson: Trajectory) -> bool:
        return len(base.encode(lesson.prompt, lesson.solution).ids) <= MAX_TOKENS

    by_update: dict[str, list[updates.Case]] = {}
    for case in cases:
        siblings = tuple(t for t in case.siblings if short(t))
        if siblings and short(case.own):
            by_update.setdefault(case.problem.domain, []).append(case._replace(siblings=siblings))
    rng = random.Random(updates.SEED)
    order = sorted(by_update)
    rng.shuffle(order)
    jobs = []
    for update in order[: limit or None]:
        some = rng.sample(by_update[update], min(SCORED, len(by_update[update])))
        jobs += [Job("oracle", case, case.siblings) for case in some]
        jobs.append(Job("own", some[0], (some[0].own,)))
    return jobs


def train(base: bases.Base, jobs: Sequence[Job], schedule: Schedule) -> tuple[dict[str, Factors], list[list[float]]]:
    """LoRAs of all jobs at once, N = len(jobs), and the loss of each at each step [steps][N], nats a token."""
    lessons = [
        side_by_side.Lesson(job.key, tuple(base.encode(t.prompt, t.solution) for t in job.lessons)) for job in jobs
    ]
    made, curve = side_by_side.train(base, lessons, schedule, rank=RANK, alpha=ALPHA, rows=ROWS, seed=updates.SEED)
    return to_dtype(made, next(base.model.parameters()).dtype), curve


def draw(args: argparse.Namespace) -> None:
    """OUT/training.jsonl, likelihood.jsonl, samples.jsonl, seconds.json; judged elsewhere."""
    began = time.monotonic()
    seconds: dict[str, Any] = {}
    machine = updates._machine(args)
    problems = updates._benchmark(args).problems()
    cases = updates._cases(problems, updates._read_real(args.lessons))
    base = bases.load(machine.model, device=machine.device, dtype=machine.dtype)
    jobs = jobs_of(cases, base, args.updates)
    schedule = Schedule(steps=3, learning_rate=5e-4) if args.smoke else SCHEDULE
    layout, dtype = base.layout(MODULES), getattr(torch, machine.dtype)
    seconds["load"] = time.monotonic() - began
    made: dict[str, dict[str, Factors]] = {}
    trained: list[Job] = []
    slowest = 0.0
    (args.out / "training.jsonl").unlink(missing_ok=True)
    with store.Appender(args.out / "training.jsonl") as log:
        for start in range(args.skip, len(jobs), TOGETHER):
            mark = time.monotonic()
            if mark - began + slowest > args.train_seconds:
                break
            some = jobs[start : start + TOGETHER]
            whole, curve = train(base, some, schedule)
            slowest = time.monotonic() - mark
            for n, job in enumerate(some):
                made[job.key] = select(whole, slice(n, n + 1))
                log.write({
                    "key": job.key, "lessons": [t.task_id for t in job.lessons],
                    "loss": [round(c[n], 4) for c in curve], "seconds": round(slowest / len(some), 3),
                })  # fmt: skip
            trained += some
            print(f"{time.monotonic() - began:.0f} s: {len(trained)} of {len(jobs)}, loss {np.mean(curve[0]):.3f} → "
                  f"{np.mean(curve[-1]):.3f}", flush=True)  # fmt: skip
    seconds["train"] = time.monotonic() - began - seconds["load"]
    pairs = partners([j for j in trained if j.arm == "oracle"])
    likelihood(args.out / "likelihood.jsonl", base, pairs, made, dtype)
    seconds["likelihood"] = time.monotonic() - began - sum(seconds.values())
    base.hooks.remove()
    del base
    engine = updates._engine(machine)
    worn = {}
    for key, one in made.items():
        worn[key] = engine.put_adapter(
            key, convert.to_adapter(one, layout, base_model=machine.model.digest, dtype=dtype)
        )
    blocks = [pairs[i : i + BLOCK] for i in range(0, len(pairs), BLOCK)]
    path = args.out / "samples.jsonl"
    for block in blocks:
        wanted: list[Any] = []
        for job, donor in block:
            problem, key = job.case.problem, job.case.problem.task_id
            shown = prompts.render_trajectory(job.case.siblings[0])
            wanted += [("oracle", problem, "", worn[job.key]), ("wrong", problem, "", worn[donor.key])]
            wanted += [("vanilla", problem, "", None), ("context_sibling1", problem, shown, None)]
            if f"own/{key}" in worn:
                wanted.append(("own", problem, "", worn[f"own/{key}"]))
        updates._draw(args, machine, engine, path, wanted, DRAWS)
        print(f"{time.monotonic() - began:.0f} s: {len(wanted)} arms × tasks drawn", flush=True)
    seconds["draw"] = time.monotonic() - began - sum(seconds.values())
    store.write_json(args.out / "seconds.json", {**seconds, "adapters": len(made), "device": _device()})
    for block in blocks:  # last: half the strength
        wanted = []
        for job, _ in block:
            half = {m: Factors(f.down_YNRI, 0.5 * f.up_YNRO) for m, f in made[job.key].items()}
            adapter = convert.to_adapter(half, layout, base_model=machine.model.digest, dtype=dtype)
            wanted.append(("oracle_half", job.case.problem, "", engine.put_adapter(f"half/{job.key}", adapter)))
        updates._draw(args, machine, engine, path, wanted, DRAWS)
    engine.close()
    print(f"{time.monotonic() - began:.0f} s: end", flush=True)


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def partners(jobs: Sequence[Job]) -> list[tuple[Job, Job]]:
    """Each job with the one whose LoRA is its wrong donor: another update of the same package, of another function."""
    found = []
    for job in jobs:
        mine = job.case.problem
        others = [j for j in jobs if j.case.problem.domain != mine.domain]
        package = [j for j in others if j.case.problem.category == mine.category]
        far = [j for j in package if updates._function(j.case.problem.domain) != updates._function(mine.domain)]
        pool = far or package or others
        if pool:
            found.append((job, random.Random(f"{updates.SEED}/{mine.task_id}").choice(pool)))
    return found


@torch.no_grad()
def likelihood(
    path: Path, base: bases.Base, pairs: Sequence[tuple[Job, Job]], made: dict[str, dict[str, Factors]],
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Log-probability of each scored task's own solution under its oracle, the wrong one's, and bare; nats."""
    path.unlink(missing_ok=True)
    with store.Appender(path) as log:
        for start in range(0, len(pairs), TOGETHER):
            some = pairs[start : start + TOGETHER]
            rows = base.rows([base.encode(j.case.own.prompt, j.case.own.solution) for j, _ in some])
            found = {}
            for arm, worn in (("oracle", [j for j, _ in some]), ("wrong", [d for _, d in some]), ("vanilla", [])):
                whole = {
                    m: Factors(*(torch.cat(side, 1) for side in zip(*(made[j.key][m] for j in worn), strict=True)))
                    for m in MODULES
                } if worn else None  # fmt: skip
                log_prob_P = base.log_prob(rows, whole)
                found[arm] = losses.sequence_log_prob(log_prob_P, rows.row_P, len(some)).tolist()
            for n, (job, donor) in enumerate(some):
                log.write({
                    "task": job.case.problem.task_id, "donor": donor.case.problem.task_id,
                    **{arm: round(v[n], 3) for arm, v in found.items()},
                })  # fmt: skip


# --------------------------------------------------------------------------- numbers


def tell(args: argparse.Namespace) -> None:
    """Judge what is not judged; result.json, result.md, figure.svg. OUT holds what `draw` left, or several joined."""
    problems = updates._benchmark(args).problems()
    updates._score(problems, args.out / "samples.jsonl", args.out / "verdicts.jsonl")
    verdicts = [v for _, v in store.read_lines(args.out / "verdicts.jsonl")]
    complete = _complete(store.read_jsonl(args.out / "samples.jsonl", Sample))
    verdicts = [v for v in verdicts if v["task"] in complete]
    result: dict[str, Any] = {metric: updates._numbers(verdicts, metric, CONTRASTS) for metric in ("used", "plain")}
    with_own = {v["task"] for v in verdicts if v["arm"] == "own"}
    result["with_own"] = updates._numbers([v for v in verdicts if v["task"] in with_own], "used", CONTRASTS)
    result["intervals"] = _intervals(verdicts)
    result["updates"] = len({v["task"].rpartition("/")[0] for v in verdicts})
    nats = [row for _, row in store.read_lines(args.out / "likelihood.jsonl") if row["task"] in complete]
    ahead = np.array([row["oracle"] - row["wrong"] for row in nats])
    result["likelihood"] = {arm: float(np.mean([row[arm] for row in nats])) for arm in ("vanilla", "oracle", "wrong")}
    result["likelihood"] |= {"lead": float(ahead.mean()), "share_ahead": float((ahead > 0).mean())}
    curves = [row for _, row in store.read_lines(args.out / "training.jsonl")]
    result["loss"] = {
        arm: [float(np.mean([c["loss"][at] for c in curves if c["key"].startswith(f"{arm}/")])) for at in (0, -1)]
        for arm in ("oracle", "own")
    }
    likeness = _likeness(updates._read_real(args.lessons), curves)
    middle = float(np.median([likeness[task] for task in complete]))
    result["likeness"] = {"median": middle}
    for name, near in (("far", False), ("near", True)):
        some = [v for v in verdicts if (likeness[v["task"]] > middle) is near]
        result["likeness"][name] = updates._numbers(some, "used", CONTRASTS)
    result["seconds"] = store.read_json(args.out / "seconds.json")
    store.write_json(args.out / "result.json", result)
    store.write_atomic(args.out / "result.md", table(result))
    figure(args.out / "figure.svg", result)
    print(table(result))


def _likeness(lessons: Sequence[Trajectory], curves: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Share of a task's own solution, in runs of five tokens, that stands in the solutions its oracle learned."""
    solution = {t.task_id: overlap.shingles(t.solution, 5) for t in lessons}
    found = {}
    for row in curves:
        arm, _, task = row["key"].partition("/")
        if arm == "oracle":
            shown = frozenset().union(*(solution[t] for t in row["lessons"]))
            found[task] = overlap.containment(solution[task], shown)
    return found


def _complete(samples: Sequence[Sample]) -> set[str]:
    """Tasks with every draw of the four arms that all tasks have: a run may end between two."""
    have: dict[str, set[tuple[str, int]]] = {}
    for s in samples:
        have.setdefault(s.task_id, set()).add((s.condition, s.draw))
    wanted = {(arm, d) for arm in ("oracle", "wrong", "vanilla", "context_sibling1") for d in range(DRAWS)}
    return {task for task, some in have.items() if wanted <= some}


NAMES = {
    "vanilla": "bare model", "context_sibling1": "a sibling's trajectory in context",
    "wrong": "LoRA of another update", "oracle": "LoRA of the update's siblings",
    "oracle_half": "the same at half strength",
}  # fmt: skip


def figure(path: Path, result: dict[str, Any]) -> None:
    """UPass of the arms that all tasks have, with intervals over updates."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "oracle", "axes.spines.top": False}):
        drawing = Figure(figsize=(7.2, 2.6), layout="constrained")
        axes = drawing.subplots()
        for at, (arm, name) in enumerate(reversed(NAMES.items())):
            low, high = result["intervals"][arm]
            mean = result["used"]["arms"][arm]
            axes.plot([low, high], [at, at], color="#8a94a6", linewidth=2)
            axes.plot(mean, at, "o", color="#b3261e" if arm == "wrong" else "#1f5fbf")
            axes.text(high + 0.6, at, f"{mean:.1f}", va="center", fontsize=9)
            axes.text(-0.8, at, name, va="center", ha="right", fontsize=9)
        axes.set(yticks=[], xlim=(0, None), ylim=(-0.6, len(NAMES) - 0.4))
        axes.set_xlabel(
            f"UPass in %, {result['used']['tasks']} tasks of {result['updates']} updates, 95 % over updates"
        )
        for side in ("left", "right"):
            axes.spines[side].set_visible(False)
        drawing.savefig(path, format="svg", metadata={"Date": None})


def _intervals(verdicts: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """95 % of each arm's UPass, bootstrap over updates."""
    found = {}
    for arm in NAMES:
        by_update: dict[str, list[float]] = {}
        for v in verdicts:
            if v["arm"] == arm:
                by_update.setdefault(v["task"].rpartition("/")[0], []).append(100.0 * v["used"])
        sums = np.array([sum(x) for x in by_update.values()])
        sizes = np.array([len(x) for x in by_update.values()])
        picks = np.random.default_rng(updates.SEED).integers(0, len(sums), (5000, len(sums)))
        low, high = np.percentile(sums[picks].sum(1) / sizes[picks].sum(1), [2.5, 97.5])
        found[arm] = (float(low), float(high))
    return found


def table(result: dict[str, Any]) -> str:
    """Arms and contrasts as Markdown."""
    used, plain, own = result["used"], result["plain"], result["with_own"]
    lines = [
        f"{used['tasks']} tasks of {result['updates']} updates × {DRAWS} draws, T = {updates.TEMPERATURE}, "
        f"{result['seconds']['device']}; the last column: the {own['tasks']} tasks that have an own LoRA",
        "", "| arm | UPass | plain pass | UPass, tasks with own |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for arm in ARMS:
        if arm in used["arms"]:
            shown = f"{own['arms'][arm]:.1f}" if arm in own["arms"] else "–"
            whole = ("–", "–") if arm == "own" else (f"{used['arms'][arm]:.1f}", f"{plain['arms'][arm]:.1f}")
            lines.append(f"| {arm} | {whole[0]} | {whole[1]} | {shown} |")
    lines += ["", "| contrast | UPass, points | 95 % over updates | plain pass, points | 95 % over updates |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, (points, low, high) in used["contrasts"].items():
        p = plain["contrasts"][name]
        lines.append(f"| {name} | {points:+.1f} | {low:+.1f} … {high:+.1f} | {p[0]:+.1f} | {p[1]:+.1f} … {p[2]:+.1f} |")
    lines += [
        "",
        "By the share of the task's own solution (runs of five tokens) that stands in its siblings', parted at the "
        f"median, {100 * result['likeness']['median']:.0f} %:",
        "",
        "| half | tasks | vanilla | context_sibling1 | wrong | oracle | oracle − wrong |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in ("far", "near"):
        half = result["likeness"][name]
        arms = " | ".join(f"{half['arms'][a]:.1f}" for a in ("vanilla", "context_sibling1", "wrong", "oracle"))
        points, low, high = half["contrasts"]["oracle − wrong"]
        lines.append(f"| {name} | {half['tasks']} | {arms} | {points:+.1f} [{low:+.1f}, {high:+.1f}] |")
    nats, loss, seconds = result["likelihood"], result["loss"], result["seconds"]
    lines += [
        "",
        f"Log-probability of the task's own solution, nats: bare {nats['vanilla']:.1f}, oracle {nats['oracle']:.1f}, "
        f"wrong {nats['wrong']:.1f}; oracle ahead of wrong in {100 * nats['share_ahead']:.0f} % of tasks.",
        f"Training loss, nats a token: oracle {loss['oracle'][0]:.3f} → {loss['oracle'][1]:.3f}, "
        f"own {loss['own'][0]:.3f} → {loss['own'][1]:.3f}; {seconds['train']:.0f} s for {seconds['adapters']} LoRAs.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
