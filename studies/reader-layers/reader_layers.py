"""What the misread layers touched: until 28 November 2026 the n-th feature reader of a process read other layers.

    cd studies/reader-layers
    python reader_layers.py likelihood --out OUT   a checkpoint's adapters from right and misread layers
    python reader_layers.py again --out OUT        its held-out conventions once more, with today's reader
    python reader_layers.py tell --out OUT         result.md, with the committed cross-fit by folds

transformers hooks shared decoder layers anew for every model made of them, so that with n models each layer's output
stood n times in `hidden_states` and tap t was layer ⌈t/n⌉ (results/hypernet-0.5b: one reader a process). Plan and
findings: README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from rune import config
from rune.adapters.factors import to_dtype
from rune.adapters.folders import Folders
from rune.adapters.store import FolderStore
from rune.analysis import stats
from rune.benchmarks import families
from rune.hypernet import base as bases
from rune.hypernet import export, losses
from rune.hypernet.features import Reader
from rune.runs import store
from rune.stages import sample, score
from rune.study.config import EngineSection, ModelSection
from rune.study.machines import Machines, device_name
from rune.types import Outcome, Problem, Split, Trajectory, Treatment, Verdict

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "results" / "hypernet-0.5b"
CROSSFIT = ROOT / "results" / "crossfit-0.5b" / "run.tar.xz"
ARMS = ("own", "sibling", "wrong")
# Folds (seed, fold) whose process had applied no other fold before: by the times in the archive and its manifest
# (seed 0 and the first of seed 1 ran in one process; the rest were dealt to six).
FIRST = {(0, 0), *((1, fold) for fold in range(1, 6)), (2, 0)}
SETTINGS: dict[str, Any] = store.read_json(CHECKPOINT / "manifest.json")["settings"]  # of the checkpoint's own run


class Case(NamedTuple):
    """One held-out task and what its arms are made from."""

    problem: Problem
    own: Trajectory
    siblings: tuple[Trajectory, ...]
    wrong: tuple[Trajectory, ...]

    def source(self, arm: str) -> tuple[Trajectory, ...]:
        return {"own": (self.own,), "sibling": self.siblings, "wrong": self.wrong}[arm]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("likelihood", "again", "tell"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=0, help="held-out tasks; default: 16 for likelihood, else all")
    args = parser.parse_args()
    {"likelihood": likelihood, "again": again, "tell": tell}[args.do](args)
    return 0


def misread(taps: tuple[int, ...], readers: int) -> tuple[int, ...]:
    """The layers that the n-th reader of a process took for `taps`."""
    return tuple(math.ceil(tap / readers) for tap in taps)


def cases() -> list[Case]:
    """The held-out tasks of the checkpoint's own run and their trajectories, in its order and by its chance."""
    asked = {name: SETTINGS[name] for name in ("seed", "families", "held_out", "tasks")}
    problems = [p for p in families.generate(families.Config(**asked)) if p.split is Split.HELD_OUT]
    by_domain: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in families.trajectories(problems, None, seed=SETTINGS["seed"]):
        by_domain[trajectory.domain].append(trajectory)
    rng = random.Random(config.derive_seed(SETTINGS["seed"], "cases"))
    found = []
    for domain, lessons in by_domain.items():
        for problem in [p for p in problems if p.domain == domain][: SETTINGS["scored"]]:
            own = next(t for t in lessons if t.task_id == problem.task_id)
            siblings = rng.sample([t for t in lessons if t is not own], min(SETTINGS["siblings"], len(lessons) - 1))
            # Of the same kind (number, list, text): a wrong trajectory that could have been the right one.
            same_kind = [d for d, ts in by_domain.items() if d != domain and ts[0].category == own.category]
            other = by_domain[rng.choice(same_kind or [d for d in by_domain if d != domain])]
            found.append(Case(problem, own, tuple(siblings), tuple(rng.sample(other, len(siblings)))))
    return found


def machines(out: Path) -> Machines:
    settings = SimpleNamespace(
        model=ModelSection(name="qwen2.5-coder-0.5b-instruct"), engine=EngineSection(), score=score.Config()
    )
    return Machines(settings, "reader-layers", together=1, adapters=Folders(out / "adapters"))


