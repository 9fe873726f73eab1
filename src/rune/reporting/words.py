"""The report's sentences: for someone with one minute, and for the README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rune.analysis import evidence, gate
from rune.models import identity
from rune.reporting.data import COUNTED, Report
from rune.reporting.tables import markdown, meaning, percent, scores
from rune.types import Answer

# What a newcomer asks next: would something simpler have done?
_BESIDE: Mapping[str, str] = {
    "lora": "ordinary fine-tuning on the same tries",
    "rag": "the same tries as text in the prompt",
}


def minute(report: Report) -> dict[str, str]:
    """What was asked, what came out, how sure it is: for someone who has never heard of LoRA."""
    d, primary = report.decision, report.primary
    arms = {a.condition: a for a in d.arms}
    n = d.details["n"]
    power = d.details["power"]
    model = report.manifest.get("model", {}).get("name", "the model")
    tasks = len(report.tasks)
    than, without = "", "Without it"
    if primary.baseline != "vanilla":
        other = f"{primary.baseline} ({meaning(primary.baseline) or 'another arm'})"
        than, without = f" than with {other}", f"With {other}"
    asked = (
        f"{model} writes Python. A second network reads how past tasks were worked on (tries, errors, fixes) and "
        "turns that into a small change of the model's weights, in one pass. Does the changed model solve more of "
        f"{tasks} tasks that none of this was made from? The rule, fixed beforehand: at least "
        f"{d.threshold_points:g} points more{than}."
    )
    answers = "answers" if d.scorer.answer is Answer.VALUE else "programs"
    found = (
        f"{without} {percent(arms[primary.baseline].pass_at_1)} of {arms[primary.baseline].num_samples} {answers} "
        f"pass, with it {percent(arms[primary.treatment].pass_at_1)}: {evidence.points(primary.points)} points. "
        f"Of {tasks} tasks {primary.wins} went better, {primary.losses} worse, {primary.ties} the same."
    )
    if d.scorer in COUNTED:
        found += f" {COUNTED[d.scorer]}"
    others = [f"{text} {percent(arms[a].pass_at_1)}" for a, text in _BESIDE.items() if a in arms]
    if others:
        found += f" For comparison: {'; '.join(others)}."
    interval = primary.interval
    missed = evidence.chance(1 - power["at_threshold"]["passes"])
    sure = (
        f"The true effect lies plausibly between {evidence.points(interval.low)} and "
        f"{evidence.points(interval.high)} points. A gate of {tasks} tasks × {n} tries "
        f"passes by luck {evidence.chance(power['false_pass'])} and misses a true effect of "
        f"{d.threshold_points:g} points {missed}. "
        f"{_attribution(report)}"
    )
    return {"What was asked": asked, "What came out": found, "How sure it is": sure}


def _attribution(report: Report) -> str:
    """Did the trajectory do it? In words, from the wrong-trajectory control."""
    wrong = next((c for c in report.decision.contrasts if c.baseline == "wrong_trajectory"), None)
    if wrong is None:
        return "Whether the trajectories did it was not measured: there is no wrong-trajectory control."
    size = f"{evidence.points(wrong.points)} points {evidence.span(wrong.interval)}"
    alpha = report.preregistration.get("rule", {}).get("alpha", gate.Config.alpha)
    if evidence.shown_above_zero(wrong, alpha):
        return f"Right minus wrong trajectory is {size}: it matters which one is read."
    if wrong.interval.high < 0:
        return f"Right minus wrong trajectory is {size}: the wrong ones did better."
    return f"Right minus wrong trajectory is {size}: no evidence that it matters which one is read."


def base(manifest: Mapping[str, Any]) -> str:
    """Where the base model's weights came from and how they were computed with; "" before a run has a model."""
    model = manifest.get("model")
    return identity.words(model, str(manifest.get("dtype", ""))) if model else ""


def phase(record: Mapping[str, Any]) -> str:
    """ "Phase 2 (QLoRA, on an NF4 base), after RUN (decision 0123456789ab…, Gate PASSED)"; "" for an older run."""
    if not record:
        return ""
    after = record.get("after")
    text = f"Phase {record['number']} ({record['title']})"
    return f"{text}, after {after['run']} (decision {after['decision'][:12]}…, {after['answer']})" if after else text


def overrides(record: Mapping[str, Any]) -> list[str]:
    """A sentence for each phase that began without a passed decision: this one, and those that it stands on."""
    return [
        f"Phase {one['phase']} began without a passed decision of phase {one['phase'] - 1} ({one['instead_of']}), "
        f"by override: {one['reason']}"
        for one in record.get("overrides", ())
    ]


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


def readme(report: Report, *, claim: bool, folder: str) -> str:
    """The README's result: a table and the answer in bold. `folder`: the run as seen from the README."""
    table = scores(report)[0]
    manifest = report.manifest
    model = manifest.get("model", {})
    facts = (
        f"`{model.get('name', 'unknown model')}` (sha256 `{str(model.get('sha256', 'unknown'))[:12]}`), "
        f"{base(manifest) or 'weights not recorded'}, "
        f"{manifest.get('device', 'unknown device')}, {str(manifest.get('created', ''))[:10]}; "
        f"[report]({folder}/report.html), [assessment]({folder}/assessment.md), all records in `{folder}/`"
    )
    note = banner(report, claim=claim)
    parts = [
        f"**{report.decision.answer}.** {report.decision.evidence}",
        *([f"> {note}"] if note else []),
        *(f"> {line}" for line in overrides(manifest.get("phase", {}))),
        markdown(table),
        facts,
    ]
    return "\n\n".join(parts)
