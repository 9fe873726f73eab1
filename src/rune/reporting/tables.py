"""The report's tables, formatted once for HTML, Markdown and the README.

Reading of the specification: **Table 1** holds pass@1 of the four conditions (or what else the run counts) with
intervals and differences to the bare model; **Table 2** holds the adapter diagnostics: ‖ΔW‖_F per module type, cosine
diversity, training loss and plateau. Controls stand in a table of their own, so that neither is mistaken for the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rune.adapters.modules import MODULES
from rune.analysis import evidence
from rune.reporting.data import CONDITIONS, COUNTED, MEANING, Report, Training
from rune.types import ArmScore, Contrast

NONE = "not measured"
_STEPS_FOR_A_PLATEAU = 20  # with fewer, where a loss stopped falling cannot be told


class Table(NamedTuple):
    """Cells are text already; the first column is a heading for its row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def scores(report: Report) -> tuple[Table, Table | None]:
    """Table 1, and the controls' twin of it if there are any."""
    arms = {a.condition: a for a in report.decision.arms}
    base = report.primary.baseline
    main = [a for a in CONDITIONS if a in arms]
    if report.primary.treatment not in main:
        main.append(report.primary.treatment)
    control = [a for a in arms if a not in main]
    level = f"{100 * report.primary.interval.level:g} % interval"
    scorer = report.decision.scorer
    measure = scorer.measure()
    header = ("condition", measure, level, "passed / draws", f"Δ {base}, points", f"Δ {level}", "relative")
    vs = {c.treatment: c for c in report.decision.contrasts if c.baseline == base}
    note = (
        f"{measure} is the mean over {len(report.tasks)} held-out tasks of passes / {report.decision.details['n']} "
        f"draws. {COUNTED[scorer] + ' ' if scorer in COUNTED else ''}"
        f"Intervals are over {report.primary.interval.over}; Δ is paired by task."
    )
    first = Table(f"Table 1. {measure} of the four conditions", header, _score_rows(main, arms, base, vs), note)
    if not control:
        return first, None
    return first, Table("Controls", header, _score_rows(control, arms, base, vs))


def named(report: Report) -> Table | None:
    """What of UPass is due to programs that name the updated function; None where tasks do not say which it is."""
    if report.named is None:
        return None
    measure = report.decision.scorer.measure()
    rows = tuple(
        (
            a.condition,
            percent(a.pass_at_1),
            percent(report.named[a.condition] / a.num_samples),
            f"{a.num_passed - report.named[a.condition]} of {a.num_passed}",
        )
        for a in report.decision.arms
    )
    return Table(
        "Programs that name the updated function",
        ("condition", measure, f"{measure} by programs that name it", "counted, never name it"),
        rows,
        f"A program that never names the function may count for {measure}: the task's own test uses the update too "
        "and fails without it. Such a program knows nothing of the update. For information; the gate counts all.",
    )


def _score_rows(
    names: Sequence[str], arms: Mapping[str, ArmScore], base: str, vs: Mapping[str, Contrast]
) -> tuple[tuple[str, ...], ...]:
    rows = []
    for name in names:
        arm, change = arms[name], vs.get(name)
        relative = arm.pass_at_1 / arms[base].pass_at_1 - 1
        rows.append(
            (
                name,
                percent(arm.pass_at_1),
                f"{arm.interval.low:.1f} – {arm.interval.high:.1f}",
                f"{arm.num_passed} / {arm.num_samples}",
                evidence.points(change.points) if change else "–",
                evidence.span(change.interval) if change else "–",
                f"{100 * relative:+.0f} %".replace("-", "−") if change else "–",
            )
        )
    return tuple(rows)


