"""The report's tables and sentences, formatted once for HTML, Markdown and the README.

Reading of the specification: **Table 1** holds pass@1 of the four conditions with intervals and differences to
the bare model; **Table 2** holds the adapter diagnostics: ‖ΔW‖_F per module type, cosine diversity, training
loss and plateau. Controls stand in a table of their own, so that neither is mistaken for the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rune.stages import _evidence
from rune.stages._report_data import CONDITIONS, MEANING, MODULES, Report, Training
from rune.types import ArmScore, Contrast

NONE = "not measured"
ADAPTED = ("lora", "hypernet", "static", "wrong_trajectory", "empty_trajectory", "oracle")


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
    header = ("condition", "pass@1", level, "passed / draws", f"Δ {base}, points", f"Δ {level}", "relative")
    vs = {c.treatment: c for c in report.decision.contrasts if c.baseline == base}
    note = (
        f"pass@1 is the mean over {len(report.tasks)} held-out tasks of passes / {report.decision.details['n']} draws. "
        "Intervals resample tasks; Δ is paired by task."
    )
    first = Table("Table 1. pass@1 of the four conditions", header, _score_rows(main, arms, base, vs), note)
    if not control:
        return first, None
    return first, Table("Controls", header, _score_rows(control, arms, base, vs))


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
                _evidence.points(change.points) if change else "–",
                _evidence.span(change.interval) if change else "–",
                f"{100 * relative:+.0f} %".replace("-", "−") if change else "–",
            )
        )
    return tuple(rows)


def adapters(report: Report) -> Table:
    """Table 2: one row per arm that has adapters."""
    header = (
        "condition", "adapters", *(m.removesuffix("_proj") for m in MODULES), "‖ΔW‖ all",
        "cosine diversity", "centred", "effective rank", "training loss", "plateau",
    )  # fmt: skip
    rows = []
    for arm, count in report.arm_adapters.items():
        found = report.diagnostics.get(arm, {})
        if not count and not found:
            continue
        norms = found.get("frobenius", {})
        rows.append(
            (
                arm,
                str(found.get("num_adapters", count)),
                *(_mean(norms.get(m)) for m in MODULES),
                f"{report.arm_norms[arm]:.3g}" if arm in report.arm_norms else NONE,
                _diversity(found.get("mean_cosine_raw"), count),
                _diversity(found.get("mean_cosine_centred"), count),
                _number(found.get("effective_rank"), count),
                _loss(arm, report.training),
                _plateau(arm, found, report.training),
            )
        )
    return Table(
        "Table 2. Adapter diagnostics",
        header,
        tuple(rows),
        "Columns q to down: ‖ΔW‖ (Frobenius) of one module of that type, mean over layers and adapters. "
        "Cosine diversity is 1 − mean pairwise cosine of ΔW over tasks (0: all adapters alike; the specified mark is "
        "0.1); centred: after the mean adapter is taken out. An arm with one adapter for all tasks has no diversity.",
    )


def _mean(values: Sequence[float] | None) -> str:
    return f"{sum(values) / len(values):.3g}" if values else NONE


def _diversity(cosine: float | None, count: int) -> str:
    if count == 1:
        return "one adapter"
    return NONE if cosine is None else f"{1 - cosine:.3g}"


def _number(value: float | None, count: int) -> str:
    if count == 1:
        return "one adapter"
    return NONE if value is None else f"{value:.1f}"


def source_of(arm: str) -> str:
    """Whose training an arm's adapters come from."""
    return arm if arm in ("lora", "oracle") else "hypernet"


def phases_of(arm: str, training: Sequence[Training]) -> list[Training]:
    return [t for t in training if source_of(arm) in t.name]


def last_loss(arm: str, training: Sequence[Training]) -> float | None:
    phases = phases_of(arm, training)
    return phases[-1].last_loss if phases else None


def _loss(arm: str, training: Sequence[Training]) -> str:
    loss = last_loss(arm, training)
    return NONE if loss is None else f"{loss:.3f}"


def _plateau(arm: str, found: Mapping[str, Any], training: Sequence[Training]) -> str:
    if found.get("plateau_step") is not None:
        return f"step {found['plateau_step']}"
    return "none" if "plateau_step" in found and phases_of(arm, training) else NONE


