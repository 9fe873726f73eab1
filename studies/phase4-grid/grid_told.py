"""The grid's table and heat map: result.json, result.md and heat.svg from the cells that were scored.

Given the memory study's result.json too, whole.md: Phase 4's one table, with α, composition and merges beside the grid.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rune import config, console, plugins
from rune.adapters.factors import LoraTargets
from rune.analysis import stats
from rune.hypernet import model
from rune.runs import store
from rune.types import Outcome, Verdict

FIRST = "perceiver"
RESAMPLES = 10_000
COSTS = {"train", "adapt", "sample"}
AXES = {
    "hierarchical": "encoder", "recurrent": "encoder", "mean_pool": "encoder",
    "strength-half": "strength λ", "strength-three-halves": "strength λ",
    "without-attempts": "input", "without-errors": "input",
    "rank-2": "rank", "two-modules": "modules", "target-contrast": "loss", "without-lesson": "loss",
}  # fmt: skip


def tell(run: Path, out: Path, memory: Path | None) -> None:
    """`run`: the experiment's folder, or what of it came back. `memory`: the memory study's result.json."""
    leads: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)  # variant → seed → task → right − wrong
    arms: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)  # variant → seed → arm → pass@1
    seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for cell in sorted((run / "cells").iterdir()):
        manifest = store.read_json(cell / "manifest.json")
        if not (cell / "verdicts.jsonl").exists() or "score" not in manifest.get("stages", {}):
            continue
        variant, seed = manifest["cell"]["variant"], int(manifest["cell"]["seed"])
        hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for v in store.read_jsonl(cell / "verdicts.jsonl", Verdict):
            hits[v.condition, v.task_id].append(v.outcome is Outcome.PASSED)
        rates = {key: sum(some) / len(some) for key, some in hits.items()}
        tasks = sorted({task for arm, task in rates if arm == "hypernet"})
        leads[variant][seed] = {t: rates["hypernet", t] - rates["wrong_trajectory", t] for t in tasks}
        arms[variant][seed] = {
            arm: 100 * float(np.mean([r for (a, _), r in rates.items() if a == arm]))
            for arm in sorted({a for a, _ in rates})
        }
        seconds[variant].append(took(run, manifest))
        sizes.setdefault(variant, parameters(cell))
    order = [v for v in variants(run) if v in leads]
    result: dict[str, Any] = {"seeds": {v: sorted(leads[v]) for v in order}, "arms": arms, "parameters": sizes}
    result["right − wrong"] = {v: interval(leads[v], None) for v in order}
    result["against"] = {
        v: interval(leads[v], leads[FIRST])
        for v in order
        if v != FIRST and leads[v].keys() & leads.get(FIRST, {}).keys()
    }
    tested = {v: row["p"] for v, row in result["against"].items() if row["seeds"] > 1}
    result["Holm"] = holm(tested)
    result["seconds"] = {
        v: {stage: float(np.mean([one.get(stage, math.nan) for one in some])) for stage in sorted(COSTS)}
        for v, some in seconds.items()
    }
    result["losses"] = {v: losses(run, v) for v in order}
    out.mkdir(parents=True, exist_ok=True)
    store.write_json(out / "result.json", result)
    store.write_atomic(out / "result.md", table(result))
    heat(out / "heat.svg", leads, order)
    console.out(table(result))
    if memory:
        store.write_atomic(out / "whole.md", whole(result, store.read_json(memory)))
        console.out((out / "whole.md").read_text(encoding="utf-8"))


def domain(task_id: str) -> str:
    """The convention of a task, "families/CONVENTION/NUMBER"."""
    return task_id.split("/")[1]


def variants(run: Path) -> list[str]:
    """In the config's order."""
    return list(dict.fromkeys(name.rsplit(".seed-", 1)[0] for name in store.read_json(run / "manifest.json")["cells"]))