def adapters(report: Report) -> tuple[Table, Table]:
    """Table 2 in two parts: one row per arm that has adapters."""
    rows, norms = [], []
    for arm, count in report.arm_adapters.items():
        found = report.diagnostics["arms"].get(arm, {})
        if not count:
            continue
        norm = found.get("delta_w_norm_mean", report.arm_norms.get(arm))
        rows.append(
            (
                arm,
                str(count),
                _diversity(found.get("cosine_raw"), count),
                _centred(found.get("cosine_centred"), count),
                _rank(found.get("effective_rank"), count),
                NONE if norm is None else f"{norm:.3g}",
                _loss(arm, report.training),
                _plateau(report.diagnostics["training"].get(source_of(arm))),
            )
        )
        profile, ratio = found.get("frobenius", {}), found.get("ratio", {})
        norms.append((arm, *(f"{_mean(profile.get(m))} ({_percent_of(ratio.get(m))})" for m in MODULES)))
    header = ("condition", "adapters", "cosine diversity", "centred |cos|", "effective rank", "‖ΔW‖")
    return (
        Table(
            "Table 2. Adapter diagnostics",
            (*header, "training loss", "plateau, step"),
            tuple(rows),
            "Cosine diversity is 1 − mean pairwise cosine of ΔW over tasks (0: all adapters alike; the specified mark "
            "is 0.1); centred |cos|: mean absolute cosine after the mean adapter is taken out (their plain mean is "
            "−1/(N − 1) whatever they are). An arm with one adapter for all has none (–). "
            "‖ΔW‖ over all modules. Training loss: mean of the last tenth of the steps; plateau: where it stopped "
            "falling.",
        ),
        Table(
            "Table 2, continued. ‖ΔW‖ (Frobenius) per module type",
            ("condition", *(m.removesuffix("_proj") for m in MODULES)),
            tuple(norms),
            "Mean over layers and adapters; in brackets its share of ‖W‖.",
        ),
    )


def _mean(values: Sequence[float] | None) -> str:
    return f"{sum(values) / len(values):.3g}" if values else NONE


def _percent_of(values: Sequence[float] | None) -> str:
    return f"{100 * sum(values) / len(values):.2g} %" if values else "?"


def _diversity(cosine: Mapping[str, Any] | None, count: int) -> str:
    if count == 1:
        return "–"
    mean = (cosine or {}).get("mean_off_diagonal")
    return NONE if mean is None else f"{1 - mean:.3g}"


def _centred(cosine: Mapping[str, Any] | None, count: int) -> str:
    if count == 1:
        return "–"
    matrix = (cosine or {}).get("matrix") or []
    off = [abs(v) for i, row in enumerate(matrix) for j, v in enumerate(row) if i != j]
    return f"{sum(off) / len(off):.3g}" if off else NONE


def _rank(value: float | None, count: int) -> str:
    if count == 1:
        return "–"
    return NONE if value is None else f"{value:.1f} of {count - 1}"


def source_of(arm: str) -> str:
    """Whose training an arm's adapters come from."""
    return arm if arm in ("lora", "oracle") else "hypernet"


def _loss(arm: str, training: Sequence[Training]) -> str:
    phases = [t for t in training if t.name == source_of(arm)]
    return f"{phases[-1].last_loss:.3f}" if phases else NONE


def _plateau(found: Mapping[str, Any] | None) -> str:
    """When the loss stopped falling; "early" is the detector's alarm, which means nothing on a handful of steps."""
    if not found:
        return NONE
    if found["steps"] < _STEPS_FOR_A_PLATEAU:
        return f"not told from {found['steps']} steps"
    if found.get("plateau_step") is None:
        return "none"
    early = " (early)" if found.get("early_plateau") else ""
    return f"step {found['plateau_step']} of {found['steps']}{early}"


def swaps(report: Report) -> Table | None:
    """Behaviour under a swapped trajectory: the reference's log-probability under the own and another's adapter."""
    rows = tuple(
        (
            arm,
            str(s["tasks"]),
            f"{s['own_log_prob']:.1f}".replace("-", "−"),
            f"{s['swapped_log_prob']:.1f}".replace("-", "−"),
            f"{s['mean_lead']:+.2f}".replace("-", "−"),
            f"{s['mean_abs_delta_log_prob']:.2f}",
        )
        for arm, s in report.diagnostics["swap"].items()
        if s
    )
    if not rows:
        return None
    return Table(
        "Behaviour under a swapped trajectory",
        ("condition", "tasks", "log p, own", "log p, swapped", "lead of the own", "mean change"),
        rows,
        "Log-probability of each task's reference under the adapter of its own trajectories and under another task's. "
        "Lead and change 0: the adapter ignores what it reads. In wrong_trajectory both are another task's, so its "
        "lead shows what chance gives: only a lead well above that speaks for the right trajectory.",
    )