def contrasts(report: Report) -> Table:
    level = f"{100 * report.primary.interval.level:g} % interval"
    rows = tuple(
        (
            c.name,
            _evidence.points(c.points),
            _evidence.span(c.interval),
            f"{c.wins} / {c.ties} / {c.losses}",
            _evidence.p_text(c.p_value),
            "–" if c.p_adjusted is None else _evidence.p_text(c.p_adjusted),
            c.role,
        )
        for c in report.decision.contrasts
    )
    return Table(
        "Comparisons",
        ("contrast", "points", level, "tasks better / same / worse", "p", "p, Holm", "role"),
        rows,
        "p: exact two-sided sign-flip test over tasks. Holm: adjusted over the secondary comparisons. "
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


# --------------------------------------------------------------------------- sentences


def minute(report: Report) -> dict[str, str]:
    """What was asked, what came out, how sure it is: for someone who has never heard of LoRA."""
    d, primary = report.decision, report.primary
    arms = {a.condition: a for a in d.arms}
    n = d.details["n"]
    power = d.details["power"]
    model = report.manifest.get("model", {}).get("name", "the model")
    tasks = len(report.tasks)
    asked = (
        f"{model} writes Python. A second network reads how past tasks were worked on (tries, errors, fixes) and "
        "turns that into a small change of the model's weights, in one pass. Does the changed model solve more of "
        f"{tasks} tasks that none of this was made from? The rule, fixed beforehand: at least "
        f"{d.threshold_points:g} points more."
    )
    found = (
        f"Without it {percent(arms[primary.baseline].pass_at_1)} of {arms[primary.baseline].num_samples} programs "
        f"pass, with it {percent(arms[primary.treatment].pass_at_1)}: {_evidence.points(primary.points)} points. "
        f"Of {tasks} tasks {primary.wins} went better, {primary.losses} worse, {primary.ties} the same."
    )
    interval = primary.interval
    sure = (
        f"The true effect lies plausibly between {_evidence.points(interval.low)} and "
        f"{_evidence.points(interval.high)} points. A gate of {tasks} tasks × {n} tries "
        f"passes by luck {_evidence.chance(power['false_pass'])}. "
        f"{_attribution(report)}"
    )
    return {"What was asked": asked, "What came out": found, "How sure it is": sure}


def _attribution(report: Report) -> str:
    """Did the trajectory do it? In words, from the wrong-trajectory control."""
    wrong = next((c for c in report.decision.contrasts if c.baseline == "wrong_trajectory"), None)
    if wrong is None:
        return "Whether the trajectories did it was not measured: there is no wrong-trajectory control."
    size = f"{_evidence.points(wrong.points)} points {_evidence.span(wrong.interval)}"
    if wrong.interval.low > 0:
        return f"The right trajectory beats a wrong one by {size}: it matters which one is read."
    return f"The right trajectory beats a wrong one by {size}: no evidence that it matters which one is read."


def banner(report: Report, *, claim: bool) -> str:
    """Why nothing may be claimed from this run; "" if something may."""
    tasks, n = len(report.tasks), report.decision.details["n"]
    if not claim:
        return (
            f"Demo: too small to claim anything. {tasks} tasks × {n} draws show that the path works, "
            "not that the idea does."
        )
    if tasks < 20 or n < 5:
        return (
            "Demo: too small to claim anything. The specified gate has 20–30 tasks × 5 draws; "
            f"this run has {tasks} × {n}."
        )
    return ""


def readme(report: Report, *, claim: bool) -> str:
    """The README's result: a table and the answer in bold."""
    table = scores(report)[0]
    manifest = report.manifest
    model = manifest.get("model", {})
    facts = (
        f"`{model.get('name', 'unknown model')}` (sha256 `{str(model.get('sha256', 'unknown'))[:12]}`), "
        f"{manifest.get('device', 'unknown device')}, {str(manifest.get('created', ''))[:10]}, run `{report.path}`"
    )
    note = banner(report, claim=claim)
    parts = [
        f"**{report.decision.answer}** ({_evidence.points(report.primary.points)} points, "
        f"{100 * report.primary.interval.level:g} % interval {_evidence.span(report.primary.interval)}). "
        f"{report.decision.evidence}",
        *([f"> {note}"] if note else []),
        markdown(table),
        facts,
    ]
    return "\n\n".join(parts)


def markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    head = [line(table.header), "|" + "|".join("---" if i == 0 else "---:" for i in range(len(table.header))) + "|"]
    return "\n".join([*head, *(line(r) for r in table.rows)])


def meaning(arm: str) -> str:
    return MEANING.get(arm, "")
