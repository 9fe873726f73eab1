"""Training recipes side by side on tasks that no gate ever scores: which one goes into the cross-fitted run?

    python experiments/recipes.py CONFIG experiments/recipes.toml --dev dev.jsonl \\
        --corpus humaneval=FILE --corpus mbpp=FILE … --out runs/recipes
    python experiments/recipes.py … --choose

Every recipe is the config with its overrides (`[recipes.NAME] set = ["a.b=c"]`), trained on the corpora it names,
sampled and scored on the development tasks, like a fold of `rune crossfit` (same code). `like` takes another recipe's
checkpoints and changes only what comes after training, λ for instance. Choosing on evaluation tasks would be fitting
the answer, so a development task that HumanEval knows is refused. Writes result.md and result.json per recipe and
`recipes.md` over all; resumable, and recipes of several processes (`--only`) may share a folder.

`--choose` trains nothing. The rule, written before any recipe was drawn: of the finished recipes whose adapters differ
(mean pairwise cosine below 0.9), the one with the highest pass@1 of the gate's treatment at the first temperature. Its
overrides go to chosen.json.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from rune.stages._crossfit_decide import decide
from rune.stages._crossfit_folder import Place
from rune.stages._crossfit_folder import place as place_of

from rune import console, store
from rune.agent import importers
from rune.benchmarks import _exclusion
from rune.config import build, override, plain
from rune.stages import crossfit, pipeline
from rune.stages import train as training
from rune.store import RunDir
from rune.types import Problem, Split, Trajectory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument(
        "recipes", type=Path, help="TOML: set = […] for all, then [recipes.NAME] corpus = […], set = […], like = NAME"
    )
    parser.add_argument("--dev", type=Path, required=True, help="problems to choose on, JSONL")
    parser.add_argument("--corpus", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="recipes to run, in this order; default: all")
    parser.add_argument("--budget-seconds", type=float, default=0.0, help="begin no recipe after these")
    parser.add_argument("--choose", action="store_true", help="write chosen.json from what is finished")
    args = parser.parse_args()
    dev = [replace(p, split=Split.HELD_OUT) for p in store.read_jsonl(args.dev, Problem)]
    if evaluated := next((p for p in dev if _exclusion.canonical_id(p.task_id).startswith("HumanEval/")), None):
        parser.exit(2, f"recipes: {evaluated.task_id} is scored by the gate; choose on other tasks\n")
    given = tomllib.loads(args.recipes.read_text())
    recipes = {n: {**r, "set": [*given.get("set", ()), *r.get("set", ())]} for n, r in given["recipes"].items()}
    if args.choose:
        return choose(args.out, given["recipes"])
    corpora = {}
    for entry in args.corpus:
        name, _, file = entry.partition("=")
        corpora[name], report = _exclusion.decontaminate(importers.read(Path(file)), dev)
        console.note(f"{name}: {report.kept} of {report.examined} trajectories ({dict(report.dropped)})")
    machine = pipeline.Machinery(pipeline.load(args.config, given.get("set", ())))
    desk = training.Desk(machine.context())
    begun, rows = time.monotonic(), {}
    for name in args.only or recipes:
        if args.budget_seconds and time.monotonic() - begun > args.budget_seconds:
            console.warn(f"{name}: not begun, {args.budget_seconds:g} s are over")
            continue
        rows[name] = one(args.out, name, recipes[name], args.config, dev, corpora, machine, desk)
        store.write_atomic(args.out / "recipes.md", table(rows))
        console.out(table(rows))
    return 0


def one(
    out: Path,
    name: str,
    recipe: dict[str, Any],
    config: Path,
    dev: list[Problem],
    corpora: dict[str, list[Trajectory]],
    machine: pipeline.Machinery,
    desk: training.Desk,
) -> dict[str, Any]:
    """Train, sample and score one recipe; its result.json. Model and engine are the first recipe's."""
    raw = plain(pipeline.load(config))
    raw = override(raw, ["benchmark.folds=1", "crossfit.seeds=[0]", *recipe["set"]])
    settings = build(pipeline.RunConfig, {**raw, "run": {**raw["run"], "name": name, "folder": str(out)}})
    folder = RunDir.create(out, name, settings, extra={"recipe": recipe}, resume=True)
    if (folder / "result.json").exists():
        return dict(store.read_json(folder / "result.json"))
    place = place_of(folder, 0, 0)
    if "like" in recipe and not place.exists():
        source = next(out.glob(f"{recipe['like']}-*"))
        shutil.copytree(place_of(RunDir(source), 0, 0) / "checkpoints", place / "checkpoints")
    with folder.lock():
        context = machine.context()
        store.write_jsonl(folder / "problems.jsonl", dev)
        folder.update(model={"name": context.model().name, "sha256": context.model().digest})
        experiment = crossfit.Experiment(folder, settings, context, dev, parts=[[p.task_id for p in dev]], desk=desk)
        experiment.fold(Place(0, 0), [], [t for c in recipe["corpus"] for t in corpora[c]])
        crossfit.settle(folder, settings)
    return decide(folder, settings)


COSINE = 0.9  # the bound: adapters that are more alike count as collapsed


def choose(out: Path, recipes: dict[str, dict[str, Any]]) -> int:
    """The rule of the module's docstring."""
    results = {}
    for name in recipes:
        for folder in sorted(out.glob(f"{name}-????????")):
            if (folder / "result.json").exists():
                results[name] = store.read_json(folder / "result.json")
    store.write_atomic(out / "recipes.md", table(results))
    effects = {
        name: next(iter(result["temperatures"].values()))["pooled"]["decision"]["effect_points"]
        for name, result in results.items()
        if result["diagnostics"]["0"]["cosine_raw"] < COSINE
    }
    console.out(table(results))
    if not effects:
        console.warn(f"no finished recipe in {out} has a mean cosine below {COSINE}")
        return 10
    name = max(effects, key=lambda n: effects[n])
    store.write_json(out / "chosen.json", {"name": name, "set": recipes[name]["set"], "of": sorted(results)})
    console.out(f"chosen: {name}")
    return 0


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line a recipe: pass@1 of each arm at the first temperature, the differences, the cosine."""
    lines = []
    for name, result in results.items():
        decision = next(iter(result["temperatures"].values()))["pooled"]["decision"]
        arms = {a["condition"]: 100 * a["pass_at_1"] for a in decision["arms"]}
        if not lines:
            names = list(arms)
            lines += [
                f"| recipe | {' | '.join(names)} | cosine | ‖ΔW‖ | seconds |",
                f"|---|{'---:|' * (len(names) + 3)}",
            ]
        seen = result["diagnostics"].get("0", {})
        cells = [f"{arms[a]:.1f}" if a in arms else "–" for a in names]
        lines.append(
            f"| {name} | {' | '.join(cells)} | {seen.get('cosine_raw') or 0:.3f} | {seen.get('delta_w_norm') or 0:.2f} "
            f"| {sum(s or 0 for s in result['seconds'].values()):.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
