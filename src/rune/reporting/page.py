"""A report as HTML and Markdown: the templates of this folder, filled. Matplotlib and Jinja2, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rune.analysis import evidence
from rune.config import plain
from rune.reporting import figures as _figures
from rune.reporting import tables, variants, words
from rune.reporting.data import Report

TEMPLATES = Path(__file__).with_name("templates")


def figures(report: Report) -> dict[str, Any]:
    """Name → SVG; a figure whose data is missing is absent."""
    d = report.decision
    rows = [
        {"name": c.name, "points": c.points, "low": c.interval.low, "high": c.interval.high, "role": c.role}
        for c in d.contrasts
    ]
    passes = d.details["passes"]
    order = {task: i for i, task in enumerate(d.details["tasks"])}
    by_task = {arm: [c[order[t.task_id]] for t in report.tasks] for arm, c in passes.items()}
    power = d.details["power"]
    drawn: dict[str, Any] = {
        "forest": _figures.forest(rows, d.threshold_points, narrow=False, measure=d.scorer.measure()),
        "forest_narrow": _figures.forest(rows, d.threshold_points, narrow=True),
        "strip": _figures.strip([t.task_id for t in report.tasks], by_task, d.details["n"]),
        "power": _figures.power_curve(power["curve"], d.threshold_points, d.effect_points),
    }
    if d.details["n"] > 1:
        drawn["curves"] = _figures.curves({a.condition: a.pass_curve for a in d.arms})
    measured = report.diagnostics["arms"]
    norms = {arm: found["frobenius"] for arm, found in measured.items() if found.get("frobenius")}
    if norms:
        drawn["profile"] = _figures.profile(norms)
    main = measured.get(report.primary.treatment, {})
    raw, centred = (main.get(key, {}).get("matrix", []) for key in ("cosine_raw", "cosine_centred"))
    if len(raw) > 1 and len(centred) > 1:
        drawn["cosines"] = _figures.cosines(raw, centred)
    drawn["losses"] = [(t.name, _figures.losses(t.name, t.steps, t.terms)) for t in report.training]
    if report.corpus:
        drawn["corpus"] = [
            (group, _figures.bars(f"corpus-{group}", f"Trajectories by {group}", found))
            for group, found in report.corpus.items()
            if group != "totals" and len(found) > 1
        ]
    return drawn


def view(report: Report, *, claim: bool, leakage_rows: int) -> dict[str, Any]:
    table1, controls = tables.scores(report)
    every = variants.read(report.result) if report.result else []
    table2, norms = tables.adapters(report)
    return {
        "r": report,
        "d": report.decision,
        "primary": report.primary,
        "minute": words.minute(report),
        "banner": words.banner(report, claim=claim),
        "base": words.base(report.manifest),
        "phase": words.phase(report.manifest.get("phase", {})),
        "overrides": words.overrides(report.manifest.get("phase", {})),
        "table1": table1,
        "controls": controls,
        "named": tables.named(report),
        "contrasts": tables.contrasts(report),
        "table2": table2,
        "norms": norms,
        "swaps": tables.swaps(report),
        "donors": tables.donors(report),
        "leakage_table": tables.leakage(report, leakage_rows),
        "corpus_table": tables.corpus(report),
        "task_table": tables.task_counts(report),
        "hier": report.decision.details["hierarchical"]["effect"],
        "power": report.decision.details["power"],
        "promise": plain(report.preregistration),
        "environment": report.manifest.get("environment", {}),
        "stages": report.manifest.get("stages", {}),
        "variants": every if len(every) > 1 else [],
        "variants_table": variants.overview(every) if every else None,
        "grade": evidence.grade_in_words(report.decision.grade, report.primary),
    }


def render(name: str, view: Mapping[str, Any]) -> str:
    """A template of this folder as text. HTML is escaped, Markdown is not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        points=evidence.points,
        span=evidence.span,
        percent=tables.percent,
        chance=evidence.chance,
        p_equals=evidence.p_equals,
        markdown=tables.markdown,
        meaning=tables.meaning,
        told=evidence.told,
        svg=Markup,
    )
    return environment.get_template(name).render(
        **view, style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8"))
    )
