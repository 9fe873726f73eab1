"""Why real updates are carried less than generated ones: this study's records, and what a pass reads of a text.

    cd studies/updates-scaled
    python cause.py read --data DATA --lessons FOLDER --corpus CORPUS --out OUT     a CPU, minutes: read.jsonl
    python cause.py tell --data DATA --lessons FOLDER --corpus CORPUS --records FOLDER2 --out OUT

FOLDER holds real-*.jsonl of results/updates-exploration/records.tar.xz, FOLDER2 what results/updates-scaled/
records.tar.xz holds, CORPUS what updates-real-looking's `corpus` wrote. `tell` makes cause.json of OUT's read.jsonl and
of the records, and the table on the page. Asked after the draws: it describes. `read` looks at no reported update.
"""

# Shapes: P solution tokens of all rows · V vocabulary · W width of the stream
from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

for beside in ("updates-exploration", "updates-oracle", "updates-distilled", "updates-scaled"):
    sys.path.insert(0, str(Path(__file__).parents[1] / beside))

import distilled
import numpy as np
import scaled
import torch
import updates
import updates_oracle
from updates_oracle import Job

from rune import console
from rune.benchmarks.scorers.updates import names_function, updated_name
from rune.hypernet import base as bases
from rune.hypernet.base import Base, Text
from rune.models import resolve
from rune.runs import store
from rune.types import Problem, Trajectory