def likelihood(args: argparse.Namespace) -> None:
    """Log-probability of held-out solutions under adapters of one sibling's trajectory; nats."""
    everything = cases()
    count = args.cases or 16
    some = everything[:: len(everything) // count][:count]
    context = machines(args.out).context(SETTINGS["seed"])
    model = context.model()
    maker = export.AdapterGenerator(CHECKPOINT, model, device=context.device, dtype=context.dtype)
    base = bases.load(model, device=context.device, dtype=context.dtype)
    found = []
    for readers in (1, 2, 3):
        taps = misread(tuple(SETTINGS["hypernet"]["taps"]), readers)
        maker.writer.reader = Reader(base.model, base.tokenizer, taps=taps, digest=model.digest, folder=None)
        nats: list[float] = []
        exact: list[bool] = []
        for start in range(0, len(some), 4):
            part = some[start : start + 4]
            with torch.no_grad():
                worn = to_dtype(maker.generate([c.siblings[:1] for c in part]), getattr(torch, context.dtype))
                rows = base.rows([base.encode(c.problem.prompt, c.own.solution) for c in part])
                logits_PV = base.logits(rows, worn).float()
            log_prob_P = logits_PV.log_softmax(-1).gather(-1, rows.label_P[:, None])[:, 0]
            nats += losses.sequence_log_prob(log_prob_P, rows.row_P, len(part)).tolist()
            missed_P = (logits_PV.argmax(-1) != rows.label_P).float()
            exact += (losses.sequence_log_prob(missed_P, rows.row_P, len(part)) == 0).tolist()
        found.append(
            {"reader": readers, "layers": taps, "log_prob": float(np.mean(nats)), "exact": float(np.mean(exact))}
        )
        print(found[-1], flush=True)
    store.write_json(args.out / "likelihood.json", {"cases": len(some), "device": context.device, "readers": found})
    base.hooks.remove()


def again(args: argparse.Namespace) -> None:
    """Own, sibling and wrong trajectory on held-out tasks, by the stages of every run: samples and verdicts in OUT."""
    some = cases()[: args.cases or None]
    machine = machines(args.out)
    context = machine.context(SETTINGS["seed"])
    model = context.model()
    maker = export.AdapterGenerator(CHECKPOINT, model, device=context.device, dtype=context.dtype)
    adapters = FolderStore(args.out / "adapters", model, dtype=context.dtype)
    treatments = []
    for arm in ARMS:
        made = maker.iter_generate([case.source(arm) for case in some], strength=1.0, batch=16)
        for case, one in zip(some, made, strict=True):
            task, used = case.problem.task_id, tuple(t.trajectory_id for t in case.source(arm))
            ref = adapters.put(arm, task.replace("/", "_"), one, maker.stored.layout)
            treatments.append(Treatment(task_id=task, condition=arm, adapter=ref, trajectory_ids=used))
    folder = store.RunDir(args.out)
    store.write_jsonl(folder / "problems.jsonl", [case.problem for case in some])
    store.write_jsonl(folder / "treatments.jsonl", treatments)
    for name in ("samples.jsonl", "verdicts.jsonl"):
        (folder / name).unlink(missing_ok=True)
    drawn = {"n": SETTINGS["draws"], "temperature": SETTINGS["temperature"], "top_p": 1.0, "top_k": 0}
    sample.run(folder, sample.Config(max_new_tokens=SETTINGS["max_new_tokens"], **drawn), context)
    score.run(folder, score.Config(), context)
    store.write_json(args.out / "device.json", device_name(context.device))
    machine.close()


def tell(args: argparse.Namespace) -> None:
    """result.json and result.md from what the other verbs left, and from the committed cross-fit."""
    passed: dict[str, list[bool]] = defaultdict(list)
    for verdict in store.read_jsonl(args.out / "verdicts.jsonl", Verdict):
        passed[verdict.condition].append(verdict.outcome is Outcome.PASSED)
    before = store.read_json(CHECKPOINT / "result.json")["arms"]
    result: dict[str, Any] = {
        "again": {arm: [sum(passed[arm]), len(passed[arm])] for arm in ARMS},
        "device": store.read_json(args.out / "device.json"),
        "likelihood": store.read_json(args.out / "likelihood.json"),
        "crossfit": {t: _by_folds(t) for t in ("t0.8", "t0.2")},
    }
    lines = [
        f"`results/hypernet-0.5b` with today's reader, {result['device']}, held-out families, pass@1 in %:",
        "", "| trajectory | committed | again | passed / draws |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for arm, (hits, draws) in result["again"].items():
        lines.append(f"| {arm} | {100 * before[arm]['pass_at_1']:.1f} | {100 * hits / draws:.1f} | {hits} / {draws} |")
    lines += [
        "",
        f"The same checkpoint reading other layers than it learned from, one sibling's trajectory, "
        f"{result['likelihood']['cases']} held-out tasks ({result['likelihood']['device']}):",
        "", "| reader of its process | layers read | log-probability of the solution, nats | every token likeliest |",
        "|---:|---|---:|---:|",
    ]  # fmt: skip
    for row in result["likelihood"]["readers"]:
        shown = ", ".join(map(str, row["layers"]))
        lines.append(f"| {row['reader']} | {shown} | {row['log_prob']:.1f} | {100 * row['exact']:.0f} % |")
    lines += [
        "",
        "`results/crossfit-0.5b` by the layers its folds' adapters were made from (pass@1 in %, 95 % over tasks):",
        "",
        "| temperature | folds | layers | vanilla | static | hypernet | wrong | hypernet − vanilla | right − wrong |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for temperature, groups in result["crossfit"].items():
        for name, g in groups.items():
            arms = " | ".join(f"{g['arms'][a]:.1f}" for a in ("vanilla", "static", "hypernet", "wrong_trajectory"))
            gain, right = (f"{c[0]:+.1f} [{c[1]:+.1f}, {c[2]:+.1f}]" for c in (g["gain"], g["right − wrong"]))
            lines.append(f"| {temperature[1:]} | {g['folds']} | {name} | {arms} | {gain} | {right} |")
    store.write_json(args.out / "result.json", result)
    store.write_atomic(args.out / "result.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


def _by_folds(temperature: str) -> dict[str, Any]:
    """The committed verdicts, apart for folds whose adapters came from the named layers and from misread ones."""
    cells: dict[str, dict[str, dict[tuple[int, str], list[float]]]] = {
        name: defaultdict(lambda: defaultdict(list)) for name in ("as named", "misread")
    }
    folds: dict[str, set[tuple[int, int]]] = defaultdict(set)
    with tarfile.open(CROSSFIT) as archive:
        for member in archive:
            parts = member.name.split("/")
            if parts[-2:] != [temperature, "verdicts.jsonl"]:
                continue
            place = int(parts[1].removeprefix("seed-")), int(parts[2].removeprefix("fold-"))
            name = "as named" if place in FIRST else "misread"
            folds[name].add(place)
            found = archive.extractfile(member)
            assert found is not None
            for line in found.read().decode().splitlines():
                raw = json.loads(line)
                if "condition" in raw:
                    hit = float(raw["outcome"] == "passed")
                    cells[name][raw["condition"]][place[0], raw["task_id"]].append(hit)

    def contrast(arms: dict[str, dict[tuple[int, str], list[float]]], one: str, other: str) -> list[float]:
        by_task: dict[str, list[float]] = defaultdict(list)
        for key, hits in arms[one].items():
            by_task[key[1]].append(100 * (float(np.mean(hits)) - float(np.mean(arms[other][key]))))
        weights = stats.task_weights(len(by_task), 10_000, 0)
        sums = np.array([sum(v) for v in by_task.values()])
        sizes = np.array([len(v) for v in by_task.values()])
        drawn = (weights @ sums) / (weights @ sizes)
        return [float(sums.sum() / sizes.sum()), *map(float, np.percentile(drawn, [2.5, 97.5]))]

    return {
        name: {
            "folds": len(folds[name]),
            "arms": {a: 100 * float(np.mean([np.mean(h) for h in tasks.values()])) for a, tasks in arms.items()},
            "gain": contrast(arms, "hypernet", "vanilla"),
            "right − wrong": contrast(arms, "hypernet", "wrong_trajectory"),
        }
        for name, arms in cells.items()
    }


if __name__ == "__main__":
    sys.exit(main())
