"""The variants of an experiment, from result.json: a row each, and each one's own tables; for report and result.md.

The first variant decides; the report's other sections are about it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rune.analysis import evidence
from rune.reporting.tables import Table
from rune.runs import store
from rune.types import Contrast, Decision, Interval


class Variant(NamedTuple):
    """One of them, as a page shows it."""

    title: str
    decision: Decision  # all seeds together
    tables: tuple[Table, ...]  # arms, differences, seed by seed
    adapters: Table | None  # None where they were not measured
    suspicious: tuple[str, ...]  # tasks


def read(result: Mapping[str, Any]) -> list[Variant]:
    """All variants of a result.json, in its order."""
    found = []
    for name, raw in result["variants"].items():
        pooled = decision_of(raw["pooled"])
        found.append(
            Variant(
                title=title(name, raw["settings"]),
                decision=pooled,
                tables=(arms_table(pooled), contrasts_table(pooled), seeds_table(raw["seeds"])),
                adapters=adapters_table(raw["diagnostics"]) if raw["diagnostics"] else None,
                suspicious=tuple(raw["pooled"]["suspicious"]),
            )
        )
    return found


def overview(variants: list[Variant]) -> Table:
    """One row a variant: the two rates, the differences that matter, and its own decision."""
    first = variants[0].decision.contrasts[0]
    rows = []
    for variant in variants:
        found = variant.decision
        rates = {a.condition: f"{100 * a.pass_at_1:.1f}" for a in found.arms}
        wrong = next((c for c in found.contrasts if c.baseline == "wrong_trajectory"), None)
        differences = [difference(c) if c else "–" for c in (found.contrasts[0], wrong)]
        gated = (rates.get(first.baseline, "–"), rates.get(first.treatment, "–"))
        rows.append((variant.title, *gated, *differences, f"{found.answer}: {why(found)}"))
    return Table(
        "Variants",
        ("variant", f"{first.baseline}, %", f"{first.treatment}, %", "effect, points", "right − wrong", "answer"),
        tuple(rows),
        f"The first one decides and is what the rest of this page is about. {interval(variants[0].decision)}.",
    )


def decision_of(found: Mapping[str, Any]) -> Decision:
    return store.decode(Decision, found["decision"], where="result.json")


def title(name: str, settings: Mapping[str, Any]) -> str:
    if set(settings) == {"sample.temperature"}:
        return f"Temperature {settings['sample.temperature']:g}"
    return name if not settings else f"{name}: " + ", ".join(f"{k} = {v}" for k, v in settings.items())


def arms_table(decision: Decision) -> Table:
    rows = [
        (
            a.condition,
            f"{100 * a.pass_at_1:.1f}",
            f"{a.interval.low:.1f} – {a.interval.high:.1f}",
            f"{a.num_passed} / {a.num_samples}",
        )
        for a in decision.arms
    ]
    return Table("Arms", ("arm", f"{decision.scorer.measure()}, %", interval(decision), "passed / draws"), tuple(rows))


def contrasts_table(decision: Decision) -> Table:
    rows = [
        (
            c.name,
            evidence.points(c.points),
            evidence.span(c.interval),
            evidence.p_promised(c),
            "–" if c.p_adjusted is None else evidence.p_text(c.p_adjusted),
        )
        for c in decision.contrasts
    ]
    return Table(
        "Paired differences, points",
        ("contrast", "points", interval(decision), "p, over tasks", "p, Holm"),
        tuple(rows),
    )


def seeds_table(seeds: Mapping[str, Any]) -> Table:
    decisions = {seed: decision_of(found) for seed, found in seeds.items()}
    contrasts = next(iter(decisions.values())).contrasts
    shown = [c.name for c in contrasts if c.treatment == contrasts[0].treatment]
    rows = []
    for seed, decision in decisions.items():
        by_name = {c.name: c for c in decision.contrasts}
        rows.append((seed, decision.answer, *(difference(by_name[n]) for n in shown)))
    return Table(f"Seed by seed, {interval(next(iter(decisions.values())))}", ("seed", "answer", *shown), tuple(rows))


def adapters_table(diagnostics: Mapping[str, Any]) -> Table:
    rows = [
        (
            seed,
            number(d["cosine_raw"], 4),
            number(d["cosine_centred"], 4),
            number(d["effective_rank"], 1),
            number(d["delta_w_norm"], 2),
            number(d["swap_mean_lead_nats"], 2),
        )
        for seed, d in diagnostics.items()
    ]
    header = ("seed", "mean cosine of ΔW", "mean-centred", "effective rank", "‖ΔW‖_F", "own − swapped, nats")
    return Table("Adapters", header, tuple(rows))


def difference(contrast: Contrast) -> str:
    return f"{evidence.points(contrast.points)} {evidence.span(contrast.interval)}"


def interval(decision: Decision) -> str:
    """ "95 % interval over tasks and trainings"."""
    return interval_said(decision.contrasts[0].interval)


def interval_said(found: Interval) -> str:
    return f"{100 * found.level:g} % interval over {found.over}"


def why(decision: Decision) -> str:
    """The evidence's first clause: a pass that is no trajectory's says so wherever the answer stands."""
    clause = decision.evidence.partition(";")[0]
    return clause[:1].lower() + clause[1:]


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
