"""Several decided runs (seeds, models, ablations) in one table and one plot. From their decisions and configs only.

Says what is the same and what differs between the runs' settings, so that nobody compares apples with pears
unawares. It pools nothing: runs share tasks, so their effects are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune import config
from rune.analysis import evidence
from rune.reporting import figures
from rune.reporting.tables import Table, markdown, percent
from rune.runs import store
from rune.types import Contrast, Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One run in a comparison."""

    name: str
    decision: Decision
    settings: Mapping[str, Any]  # "gate.n" → 5
    tasks: str  # digest of the held-out task ids


def entry(name: str, decision: Decision, raw: Mapping[str, Any]) -> Entry:
    """One decided run; `raw` is its config."""
    return Entry(
        name=name, decision=decision, settings=_flat(raw), tasks=config.digest(sorted(decision.details["tasks"]))
    )


def table(entries: Sequence[Entry]) -> Table:
    """One row per run: the answer, the effect, right − wrong."""
    return Table(
        "Runs side by side",
        (
            "run",
            "answer",
            "counted",
            "tasks × draws",
            "base",
            "treated",
            "effect, points",
            "right − wrong",
        ),
        tuple(_row(e.name, e.decision) for e in entries),
        spread(entries),
    )


def _row(name: str, d: Decision) -> tuple[str, ...]:
    first = d.contrasts[0]
    arms = {a.condition: a.pass_at_1 for a in d.arms}
    wrong = _wrong(d)
    return (
        name,
        d.answer,
        d.scorer.measure(),
        f"{len(d.details['tasks'])} × {d.details['n']}",
        percent(arms[first.baseline]),
        percent(arms[first.treatment]),
        f"{evidence.points(first.points)} {evidence.span(first.interval)}",
        f"{evidence.points(wrong.points)} {evidence.span(wrong.interval)}" if wrong else "not measured",
    )


def spread(entries: Sequence[Entry]) -> str:
    """How far the runs lie apart, and whether they are comparable at all."""
    effects = [e.decision.effect_points for e in entries]
    mean = math.fsum(effects) / len(effects)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in effects) / (len(effects) - 1))
    passed = sum(e.decision.passed for e in entries)
    same = len({e.tasks for e in entries}) == 1
    tasks = "all on the same tasks" if same else "NOT on the same tasks: differences mix effect and difficulty"
    if len(counted := sorted({e.decision.scorer.measure() for e in entries})) > 1:
        tasks += f"; NOT counted alike: {', '.join(counted)}"
    return (
        f"{passed} of {len(entries)} passed; effect {evidence.points(mean)} points on average, standard deviation "
        f"between runs {deviation:.1f}; {tasks}."
    )


def differences(entries: Sequence[Entry]) -> Table:
    """Settings that are not the same in all runs, a missing one as "–"."""
    keys = dict.fromkeys(k for e in entries for k in e.settings)
    differing = [k for k in keys if len({str(e.settings.get(k)) for e in entries}) > 1 and k != "run.name"]
    rows = tuple((k, *(str(e.settings.get(k, "–")) for e in entries)) for k in differing)
    return Table("Settings that differ", ("setting", *(e.name for e in entries)), rows)


def write(entries: Sequence[Entry], output: Path) -> Path:
    """compare.html, compare.md and compare.json in `output`."""
    from rune.reporting.page import render

    runs, settings = table(entries), differences(entries)
    store.write_json(output / "compare.json", {e.name: e.decision for e in entries})
    store.write_atomic(
        output / "compare.md",
        f"# {runs.title}\n\n{markdown(runs)}\n\n{runs.note}\n\n## {settings.title}\n\n"
        f"{markdown(settings) if settings.rows else 'None.'}\n",
    )
    view = {"runs": runs, "settings": settings, "forest": _plot(entries, False), "forest_narrow": _plot(entries, True)}
    store.write_atomic(output / "compare.html", render("compare.html.j2", view))
    return output / "compare.html"


def _plot(entries: Sequence[Entry], narrow: bool) -> str:
    rows = []
    counted = sorted({e.decision.scorer.measure() for e in entries})
    for entry in entries:
        shown: list[tuple[str, Contrast | None, str]] = [
            (entry.name, entry.decision.contrasts[0], "primary"),
            ("  right − wrong", _wrong(entry.decision), "secondary"),
        ]
        rows += [
            {"name": label, "points": c.points, "low": c.interval.low, "high": c.interval.high, "role": role}
            for label, c, role in shown
            if c
        ]
    return figures.forest(rows, entries[0].decision.threshold_points, narrow=narrow, measure=" or ".join(counted))


def _wrong(decision: Decision) -> Contrast | None:
    return next((c for c in decision.contrasts if c.baseline == "wrong_trajectory"), None)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return flat
