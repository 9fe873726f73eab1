"""result.md of a cross-fitted run, from its result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rune.stages import _evidence
from rune.stages._report_tables import Table, markdown
from rune.types import Interval


def page(result: Mapping[str, Any]) -> str:
    """Each temperature: the pooled answer, arms, contrasts, one line a seed; then the adapters."""
    model, seeds = result["model"] or {}, result["seeds"]
    lines = [
        f"# {result['name']}",
        "",
        f"`{model.get('name')}` (sha256 `{str(model.get('sha256'))[:12]}`), {result['device']}; "
        f"{result['folds']} folds, every task held out once, seeds {', '.join(map(str, seeds))}.",
    ]
    for temperature, found in result["temperatures"].items():
        pooled = found["pooled"]["decision"]
        lines += [
            "",
            f"## Temperature {temperature}",
            "",
            f"**{pooled['answer']}** over all seeds together. {pooled['evidence']}",
        ]
        for table in (_arms(pooled), _contrasts(pooled), _seeds(found["seeds"])):
            lines += ["", f"### {table.title}", "", markdown(table)]
        if suspicious := found["pooled"]["suspicious"]:
            lines += ["", f"Suspicious in the leakage check: {', '.join(suspicious)}."]
    if result["diagnostics"]:
        lines += ["", "## Adapters", "", markdown(_adapters(result["diagnostics"]))]
    return "\n".join(lines) + "\n"


def brief(result: Mapping[str, Any]) -> str:
    """The README's version: one row a temperature, the answer and the two differences that matter."""
    shown = ("vanilla", "rag", "lora", "static", "hypernet", "wrong_trajectory")
    header = ("temperature", *shown, "effect, points", "right − wrong", "answer")
    rows = []
    for temperature, found in result["temperatures"].items():
        pooled = found["pooled"]["decision"]
        arms = {a["condition"]: f"{100 * a['pass_at_1']:.1f}" for a in pooled["arms"]}
        effect = pooled["contrasts"][0]
        wrong = next((c for c in pooled["contrasts"] if c["baseline"] == "wrong_trajectory"), None)
        cells = [f"{_evidence.points(c['points'])} {_span(c['interval'])}" if c else "–" for c in (effect, wrong)]
        answer = f"**{pooled['answer']}**: {_why(pooled)}"
        rows.append((temperature, *(arms.get(a, "–") for a in shown), *cells, answer))
    cosine = _number(_mean([d["cosine_raw"] for d in result["diagnostics"].values()]), 3)
    tasks = len(next(iter(result["temperatures"].values()))["pooled"]["decision"]["details"]["tasks"])
    return (
        f"{markdown(Table('', header, tuple(rows)))}\n\npass@1 in %, {tasks} tasks, each held out once in "
        f"{result['folds']} folds, training seeds: {', '.join(map(str, result['seeds']))}; {result['device']}; mean "
        f"cosine of the generated ΔW {cosine}."
    )


def _why(decision: Mapping[str, Any]) -> str:
    """The evidence's first clause: a pass that is no trajectory's says so wherever the answer stands."""
    clause = str(decision["evidence"]).partition(";")[0]
    return clause[:1].lower() + clause[1:]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _arms(decision: Mapping[str, Any]) -> Table:
    rows = [
        (
            a["condition"],
            f"{100 * a['pass_at_1']:.1f}",
            f"{a['interval']['low']:.1f} – {a['interval']['high']:.1f}",
            f"{a['num_passed']} / {a['num_samples']}",
        )
        for a in decision["arms"]
    ]
    return Table("Arms", ("arm", "pass@1, %", "95 % interval", "passed / draws"), tuple(rows))


def _contrasts(decision: Mapping[str, Any]) -> Table:
    rows = [
        (c["name"], _evidence.points(c["points"]), _span(c["interval"]), f"{c['p_value']:.3f}", _adjusted(c))
        for c in decision["contrasts"]
    ]
    return Table("Paired differences, points", ("contrast", "points", "95 % interval", "p", "p, Holm"), tuple(rows))


def _adjusted(contrast: Mapping[str, Any]) -> str:
    return "–" if contrast["p_adjusted"] is None else f"{contrast['p_adjusted']:.3f}"


def _seeds(seeds: Mapping[str, Any]) -> Table:
    names: Sequence[str] = [c["name"] for c in next(iter(seeds.values()))["decision"]["contrasts"]]
    shown = [n for n in names if n.partition(" − ")[0] == names[0].partition(" − ")[0]]
    rows = []
    for seed, found in seeds.items():
        by_name = {c["name"]: c for c in found["decision"]["contrasts"]}
        cells = [f"{_evidence.points(by_name[n]['points'])} {_span(by_name[n]['interval'])}" for n in shown]
        rows.append((seed, found["decision"]["answer"], *cells))
    return Table("Seed by seed", ("seed", "answer", *shown), tuple(rows))


def _adapters(diagnostics: Mapping[str, Any]) -> Table:
    rows = [
        (
            seed,
            _number(d["cosine_raw"], 4),
            _number(d["cosine_centred"], 4),
            _number(d["effective_rank"], 1),
            _number(d["delta_w_norm"], 2),
            _number(d["swap_mean_lead_nats"], 2),
        )
        for seed, d in diagnostics.items()
    ]
    header = ("seed", "mean cosine of ΔW", "mean-centred", "effective rank", "‖ΔW‖_F", "own − swapped, nats")
    return Table("Adapters", header, tuple(rows))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _span(interval: Mapping[str, float]) -> str:
    return _evidence.span(Interval(**interval))
