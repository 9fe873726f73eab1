"""result.md of an experiment of several cells, and its block for a README, from result.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rune.analysis import evidence
from rune.analysis.relative import Loss
from rune.models import identity
from rune.reporting import variants, words
from rune.reporting.tables import Table, markdown
from rune.runs import store

SHOWN = ("vanilla", "rag", "lora", "static", "hypernet", "wrong_trajectory")  # in the README's block


def page(result: Mapping[str, Any]) -> str:
    """Each variant: the pooled answer, arms, contrasts, one line a seed; then the adapters."""
    model, seeds = result["model"] or {}, result["seeds"]
    lines = [
        f"# {result['name']}",
        "",
        f"`{model.get('name')}` (sha256 `{str(model.get('sha256'))[:12]}`), "
        f"{identity.words(model, str(result.get('dtype') or ''))}, {result['device']}; "
        f"{_how(result)}, seeds {', '.join(map(str, seeds))}.",
        *(["", f"{said}."] if (said := words.phase(result.get("phase", {}))) else []),
        *(line for one in words.overrides(result.get("phase", {})) for line in ("", f"**{one}.**")),
    ]
    if "losses" in result:
        title = f"**{result['answer']}**: pass@1 may lose less than {result['most_loss']:g} %."
        lines += ["", "## What each arm loses", "", title, "", markdown(_losses(result))]
    for variant in variants.read(result):
        lines += [
            "",
            f"## {variant.title}",
            "",
            f"**{variant.decision.answer}** over all seeds together. {variant.decision.evidence}",
        ]
        for table in variant.tables:
            lines += ["", f"### {table.title}", "", markdown(table)]
        if variant.suspicious:
            lines += ["", f"Suspicious in the leakage check: {', '.join(variant.suspicious)}."]
        if variant.adapters:
            lines += ["", "### Adapters", "", markdown(variant.adapters)]
    return "\n".join(lines) + "\n"


def _how(result: Mapping[str, Any]) -> str:
    if result["folds"] > 1:
        return f"{result['folds']} folds, every task held out once"
    return "one held-out split"


def brief(result: Mapping[str, Any]) -> str:
    """The README's version: one row a variant, the answer and the two differences that matter."""
    only_heat = all(set(v["settings"]) == {"sample.temperature"} for v in result["variants"].values())
    header = ("temperature" if only_heat else "variant", *SHOWN, "effect, points", "right − wrong", "answer")
    rows, cosines, tasks, measure = [], [], 0, ""
    for name, found in result["variants"].items():
        pooled = variants.decision_of(found["pooled"])
        tasks, measure = len(pooled.details["tasks"]), pooled.scorer.measure()
        arms = {a.condition: f"{100 * a.pass_at_1:.1f}" for a in pooled.arms}
        wrong = next((c for c in pooled.contrasts if c.baseline == "wrong_trajectory"), None)
        cells = [variants.difference(c) if c else "–" for c in (pooled.contrasts[0], wrong)]
        label = f"{found['settings']['sample.temperature']:g}" if only_heat else name
        rows.append((label, *(arms.get(a, "–") for a in SHOWN), *cells, f"**{pooled.answer}**: {variants.why(pooled)}"))
        cosines += [d["cosine_raw"] for d in found["diagnostics"].values()]
    held = f"each held out once in {result['folds']} folds" if result["folds"] > 1 else "held out"
    first = variants.decision_of(next(iter(result["variants"].values()))["pooled"])
    said = "".join(f"\n\n**{one}.**" for one in words.overrides(result.get("phase", {})))
    return (
        f"{markdown(Table('', header, tuple(rows)))}\n\n{measure} in %, {tasks} tasks, {held}, training seeds: "
        f"{', '.join(map(str, result['seeds']))}; {result['device']}; mean cosine of the generated ΔW "
        f"{variants.number(mean(cosines), 3)}; {variants.interval(first)}.{said}"
    )


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that were measured; None if none was."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _losses(result: Mapping[str, Any]) -> Table:
    """Relative loss of pass@1 against the first variant, percent, by arm."""
    first = next(iter(result["variants"]))
    losses = [store.decode(Loss, raw, where="result.json") for raw in result["losses"]]
    rows = []
    for loss in losses:
        shares = (f"{100 * loss.reference_pass_at_1:.1f}", f"{100 * loss.pass_at_1:.1f}")
        rows.append(
            (loss.condition, loss.variant, *shares, evidence.points(loss.percent), evidence.span(loss.interval))
        )
    over = variants.interval_said(losses[0].interval)
    header = ("arm", "variant", f"{first}, %", "variant, %", "loss, %", over)
    return Table("", header, tuple(rows))