SEED = 29  # of the order in which tasks are looked at
KEPT = (64, 128, 256, 512)  # tokens that a pass keeps of a set
TASKS = 24  # of each kind whose texts are looked at
THIRDS = 3
KINDS = ("function", "argument", "output")  # what an update changes, as its name in the data set says


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("read", "tell"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public data sets")
    parser.add_argument("--lessons", type=Path, required=True, help="real-*.jsonl of the exploration")
    parser.add_argument("--corpus", type=Path, required=True, help="what updates-real-looking's corpus wrote")
    parser.add_argument("--records", type=Path, help="tell: what records.tar.xz holds")
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--dtype", default="bfloat16", help="read: what is computed in")
    args = parser.parse_args()
    {"read": read, "tell": tell}[args.do](args)
    return 0


# --------------------------------------------------------------------------- what a pass reads


def read(args: argparse.Namespace) -> None:
    """A line a task: what a pass keeps of its siblings."""
    base = bases.load(resolve.resolve(args.model, sources=resolve.SOURCES, cache=None), device="cpu", dtype=args.dtype)
    kinds = jobs(args, base)
    known = {row["key"] for row in _lines(args.out / "read.jsonl")}
    with store.Appender(args.out / "read.jsonl") as log:
        for number, kind in itertools.product(range(TASKS), kinds):
            for job in kinds[kind][number : number + 1]:
                if job.key not in known:
                    log.write({"kind": kind, "key": job.key, **kept(base, job)})


def jobs(args: argparse.Namespace, base: Base) -> dict[str, list[Job]]:
    """Real training and validation updates, real-looking withheld ones, withheld ones of the grammar; shuffled."""
    parts = distilled.parts_of(updates._benchmark(args, fold=0).problems(), updates._read_real(args.lessons))
    found = {"real": [j for j in updates_oracle.jobs_of([*parts.train, *parts.validation], base) if j.arm == "oracle"]}
    for kind, file in (("real-looking", "looking_withheld"), ("grammar", "open")):
        texts = store.read_jsonl(args.corpus / f"{file}.jsonl", Trajectory)
        problems = store.read_jsonl(
            args.corpus / f"{'looking_problems' if kind != 'grammar' else 'problems'}.jsonl", Problem
        )
        asked = {p.domain for p in problems}
        _, withheld = scaled.generated_jobs([t for t in texts if t.domain in asked], problems)
        found[kind] = withheld
    for some in found.values():
        some.sort(key=lambda j: j.key)
        random.Random(SEED).shuffle(some)
    return found


def _encode(base: Base, lesson: Trajectory) -> Text:
    return base.encode(lesson.prompt, lesson.solution)


def names_at(base: Base, text: Text, name: str) -> list[int]:
    """Which of the solution's tokens begin the function's name."""
    tokens = [base.tokenizer.decode([i]) for i in text.ids[text.start :]]
    starts = np.cumsum([0, *map(len, tokens)])
    whole = "".join(tokens)
    at = [m.start() for m in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", whole)]
    return [int(np.searchsorted(starts, a, side="right") - 1) for a in at]


@torch.no_grad()
def kept(base: Base, job: Job) -> dict[str, Any]:
    """Solution tokens of all siblings, the share of what was got wrong (Σ|e|²) in the largest, and of names kept."""
    texts = [_encode(base, t) for t in job.lessons]
    rows = base.rows(texts)
    inner: Any = base.model
    hidden_BTW = inner.model(input_ids=rows.ids_BT, use_cache=False).last_hidden_state
    logits_PV = inner.lm_head(hidden_BTW[rows.row_P, rows.position_P]).float()
    weight_VW = inner.lm_head.weight.float()
    error_PW = inner.model.norm.weight.float() * (weight_VW[rows.label_P] - logits_PV.softmax(-1) @ weight_VW)
    size_P = error_PW.square().sum(-1)
    order = size_P.argsort(descending=True).tolist()
    first = np.cumsum([0, *(len(t.ids) - t.start for t in texts)])
    name = updated_name(job.case.problem)
    marks = [int(first[n]) + at for n, t in enumerate(texts) for at in names_at(base, t, name)]
    found: dict[str, Any] = {"tokens": len(order), "names": len(marks), "share": {}, "names kept": {}}
    for count in KEPT:
        some = set(order[:count])
        found["share"][str(count)] = round(float(size_P[list(some)].sum() / size_P.sum()), 4)
        found["names kept"][str(count)] = sum(m in some for m in marks)
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in store.read_lines(path)] if path.exists() else []


# --------------------------------------------------------------------------- numbers


ARMS = {  # of the records → as the table calls them
    "vanilla": "bare model", "context_sibling1": "one sibling in context", "generated": "one pass",
    "stepped": "two passes, true gradients", "oracle": "fine-tuned",
}  # fmt: skip
PAIRS = (("generated", "generated_wrong"), ("stepped", "stepped_wrong"), ("oracle", "oracle_wrong"),
         ("context_sibling1", "vanilla"))  # fmt: skip


def tell(args: argparse.Namespace) -> None:
    """cause.json, and the table on the study's page."""
    problems = {p.task_id: p for p in updates._benchmark(args, fold=0).problems()}
    rows = _records(args.records, problems)
    tokenizer = bases.load(
        resolve.resolve(args.model, sources=resolve.SOURCES, cache=None), device="cpu", dtype="bfloat16"
    ).tokenizer
    parts = distilled.parts_of(list(problems.values()), updates._read_real(args.lessons))
    drawn = {r["task"] for r in rows}
    cases = {c.problem.task_id: c for c in parts.held if c.problem.task_id in drawn}
    length = {t: sum(len(tokenizer(s.solution)["input_ids"]) for s in c.siblings) for t, c in cases.items()}
    bounds = np.quantile(sorted(length.values()), [n / THIRDS for n in range(1, THIRDS)])
    third = {t: int(np.searchsorted(bounds, n)) for t, n in length.items()}
    said = {t: says(c.problem) for t, c in cases.items()}
    groups: dict[str, list[str]] = {"all": sorted(cases)}
    ends = [0, *map(int, bounds), max(length.values())]
    for n in range(THIRDS):
        groups[f"siblings of {ends[n] + 1 if n else min(length.values())} to {ends[n + 1]} tokens"] = [
            t for t in cases if third[t] == n
        ]
    groups["prompt says the function's name"] = [t for t in cases if said[t]]
    groups["prompt does not"] = [t for t in cases if not said[t]]
    for kind in KINDS:
        groups[f"what changed: {kind}"] = [t for t in cases if kind in t.split(":")[1]]
    result: dict[str, Any] = {
        "names": {arm: names(rows, arm) for arm in (*ARMS, "generated_wrong", "stepped_wrong", "oracle_wrong")},
        "groups": {title: contrasts(rows, tasks) for title, tasks in groups.items()},
        "prompts that say the name, %": {"CodeUpdateArena, reported": 100 * float(np.mean(list(said.values())))}
        | {kind: share_said(args.corpus, kind) for kind in ("open", "looking", "renamed")},
        "read": coverage(_lines(args.out / "read.jsonl")),
    }
    store.write_json(args.out / "cause.json", result)
    store.replace_block(Path(__file__).with_name("README.md"), "cause", page(result).rstrip())
    console.out(page(result))


def _records(records: Path, problems: dict[str, Problem]) -> list[dict[str, Any]]:
    """Verdicts of reported draws, each with whether its program names the function."""
    drawn = {(s["condition"], s["task_id"], s["draw"]): s for _, s in store.read_lines(records / "held.jsonl")}
    found = []
    for v in _lines(records / "held_verdicts.jsonl"):
        program = drawn[v["arm"], v["task"], v["draw"]]["program"]
        named = names_function(program, problems[v["task"]]) is not False
        found.append({**v, "names": named, "used": v["used"] and named})
    return found


def names(rows: Sequence[dict[str, Any]], arm: str) -> dict[str, float]:
    """Of an arm's programs: how many name the function, and how many of these count."""
    some = [r for r in rows if r["arm"] == arm]
    naming = [r for r in some if r["names"]]
    return {
        "names it": 100 * len(naming) / len(some), "counts": 100 * float(np.mean([r["used"] for r in naming])),
        "both": 100 * float(np.mean([r["used"] for r in some])),
    }  # fmt: skip


def contrasts(rows: Sequence[dict[str, Any]], tasks: Sequence[str]) -> dict[str, Any]:
    """Named UPass, points, over the tasks; and how many tasks."""
    some = [r for r in rows if r["task"] in set(tasks)]
    return {"tasks": len(tasks), **updates._numbers(some, "used", PAIRS)["contrasts"]}


def says(problem: Problem) -> bool:
    """Whether the prompt has the function's name, or what it is called after the update, as a word."""
    return _says(problem.prompt, updates._function(problem.domain), updated_name(problem))


def _says(prompt: str, function: str, name: str = "") -> bool:
    words = set(re.findall(r"[A-Za-z0-9]+", prompt))
    return any(set(re.findall(r"[A-Za-z0-9]+", n)) <= words for n in (function.rpartition(".")[2], name) if n)


def share_said(corpus: Path, name: str) -> float:
    lessons = store.read_jsonl(corpus / f"{name}.jsonl", Trajectory)
    return 100 * float(np.mean([_says(t.prompt, t.domain.partition(":")[0]) for t in lessons]))


def coverage(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Kind → tasks, mean tokens of all siblings, and what the largest so many hold of error and of names."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_kind[row["kind"]].append(row)
    return {
        kind: {
            "tasks": len(some), "tokens": float(np.mean([r["tokens"] for r in some])),
            "error": {n: 100 * float(np.mean([r["share"][n] for r in some])) for n in map(str, KEPT)},
            "names": {n: 100 * sum(r["names kept"][n] for r in some) / max(1, sum(r["names"] for r in some))
                      for n in map(str, KEPT)},
        }
        for kind, some in by_kind.items()
    }  # fmt: skip


def page(result: dict[str, Any]) -> str:
    """Everything as Markdown."""
    out = ["| arm, reported updates | programs that name the function, % | of these count, % | both: named UPass |",
           "|---|---:|---:|---:|"]  # fmt: skip
    for arm, values in result["names"].items():
        title = ARMS.get(arm) or f"{ARMS[arm.removesuffix('_wrong')]}, wrong donor"
        out.append(f"| {title} | " + " | ".join(f"{v:.1f}" for v in values.values()) + " |")
    titles = [f"{ARMS[a]}, right − wrong" if b.endswith("wrong") else f"{ARMS[a]} − bare" for a, b in PAIRS]
    out += ["", "| named UPass, points, 95 % over updates | tasks | " + " | ".join(titles) + " |",
            "|---|---:|" + "---:|" * len(PAIRS)]  # fmt: skip
    for title, one in result["groups"].items():
        cells = [scaled._interval(one[f"{a} − {b}"]) for a, b in PAIRS]
        out.append(f"| {title} | {one['tasks']} | " + " | ".join(cells) + " |")
    shares = result["prompts that say the name, %"]
    out += [
        "",
        "Prompts that say the function's name, %: " + ", ".join(f"{k} {v:.0f}" for k, v in shares.items()) + ".",
    ]
    out += ["", "| what a pass reads, of all siblings' solutions | tasks | tokens | "
            + " | ".join(f"of the error in the largest {n}, %" for n in KEPT) + " | "
            + " | ".join(f"of the function's names in the largest {n}, %" for n in KEPT) + " |",
            "|---|---:|---:|" + "---:|" * (2 * len(KEPT))]  # fmt: skip
    for kind, one in result["read"].items():
        cells = [f"{v:.0f}" for part in ("error", "names") for v in one[part].values()]
        out.append(f"| {kind} | {one['tasks']} | {one['tokens']:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
