"""What may be said beside the gate's binary answer: a grade, hypotheses in words, and why.

The grade rests on the interval (could it be luck?), the design's power (could it have been seen?) and the
controls (did the *trajectory* do it?). It never changes the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rune.analysis.power import TARGET_POWER, Design, Power
from rune.types import Contrast, Interval

GRADES: Mapping[str, str] = {
    "attributed": "passed, beyond luck, and the right trajectory matters",
    "unattributed": "passed, beyond luck, but not attributable to trajectories",
    "luck": "passed, but luck explains it as well",
    "inconclusive": "failed, but too little data to rule the effect out",
    "short": "failed: an effect above zero, but not shown to reach the threshold",
    "absent": "failed, and an effect of the wanted size is ruled out",
    "harmful": "failed: {treatment} is worse than {baseline}",
    "suspended": "passed, but suspected leakage carries it: no claim until that is explained",
}


def grade_in_words(key: str, primary: Contrast) -> str:
    """What a key of GRADES says, with the arms that the gate compares named where it names them."""
    return GRADES[key].format(treatment=primary.treatment, baseline=primary.baseline)


def points(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def span(interval: Interval) -> str:
    """ "[−1.2, +8.4]"."""
    return f"[{points(interval.low)}, {points(interval.high)}]"


def grade(
    *, passed: bool, primary: Contrast, threshold: float, wrong: Contrast | None, unexplained: bool, alpha: float
) -> str:
    """A key of GRADES."""
    if not passed:
        if primary.interval.high < 0:
            return "harmful"
        if primary.interval.high < threshold:
            return "absent"
        return "short" if primary.interval.low > 0 else "inconclusive"
    if unexplained:
        return "suspended"
    if primary.interval.low <= 0 or primary.p_greater >= alpha:
        return "luck"
    return "attributed" if wrong is not None and shown_above_zero(wrong, alpha) else "unattributed"


def shown_above_zero(contrast: Contrast, alpha: float) -> bool:
    """By its interval, and by its p once the other contrasts are counted (Holm); one that was not adjusted is not."""
    return contrast.interval.low > 0 and contrast.p_adjusted is not None and contrast.p_adjusted < alpha


def sentence(
    key: str, *, primary: Contrast, wrong: Contrast | None, static: Contrast | None, power: Power, threshold: float
) -> str:
    """The grade with its numbers: what a reviewer asks first."""
    said = grade_in_words(key, primary)
    parts = [f"{said[0].upper()}{said[1:]}"]
    level = f"{100 * primary.interval.level:g} %"
    over = f"{level} interval over {primary.interval.over} {span(primary.interval)}"
    parts.append(f"effect {primary.name} {points(primary.points)} points, {over}")
    if wrong is None:
        parts.append("right − wrong trajectory was not measured, so nothing is said about trajectories")
    else:
        parts.append(f"right − wrong trajectory {points(wrong.points)} {span(wrong.interval)}")
    if static is not None:
        parts.append(f"right − static adapter {points(static.points)} {span(static.interval)}")
    most = power.curve[-1].true_points
    seen = f"{power.detectable:.1f} points" if math.isfinite(power.detectable) else f"more than {most:g} points"
    missed = chance(1 - power.at_threshold.passes)
    parts.append(
        f"a gate of {size(power.design)} passes by luck "
        f"{chance(power.false_pass)}, misses a true effect of {threshold:g} points {missed}, "
        f"and the smallest effect it finds significant {10 * TARGET_POWER:g} times in 10 is {seen}"
    )
    return "; ".join(parts) + "."


def size(design: Design) -> str:
    """ "164 tasks × 5 draws × 3 trainings"; one training is not named."""
    trainings = f" × {design.seeds} trainings" if design.seeds > 1 else ""
    return f"{design.num_tasks} tasks × {design.k} draws{trainings}"


def chance(probability: float) -> str:
    """ "one time in 7": what 0.14 means."""
    if probability < 0.001:
        return "less than one time in 1,000"
    if probability > 0.28:
        return f"{100 * probability:.0f} times in 100"
    return f"one time in {round(1 / probability):,}"


def hypotheses(
    *, primary: Contrast, base: float, treated: float, passed: bool, threshold: float, alpha: float, measure: str
) -> tuple[str, str, str]:
    """H0, H1 and what became of them, in words with the numbers in; `measure`: "pass@1" or what else is counted."""
    t, b = primary.treatment, primary.baseline
    rejected = primary.p_greater < alpha
    verdict = (
        f"Measured: {100 * base:.1f} % → {100 * treated:.1f} %, {points(primary.points)} points; the exact one-sided "
        f"sign-flip test over tasks gives p {p_equals(primary.p_greater)}, so at {100 * alpha:g} % H0 is "
        f"{'rejected' if rejected else 'not rejected'}. The gate asks something else: is the measured effect at least "
        f"{threshold:g} points? {'Yes' if passed else 'No'}."
    )
    return (
        f"H0: {t} does not raise {measure} over {b} on tasks like these (true effect ≤ 0 points).",
        f"H1: {t} raises {measure} over {b} on tasks like these (true effect > 0 points).",
        verdict,
    )


def p_equals(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def p_promised(contrast: Contrast) -> str:
    """The p-value that was pre-registered: one-sided for the primary contrast, two-sided for the others."""
    if contrast.role == "primary":
        return f"{p_text(contrast.p_greater)} (one-sided)"
    return p_text(contrast.p_value)


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def reasons(
    *,
    passed: bool,
    primary: Contrast,
    contrasts: Sequence[Contrast],
    threshold: float,
    leakage: str,
    leakage_points: float,
    effect_without: float | None,
    power: Power,
    alpha: float,
) -> tuple[str, ...]:
    """The grounds of the answer, then the doubts, one sentence each.

    `threshold`, `leakage_points` and `effect_without` (the effect on the tasks that leakage does not touch; None: there
    is none) are in points; `leakage` is a status of `leakage.assess`, or "not required".
    """
    sign = "≥" if passed else "<"
    said = [
        f"{primary.name} = {points(primary.points)} points {sign} {threshold:g}: {'passed' if passed else 'failed'}."
    ]
    said.append(
        f"Of {primary.wins + primary.losses + primary.ties} tasks {primary.wins} got better, {primary.losses} worse, "
        f"{primary.ties} stayed."
    )
    if power.false_pass > alpha:
        said.append(f"A gate of this size passes without any effect {chance(power.false_pass)}.")
    if not passed and power.at_threshold.passes < TARGET_POWER:
        missed = chance(1 - power.at_threshold.passes)
        said.append(f"A gate of this size fails a true effect of {threshold:g} points {missed}.")
    if primary.points > leakage_points:
        said.append(f"More than {leakage_points:g} points calls for a leakage check: {leakage}.")
    if leakage == "suspicious":
        rest = "no task is left" if effect_without is None else f"the effect is {points(effect_without)} points"
        said.append(f"Some held-out tasks resemble the training corpus too closely; without them {rest}.")
    said += [
        f"{c.name} = {points(c.points)} {span(c.interval)}: {told(c)}." for c in contrasts if c.role == "secondary"
    ]
    return tuple(said)


def told(contrast: Contrast) -> str:
    """What a contrast's interval says, and whether it survives the other contrasts (Holm)."""
    if contrast.interval.low <= 0 <= contrast.interval.high:
        return "not told apart from zero"
    side = "above" if contrast.interval.low > 0 else "below"
    if contrast.p_adjusted is None:
        return f"{side} zero by its interval"
    return f"{side} zero by its interval, p {p_equals(contrast.p_adjusted)} after Holm"


def power_record(power: Power) -> dict[str, Any]:
    """JSON-ready: an unreachable effect is null, not infinity."""
    finite = power.detectable if math.isfinite(power.detectable) else None
    return {
        **power._asdict(),
        "design": power.design._asdict(),
        "detectable": finite,
        "at_threshold": power.at_threshold._asdict(),
        "at_twice": power.at_twice._asdict(),
        "curve": [p._asdict() for p in power.curve],
    }