def donors(report: Report) -> Table | None:
    """The right donor's rank: whose adapter, of all tasks', makes a task's reference likeliest."""
    rows = tuple(
        (
            arm,
            str(d["tasks"]),
            str(d["donors"]),
            f"{d['mean_rank']:.1f}",
            f"{100 * d['first']:.0f} %",
            f"{100 * d['best_quarter']:.0f} %",
        )
        for arm, d in report.diagnostics.get("donors", {}).items()
        if d
    )
    if not rows:
        return None
    return Table(
        "The right donor among all",
        ("condition", "tasks", "adapters", "mean rank", "first", "in the best quarter"),
        rows,
        "Each task's reference is read under the adapter of every task and of its own; rank 1: it is likeliest under "
        "its own. Adapters of the same domain are left out. In wrong_trajectory the own is another task's, and the "
        "right one may be among the others: chance, or below it.",
    )


def contrasts(report: Report) -> Table:
    level = f"{100 * report.primary.interval.level:g} % interval"
    rows = tuple(
        (
            c.name,
            evidence.points(c.points),
            evidence.span(c.interval),
            f"{c.wins} / {c.ties} / {c.losses}",
            "–" if c.role == "descriptive" else evidence.p_promised(c),
            "–" if c.p_adjusted is None else evidence.p_text(c.p_adjusted),
            c.role,
        )
        for c in report.decision.contrasts
    )
    return Table(
        "Comparisons",
        ("contrast", "points", level, "tasks better / same / worse", "p", "p, Holm", "role"),
        rows,
        "p: exact sign-flip test over tasks, as pre-registered: one-sided (greater) for the primary comparison, "
        "two-sided for the secondary ones. Holm: adjusted over the secondary comparisons. "
        "Descriptive ones are for information and untested.",
    )


def leakage(report: Report, most: int) -> Table | None:
    """Suspicious tasks first, then the nearest; at most `most` rows."""
    if report.leakage is None:
        return None
    rows = sorted(report.leakage["rows"], key=lambda r: (not r["suspicious"], -r["similarity"], r["task_id"]))
    flags = (("same_id", "id"), ("same_tree", "syntax tree"), ("same_name", "name"), ("in_context", "in context"))
    left = len(rows) - most
    return Table(
        "Nearest training item of each held-out task",
        ("held-out task", "nearest", "prompt shared", "solution shared", "also equal", "finding"),
        tuple(
            (
                r["task_id"],
                r["nearest"] or "–",
                percent(r["prompt_share"]),
                percent(r["solution_share"]),
                ", ".join(text for key, text in flags if r[key]) or "–",
                r["why"] or "clean",
            )
            for r in rows[:most]
        ),
        f"{left} more tasks, all less similar, are in leakage.json." if left > 0 else "",
    )


def corpus(report: Report) -> Table | None:
    if report.corpus is None:
        return None
    rows = [(group, name, str(count)) for group, found in report.corpus.items() for name, count in found.items()]
    return Table("Corpus", ("by", "value", "count"), tuple(rows))


def task_counts(report: Report) -> Table:
    arms = tuple(report.decision.details["passes"])
    n = report.decision.details["n"]
    rows = tuple(
        (t.task_id, t.category or "–", *(str(t.passes[a]) for a in arms), f"{t.change:+d}") for t in report.tasks
    )
    return Table(f"Draws passed of {n}, per task", ("task", "category", *arms, "change"), rows)


def markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    head = [line(table.header), "|" + "|".join("---" if i == 0 else "---:" for i in range(len(table.header))) + "|"]
    return "\n".join([*head, *(line(r) for r in table.rows)])


def meaning(arm: str) -> str:
    return MEANING.get(arm, "")
