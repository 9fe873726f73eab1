"""What the misread layers touched: until 28 November 2026 the n-th feature reader of a process read other layers.

    python experiments/reader_layers.py likelihood --out OUT   a checkpoint's adapters from right and misread layers
    python experiments/reader_layers.py again --out OUT        its held-out families once more, with today's reader
    python experiments/reader_layers.py tell --out OUT         result.md, with the committed cross-fit by folds

transformers hooks shared decoder layers anew for every model made of them, so that with n models each layer's output
stood n times in `hidden_states` and tap t was layer ⌈t/n⌉ (results/hypernet-0.5b: one reader a process). Plan and
findings: studies/reader-layers/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import families
import numpy as np
import torch

from rune import config, plugins, prompts
from rune.adapters import convert
from rune.adapters.factors import to_dtype
from rune.analysis import stats
from rune.hypernet import base as bases
from rune.hypernet import export, losses
from rune.hypernet.features import Reader
from rune.models import chat
from rune.runs import store
from rune.types import Outcome, Request, Sampling, Verdict

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "results" / "hypernet-0.5b"
CROSSFIT = ROOT / "results" / "crossfit-0.5b" / "run.tar.xz"
ARMS = ("own", "sibling", "wrong")
# Folds (seed, fold) whose process had applied no other fold before: by the times in the archive and its manifest
# (seed 0 and the first of seed 1 ran in one process; the rest were dealt to six).
FIRST = {(0, 0), *((1, fold) for fold in range(1, 6)), (2, 0)}


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


def _cases(out: Path) -> tuple[families.Settings, list[families.Case]]:
    """The held-out tasks of the checkpoint's own run: generated from its settings, scored tasks in its order."""
    raw = store.read_json(CHECKPOINT / "manifest.json")["settings"]
    settings = config.build(families.Settings, raw)
    return settings, families.corpus(out / "corpus", settings)[0]


def likelihood(args: argparse.Namespace) -> None:
    """Log-probability of held-out solutions under adapters of one sibling's trajectory; nats."""
    settings, cases = _cases(args.out)
    count = args.cases or 16
    some = cases[:: len(cases) // count][:count]
    machine = families._machine("qwen2.5-coder-0.5b-instruct", None, None)
    maker = export.AdapterGenerator(CHECKPOINT, machine.model, device=machine.device, dtype=machine.dtype, cache=None)
    base = bases.load(machine.model, device=machine.device, dtype=machine.dtype)
    found = []
    for readers in (1, 2, 3):
        taps = misread(settings.hypernet.taps, readers)
        maker.reader = Reader(base.model, base.tokenizer, taps=taps, digest=machine.model.digest, folder=None)
        nats: list[float] = []
        exact: list[bool] = []
        for start in range(0, len(some), 4):
            part = some[start : start + 4]
            with torch.no_grad():
                worn = to_dtype(maker.generate([c.siblings[:1] for c in part]), getattr(torch, machine.dtype))
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
    store.write_json(args.out / "likelihood.json", {"cases": len(some), "device": machine.device, "readers": found})
    base.hooks.remove()


def again(args: argparse.Namespace) -> None:
    """Own, sibling and wrong trajectory on held-out tasks: samples.jsonl and verdicts.jsonl."""
    settings, cases = _cases(args.out)
    cases = cases[: args.cases or None]
    machine = families._machine("qwen2.5-coder-0.5b-instruct", None, None)
    maker = export.AdapterGenerator(CHECKPOINT, machine.model, device=machine.device, dtype=machine.dtype, cache=None)
    layout, dtype = maker.stored.layout, getattr(torch, machine.dtype)
    engines = plugins.load("engines", "torch")
    engine = engines.build(engines.Config(), model=machine.model, device=machine.device, dtype=machine.dtype)
    sampling = Sampling(temperature=settings.temperature, max_new_tokens=settings.max_new_tokens)
    requests, meaning = [], {}
    for arm in ARMS:
        made = maker.iter_generate([case.source(arm) for case in cases], strength=1.0, batch=16)
        for case, one in zip(cases, made, strict=True):
            task = case.problem.task_id
            ready = convert.to_adapter(one, layout, base_model=machine.model.digest, dtype=dtype)
            worn = engine.put_adapter(f"{arm}/{task}", ready)
            text = chat.render(machine.model, prompts.task(case.problem.prompt, ""))
            seed = config.derive_seed(settings.seed, "sample", task)
            asked = dataclasses.replace(sampling, stop=prompts.stop(case.problem.prompt))
            for draw in range(settings.draws):
                key = f"{arm}\t{task}\t{draw}"
                meaning[key] = (arm, case.problem, draw)
                requests.append(Request(key=key, prompt=text, sampling=asked, seed=seed + draw, adapter=worn))
    drawn = [families._sample(c, *meaning[c.key]) for c in engine.complete(requests)]
    store.write_jsonl(args.out / "samples.jsonl", drawn)
    (args.out / "verdicts.jsonl").unlink(missing_ok=True)
    families.score(args.out, cases)
    engine.close()
    store.write_json(args.out / "device.json", torch.cuda.get_device_name() if machine.device == "cuda" else "CPU")


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
