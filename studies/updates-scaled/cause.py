"""Why real updates are carried less than generated ones: this study's records, and what a pass reads of a text.

    cd studies/updates-scaled
    python cause.py read --data DATA --lessons FOLDER --corpus CORPUS --out OUT     a CPU, half an hour: read.jsonl
    python cause.py tell --data DATA --lessons FOLDER --corpus CORPUS --records FOLDER2 --out OUT

FOLDER holds real-*.jsonl of results/updates-exploration/records.tar.xz, FOLDER2 what results/updates-scaled/
records.tar.xz holds, CORPUS what updates-real-looking's `corpus` wrote. `tell` makes cause.json and cause.md of OUT's
read.jsonl and the records. Asked after the draws: it describes. `read` looks at no reported update.
"""

# Shapes: N sets · P solution tokens of all rows
from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
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
from torch import Tensor
from updates_oracle import Job

from rune.adapters.factors import Adapters, to_dtype
from rune.benchmarks.scorers.updates import updated_name
from rune.hypernet import base as bases
from rune.hypernet import outer_products, side_by_side
from rune.hypernet.base import Base, Text
from rune.hypernet.outer_products import OuterProducts
from rune.hypernet.settings import Schedule
from rune.models import resolve
from rune.runs import store
from rune.types import Problem, Trajectory

SEED = 29  # of the order in which tasks are looked at
KEPT = (64, 128, 256, 512)  # tokens that a pass keeps of a set
GAINS = (0.002, 0.005)  # a token's step of an untrained generator as a share of the stream, over all passes
PASSES, PASS_TOKENS = 4, (64, 256, 512)
TASKS = 12  # of each kind whose texts are looked at
LIFTED = 12  # real ones that adapters are written for
DOSE = (4, 1.25e-3)  # steps and rate of the fine-tuned LoRA beside them
THIRDS = 3


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
    """A line a task: what is kept of its siblings, and how likely the function's name is made in its own solution."""
    base = bases.load(resolve.resolve(args.model, sources=resolve.SOURCES, cache=None), device="cpu", dtype=args.dtype)
    kinds = jobs(args, base)
    known = {(row["what"], row["key"]) for row in _lines(args.out / "read.jsonl")}
    with store.Appender(args.out / "read.jsonl") as log:
        for number, kind in itertools.product(range(TASKS), kinds):
            some = kinds[kind][number : number + 1]
            for job in some:
                if ("kept", job.key) not in known:
                    log.write({"what": "kept", "kind": kind, "key": job.key, **kept(base, job)})
        real = kinds["real"]
        sets = [[_encode(base, t) for t in j.lessons] for j in real[:2]]
        seen = outer_products.observe(base, sets, tokens=KEPT[0])
        for job in real[:LIFTED]:
            far = [j for j in real if _function(j) != _function(job)]
            wrong = random.Random(f"{SEED}/{job.key}").choice(far)
            if ("lift", job.key) not in known:
                log.write({"what": "lift", "key": job.key, "lift": lifts(base, seen, job, wrong)})


def _function(job: Job) -> str:
    return updates._function(job.case.problem.domain)


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


def lifts(base: Base, seen: outer_products.Observed, job: Job, wrong: Job) -> dict[str, list[float]]:
    """By how many nats a token adapters of the right and the wrong siblings lift the name in the task's own solution,
    and all of the solution: [name right, name wrong, all right, all wrong]; {} where it does not name the function."""
    target = _encode(base, job.case.own)
    at = names_at(base, target, updated_name(job.case.problem))
    if not at:
        return {}
    rows = base.rows([target])

    def nats(applied: Adapters | None) -> tuple[float, float]:
        with torch.no_grad():
            each_P: Tensor = base.log_prob(rows, applied)
        return float(each_P[at].mean()), float(each_P.mean())

    sets = [[_encode(base, t) for t in j.lessons] for j in (job, wrong)]
    bare, found = nats(None), {}

    def add(name: str, made: Sequence[Adapters]) -> None:
        under = [nats(m) for m in made]
        found[name] = [round(u[n] - bare[n], 4) for n in (0, 1) for u in under]

    layout = base.layout(outer_products.MODULES)
    whole = [outer_products.observe(base, [one], tokens=PASS_TOKENS[-1]) for one in sets]
    for gain in GAINS:
        model = OuterProducts(layout, gain=gain)
        model.calibrate(base, seen)
        with torch.no_grad():
            for tokens in PASS_TOKENS:
                add(f"1 × {tokens}, {gain}", [model(largest(one, tokens)) for one in whole])
    model = OuterProducts(layout, passes=PASSES, gain=GAINS[-1])
    model.calibrate(base, seen)
    for tokens in PASS_TOKENS:
        with torch.no_grad():
            made = [outer_products.write(base, model, [one], tokens=tokens) for one in sets]
        add(f"{PASSES} × {tokens}, {GAINS[-1]}", made)
    steps, rate = DOSE
    schedule = Schedule(steps=steps, learning_rate=rate, checkpoint_every=steps)
    dtype = next(base.model.parameters()).dtype
    tuned = []
    for texts, j in zip(sets, (job, wrong), strict=True):
        made, _ = side_by_side.train(base, [side_by_side.Lesson(j.key, tuple(texts))], schedule, rank=8, alpha=16.0,
                                     rows=2, seed=SEED, start="common")  # fmt: skip
        tuned.append(to_dtype(made, dtype))
    add("fine-tuned", tuned)
    return found


def largest(seen: outer_products.Observed, tokens: int) -> outer_products.Observed:
    """What `observe` finds with fewer tokens: they stand in order."""
    return seen._replace(
        keys_YNRI={m: t[:, :, :tokens] for m, t in seen.keys_YNRI.items()},
        error_YNRW={m: t[:, :, :tokens] for m, t in seen.error_YNRW.items()},
        state_NRW=seen.state_NRW[:, :tokens], mask_NR=seen.mask_NR[:, :tokens],
    )  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in store.read_lines(path)] if path.exists() else []


# --------------------------------------------------------------------------- numbers


def tell(args: argparse.Namespace) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    sys.exit(main())