def took(run: Path, manifest: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of COSTS; of a stage that was taken over from another cell, what it took there."""
    found = {}
    for name in COSTS & manifest["stages"].keys():
        stage = manifest["stages"][name]
        if "same_as" in stage:
            stage = store.read_json(run / "cells" / stage["same_as"] / "manifest.json")["stages"][name]
        if "seconds" in stage:
            found[name] = float(stage["seconds"])
    return found


def parameters(cell: Path) -> int:
    """Trained numbers of the cell's hypernetwork, static part left out; 0 without its settings."""
    path = cell / "checkpoints" / "hypernet" / "settings.json"
    if not path.exists():
        return 0
    known = store.read_json(path)
    asked = known["hypernet"]
    encoder = plugins.load("encoders", asked["encoder"])
    settings = config.build(encoder.Config, asked["encoder_settings"], where="encoder_settings")
    made = model.make(
        LoraTargets.parse(known["layout"]), encoder=encoder, encoder_config=settings, taps=len(asked["taps"]),
        rank=asked["rank"], alpha=asked["alpha"], inputs=asked["inputs"],
    )  # fmt: skip
    return sum(p.numel() for p in made.parameters())


def losses(run: Path, variant: str) -> float | None:
    """Cross-entropy over the last tenth of phase B, mean over seeds, nats a token."""
    found = []
    for path in sorted((run / "cells").glob(f"{variant}.seed-*/checkpoints/metrics.jsonl")):
        rows = [r for _, r in store.read_lines(path) if r.get("phase") == "hypernet" and "cross_entropy" in r]
        if rows:
            found.append(float(np.mean([r["cross_entropy"] for r in rows[-max(1, len(rows) // 10) :]])))
    return float(np.mean(found)) if found else None


def interval(own: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]] | None) -> dict[str, Any]:
    """Mean of right − wrong, or of its difference to another variant's, paired by task and seed, in points.

    Conventions and seeds are drawn anew, each for itself; p is two-sided, from the share of resamples beyond zero.
    """
    seeds = sorted(own.keys() & other.keys()) if other is not None else sorted(own)
    sums: list[dict[str, float]] = []
    counts: list[dict[str, int]] = []
    for seed in seeds:
        total: dict[str, float] = defaultdict(float)
        count: dict[str, int] = defaultdict(int)
        for task, value in own[seed].items():
            if other is None or task in other[seed]:
                total[domain(task)] += value - (other[seed][task] if other is not None else 0.0)
                count[domain(task)] += 1
        sums.append(total)
        counts.append(count)
    names = sorted(set.intersection(*(set(one) for one in sums)))
    sums_SD = 100 * np.array([[one[d] for d in names] for one in sums])
    counts_SD = np.array([[one[d] for d in names] for one in counts])
    seeds_RS = stats.task_weights(len(seeds), RESAMPLES, 1)
    domains_RD = stats.task_weights(len(names), RESAMPLES, 2)
    means_R, tasks_R = (np.einsum("rs,sd,rd->r", seeds_RS, some, domains_RD) for some in (sums_SD, counts_SD))
    means_R = means_R / tasks_R
    beyond = min(float((means_R <= 0).mean()), float((means_R >= 0).mean()))
    return {
        "points": float(sums_SD.sum() / counts_SD.sum()), "low": float(np.quantile(means_R, 0.025)),
        "high": float(np.quantile(means_R, 0.975)), "p": min(1.0, 2 * max(beyond, 1 / RESAMPLES)),
        "seeds": len(seeds), "conventions": len(names),
        "by seed": [float(v) for v in sums_SD.sum(1) / counts_SD.sum(1)],
    }  # fmt: skip


def holm(found: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values (Holm 1979)."""
    order = sorted(found, key=lambda name: found[name])
    adjusted, least = {}, 0.0
    for at, name in enumerate(order):
        least = max(least, min(1.0, (len(order) - at) * found[name]))
        adjusted[name] = least
    return adjusted


def table(result: Mapping[str, Any]) -> str:
    lines = [
        "Right − wrong is pass@1 with adapters from the task's own convention less with adapters from another one's, "
        "in points; 95 % over conventions and seeds. Seconds of training, and of making both arms' adapters, are those "
        "of three cells beside each other on one GPU, with merges beside them.", "",
        "| variant | seeds | own | wrong | bare | right − wrong | by seed | less `perceiver` | p, Holm | last loss "
        "| parameters | s training | s adapters |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, row in result["right − wrong"].items():
        arms = result["arms"][name].values()
        cells = [f"{np.mean([one[arm] for one in arms]):.1f}" for arm in ("hypernet", "wrong_trajectory", "vanilla")]
        against = result["against"].get(name)
        lead = f"{against['points']:+.1f} [{against['low']:+.1f}, {against['high']:+.1f}]" if against else "–"
        adjusted = result["Holm"].get(name)
        loss, size = result["losses"][name], result["parameters"].get(name, 0)
        lines.append(
            f"| {name} | {row['seeds']} | " + " | ".join(cells) + f" | {row['points']:.1f} [{row['low']:.1f}, "
            f"{row['high']:.1f}] | {' · '.join(f'{v:.0f}' for v in row['by seed'])} | {lead} | "
            f"{'–' if adjusted is None else f'{adjusted:.3f}'} | {'–' if loss is None else f'{loss:.3f}'} | "
            f"{size / 1e6:.1f} M | {result['seconds'][name]['train']:.0f} | {result['seconds'][name]['adapt']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def whole(result: Mapping[str, Any], memory: Mapping[str, Any]) -> str:
    """Every variant of Phase 4 in one table, a row an effect; Holm over all that can be tested.

    The grid measures right − wrong on conventions, the memory UPass on updates: effects of two axes are not compared.
    """
    rows: list[dict[str, Any]] = [
        {
            "axis": AXES.get(name, "?"), "variant": name, "against": FIRST,
            "units": f"{row['conventions']} conventions, {row['seeds']} seeds",
            "seconds": result["seconds"][name]["train"], "parameters": result["parameters"][name], **row,
        }
        for name, row in result["against"].items()
    ]  # fmt: skip
    rows += [{"seconds": None, **row} for row in memory["effects"]]
    adjusted = holm({str(n): row["p"] for n, row in enumerate(rows) if row.get("seeds", 2) > 1})
    lines = [
        "Paired effects in points, 95 % over conventions and seeds, or over releases (one seed). p is two-sided, by "
        "bootstrap, Holm over all rows but those of one seed of training. Parameters: what the hypernetwork trains; of "
        "the memory, what the adapter holds. Seconds of training, one cell.", "",
        "| axis | variant | less | points | over | p, Holm | parameters | s |", "|---|---|---|---:|---|---:|---:|---:|",
    ]  # fmt: skip
    for n, row in enumerate(rows):
        p, seconds = adjusted.get(str(n)), row["seconds"]
        lines.append(
            f"| {row['axis']} | {row['variant']} | {row['against']} | {row['points']:+.1f} [{row['low']:+.1f}, "
            f"{row['high']:+.1f}] | {row['units']} | {'–' if p is None else f'{p:.3f}'} "
            f"| {row['parameters'] / 1e6:.1f} M | {'–' if seconds is None else f'{seconds:.0f}'} |"
        )
    return "\n".join(lines) + "\n"


def heat(path: Path, leads: Mapping[str, Mapping[int, Mapping[str, float]]], order: Sequence[str]) -> None:
    """Right − wrong of each variant and seed, by the kind of data that the convention is about."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = [(variant, seed) for variant in order for seed in sorted(leads[variant])]
    kinds = sorted({domain(t).partition(".")[0] for v in leads.values() for s in v.values() for t in s})
    values = np.full((len(rows), len(kinds) + 1), np.nan)
    for at, (variant, seed) in enumerate(rows):
        per: dict[str, list[float]] = defaultdict(list)
        for task, value in leads[variant][seed].items():
            per[domain(task).partition(".")[0]].append(100 * value)
        for column, kind in enumerate(kinds):
            values[at, column] = np.mean(per[kind]) if per[kind] else np.nan
        values[at, -1] = np.mean([v for some in per.values() for v in some])
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "grid"}):
        drawing = Figure(figsize=(5.2, 0.9 + 0.26 * len(rows)), layout="constrained")
        axes = drawing.subplots()
        axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if not np.isnan(value):
                    colour = "white" if value > 60 else "black"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(kinds) + 1), [*kinds, "all"], fontsize=9)
        axes.set_yticks(range(len(rows)), [f"{variant}, seed {seed}" for variant, seed in rows], fontsize=8)
        axes.set_title("right − wrong, points", fontsize=10)
        drawing.savefig(path, format="svg", metadata={"Date": None})
