"""What may be said beside the answer: every line of the grades' table, every sentence, on records made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rune.analysis import evidence
from rune.analysis.power import Design, Point, Power
from rune.types import Contrast, Interval


def contrast(low: float, high: float, **changes: Any) -> Contrast:
    record = Contrast(
        name="hypernet − vanilla",
        treatment="hypernet",
        baseline="vanilla",
        points=(low + high) / 2,
        interval=Interval(low=low, high=high, level=0.95),
        p_value=0.02,
        p_greater=0.01,
        role="primary",
    )
    return replace(record, **changes)


def wrong(low: float, high: float, adjusted: float | None, raw: float = 0.001) -> Contrast:
    return contrast(
        low,
        high,
        name="hypernet − wrong_trajectory",
        baseline="wrong_trajectory",
        role="secondary",
        p_value=raw,
        p_greater=raw / 2,
        p_adjusted=adjusted,
    )


GOOD = contrast(2.0, 12.0)


def grade(primary: Contrast = GOOD, **changes: Any) -> str:
    given: dict[str, Any] = {
        "passed": True,
        "primary": primary,
        "threshold": 5.0,
        "wrong": None,
        "unexplained": False,
        "alpha": 0.05,
        **changes,
    }
    return evidence.grade(**given)


# --------------------------------------------------------------------------- the grade


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-9.0, -0.1, "harmful"),  # the whole interval below 0
        (-9.0, 0.0, "absent"),  # not below 0, but below the threshold
        (-3.0, 4.9, "absent"),
        (0.5, 4.9, "absent"),  # above 0 as well: that the wanted size is ruled out comes first
        (-3.0, 5.0, "inconclusive"),  # the threshold is still in it
        (0.0, 8.0, "inconclusive"),  # touches 0
        (0.1, 8.0, "short"),
    ],
)
@pytest.mark.parametrize("unexplained", [True, False])
def test_a_failure_is_graded_by_where_its_interval_lies(
    low: float, high: float, expected: str, unexplained: bool
) -> None:
    assert grade(contrast(low, high), passed=False, unexplained=unexplained) == expected
    assert grade(contrast(low, high), passed=False, wrong=wrong(1.0, 9.0, 0.001)) == expected


def test_the_threshold_of_the_run_and_not_five_decides_what_is_absent() -> None:
    assert grade(contrast(-3.0, 6.0), passed=False, threshold=7.0) == "absent"
    assert grade(contrast(-3.0, 6.0), passed=False, threshold=2.0) == "inconclusive"


@pytest.mark.parametrize(
    ("low", "p_greater", "expected"),
    [
        (0.1, 0.049, "unattributed"),
        (0.0, 0.001, "luck"),  # the interval touches 0
        (-1.0, 0.001, "luck"),
        (0.1, 0.05, "luck"),  # the one-sided test does not reject at alpha itself
        (0.1, 0.2, "luck"),
    ],
)
def test_a_pass_whose_interval_or_one_sided_test_includes_zero_may_be_luck(
    low: float, p_greater: float, expected: str
) -> None:
    # The two-sided p of the primary contrast decides nothing: it is put on the other side of alpha each time.
    primary = contrast(low, 12.0, p_greater=p_greater, p_value=0.2 if p_greater < 0.05 else 0.001)
    assert grade(primary) == expected
    attributed = "attributed" if expected == "unattributed" else "luck"
    assert grade(primary, wrong=wrong(1.0, 9.0, 0.01)) == attributed


@pytest.mark.parametrize(
    ("low", "high", "adjusted", "raw", "expected"),
    [
        (1.0, 9.0, 0.049, 0.007, "attributed"),
        (1.0, 9.0, 0.05, 0.007, "unattributed"),  # at alpha: not below
        (1.0, 9.0, 0.06, 0.01, "unattributed"),  # below alpha alone, above it among seven contrasts
        (0.0, 9.0, 0.001, 0.001, "unattributed"),  # the interval touches 0
        (-1.0, 9.0, 0.001, 0.001, "unattributed"),
        (-9.0, -1.0, 0.001, 0.001, "unattributed"),  # told apart, but the wrong one is better
        (1.0, 9.0, None, 0.001, "unattributed"),  # never corrected for the other contrasts
    ],
)
def test_a_trajectory_is_credited_only_if_right_beats_wrong_after_holm(
    low: float, high: float, adjusted: float | None, raw: float, expected: str
) -> None:
    assert grade(wrong=wrong(low, high, adjusted, raw)) == expected


def test_without_the_control_nothing_is_credited_to_trajectories() -> None:
    assert grade(wrong=None) == "unattributed"


def test_alpha_is_the_runs_own() -> None:
    strict = wrong(1.0, 9.0, 0.02)
    assert grade(wrong=strict, alpha=0.05) == "attributed"
    assert grade(wrong=strict, alpha=0.015) == "unattributed"  # the primary's p of 0.01 still rejects
    assert grade(wrong=strict, alpha=0.01) == "luck"


def test_a_suspected_leak_goes_before_luck_and_before_credit() -> None:
    assert grade(unexplained=True, wrong=wrong(1.0, 9.0, 0.001)) == "suspended"
    assert grade(contrast(-1.0, 12.0), unexplained=True) == "suspended"


def test_every_grade_says_whether_the_gate_passed() -> None:
    begun = {key: text.split(",")[0].split(":")[0] for key, text in evidence.GRADES.items()}
    passed = {"attributed", "unattributed", "luck", "suspended"}
    assert begun == {key: "passed" if key in passed else "failed" for key in begun} and len(begun) == 8
    assert "not attributable" in evidence.GRADES["unattributed"] and "not" not in evidence.GRADES["attributed"]


# --------------------------------------------------------------------------- the sentence


def power(**changes: Any) -> Power:
    record = Power(
        design=Design(25, 4),
        threshold=5.0,
        false_pass=0.125,
        luck=7.0,
        at_threshold=Point(5.0, passes=0.52, significant=0.3),
        at_twice=Point(10.0, passes=0.9, significant=0.7),
        detectable=12.62,
        curve=(Point(0.0, passes=0.125, significant=0.05), Point(25.0, passes=1.0, significant=0.79)),
    )
    return record._replace(**changes)


def test_the_sentence_holds_every_number_in_its_place() -> None:
    static = contrast(-4.04, 1.5, points=-1.27, name="hypernet − static", baseline="static")
    said = evidence.sentence(
        "unattributed",
        primary=contrast(2.04, 12.5, points=7.26),
        wrong=contrast(-1.5, 3.14, points=0.82),
        static=static,
        power=power(),
        threshold=5.0,
    )
    assert said == (
        "Passed, beyond luck, but not attributable to trajectories; effect hypernet − vanilla +7.3 points, "
        "95 % interval over tasks [+2.0, +12.5]; "
        "right − wrong trajectory +0.8 [−1.5, +3.1]; right − static adapter −1.3 [−4.0, +1.5]; "
        "a gate of 25 tasks × 4 draws passes by luck one time in 8, misses a true effect of 5 points 48 times in 100, "
        "and the smallest effect it finds significant 8 times in 10 is 12.6 points."
    )


def test_a_failure_below_zero_is_worse_than_its_baseline_whatever_that_is() -> None:
    """The baseline is the bare model only where the config says so."""
    arms = {"name": "tuned − teacher", "treatment": "tuned", "baseline": "teacher"}
    primary = contrast(-46.0, -30.4, points=-38.0, **arms)
    said = evidence.sentence("harmful", primary=primary, wrong=None, static=None, power=power(), threshold=5.0)
    assert said.startswith("Failed: tuned is worse than teacher; effect tuned − teacher −38.0 points, 95 % interval")
    assert evidence.grade_in_words("harmful", GOOD) == "failed: hypernet is worse than vanilla"
    assert evidence.grade_in_words("luck", primary) == evidence.GRADES["luck"]


def test_a_control_that_was_not_measured_is_said_to_be_missing() -> None:
    said = evidence.sentence(
        "unattributed", primary=GOOD, wrong=None, static=None, power=power(detectable=math.inf), threshold=5.0
    )
    assert "right − wrong trajectory was not measured, so nothing is said about trajectories" in said
    assert "static" not in said and said.endswith("8 times in 10 is more than 25 points.")


def test_an_effect_that_is_never_found_is_larger_than_any_that_was_tried() -> None:
    """A threshold of 20 points is tried at 40 too."""
    tried = power(detectable=math.inf, curve=(Point(40.0, passes=0.9, significant=0.7),))
    said = evidence.sentence("short", primary=GOOD, wrong=None, static=None, power=tried, threshold=20.0)
    assert said.endswith("8 times in 10 is more than 40 points.")


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0.0, "less than one time in 1,000"),
        (0.0009, "less than one time in 1,000"),
        (0.001, "one time in 1,000"),
        (0.14, "one time in 7"),
        (0.28, "one time in 4"),
        (0.29, "29 times in 100"),
        (0.996, "100 times in 100"),
    ],
)
def test_a_chance_in_words_is_the_chance(probability: float, words: str) -> None:
    assert evidence.chance(probability) == words


def test_signs_are_always_written_and_minus_is_a_minus() -> None:
    assert [evidence.points(v) for v in (3.25, -0.44, 0.0)] == ["+3.2", "−0.4", "+0.0"]
    assert evidence.span(Interval(low=-1.26, high=8.41, level=0.9)) == "[−1.3, +8.4]"


# --------------------------------------------------------------------------- hypotheses and p-values


@pytest.mark.parametrize(
    ("p_greater", "rejected"), [(0.049, "rejected"), (0.05, "not rejected"), (0.4, "not rejected")]
)
@pytest.mark.parametrize("passed", [True, False])
def test_h0_is_rejected_by_the_one_sided_test_alone(p_greater: float, rejected: str, passed: bool) -> None:
    primary = contrast(-3.0, 12.0, points=4.46, p_greater=p_greater, p_value=0.9 if p_greater < 0.05 else 0.001)
    h0, h1, found = evidence.hypotheses(
        primary=primary, base=0.412, treated=0.4566, passed=passed, threshold=5.0, alpha=0.05, measure="pass@1"
    )
    assert h0 == "H0: hypernet does not raise pass@1 over vanilla on tasks like these (true effect ≤ 0 points)."
    assert h1 == "H1: hypernet raises pass@1 over vanilla on tasks like these (true effect > 0 points)."
    assert found == (
        "Measured: 41.2 % → 45.7 %, +4.5 points; the exact one-sided sign-flip test over tasks gives "
        f"p = {p_greater:.3f}, so at 5 % H0 is {rejected}. The gate asks something else: is the measured effect at "
        f"least 5 points? {'Yes' if passed else 'No'}."
    )


def test_the_promised_p_is_one_sided_for_the_primary_contrast_and_two_sided_for_the_others() -> None:
    both = {"p_greater": 0.0123, "p_value": 0.0246}
    assert evidence.p_promised(contrast(1, 2, **both)) == "0.012 (one-sided)"
    for role in ("secondary", "descriptive"):
        assert evidence.p_promised(contrast(1, 2, role=role, **both)) == "0.025"
    assert evidence.p_text(0.00099) == "< 0.001" and evidence.p_equals(0.00099) == "< 0.001"
    assert evidence.p_text(0.001) == "0.001" and evidence.p_equals(0.0304) == "= 0.030"


@pytest.mark.parametrize(
    ("low", "high", "adjusted", "words"),
    [
        (0.0, 4.0, 0.01, "not told apart from zero"),
        (-4.0, 0.0, 0.01, "not told apart from zero"),
        (0.1, 4.0, 0.34, "above zero by its interval, p = 0.340 after Holm"),
        (-4.0, -0.1, 0.0001, "below zero by its interval, p < 0.001 after Holm"),
        (0.1, 4.0, None, "above zero by its interval"),
    ],
)
def test_a_contrast_is_told_by_its_interval_and_its_adjusted_p(
    low: float, high: float, adjusted: float | None, words: str
) -> None:
    assert evidence.told(wrong(low, high, adjusted, raw=0.0001)) == words


# --------------------------------------------------------------------------- reasons


def reasons(**changes: Any) -> tuple[str, ...]:
    given: dict[str, Any] = {
        "passed": True,
        "primary": contrast(2.0, 12.0, points=7.0, wins=9, losses=4, ties=12),
        "contrasts": [],
        "threshold": 5.0,
        "leakage": "not required",
        "leakage_points": 15.0,
        "effect_without": None,
        "power": power(false_pass=0.01),
        "alpha": 0.05,
        **changes,
    }
    return evidence.reasons(**given)


def test_the_grounds_come_first_and_count_the_tasks() -> None:
    assert reasons() == (
        "hypernet − vanilla = +7.0 points ≥ 5: passed.",
        "Of 25 tasks 9 got better, 4 worse, 12 stayed.",
    )
    assert reasons(passed=False)[0] == "hypernet − vanilla = +7.0 points < 5: failed."


def test_a_gate_that_luck_passes_or_that_misses_effects_says_so() -> None:
    loose = power(false_pass=0.125)
    assert "A gate of this size passes without any effect one time in 8." in reasons(power=loose)
    assert "passes without any effect" not in " ".join(reasons(power=power(false_pass=0.05)))
    assert "passes without any effect" not in " ".join(reasons(power=loose, alpha=0.2))
    blind = "A gate of this size fails a true effect of 5 points 48 times in 100."
    assert blind in reasons(passed=False) and blind not in reasons(passed=True)
    sharp = power(at_threshold=Point(5.0, passes=0.8, significant=0.1))
    assert "fails a true effect" not in " ".join(reasons(passed=False, power=sharp))


def test_a_large_effect_calls_for_the_leakage_check_and_a_suspicious_one_says_what_is_left() -> None:
    large = contrast(10.0, 20.0, points=15.1)
    assert "More than 15 points calls for a leakage check: clean." in reasons(primary=large, leakage="clean")
    assert "calls for" not in " ".join(reasons(primary=replace(large, points=15.0)))
    told = reasons(leakage="suspicious", effect_without=-1.24)[-1]
    assert told == (
        "Some held-out tasks resemble the training corpus too closely; without them the effect is −1.2 points."
    )
    assert reasons(leakage="suspicious", effect_without=None)[-1].endswith("without them no task is left.")
    assert "resemble" not in " ".join(reasons(leakage="clean", effect_without=-1.0))


def test_only_the_contrasts_of_the_promised_family_stand_among_the_reasons() -> None:
    descriptive = contrast(1.0, 3.0, name="lora − vanilla", role="descriptive")
    said = reasons(contrasts=[GOOD, wrong(1.0, 3.04, 0.012), descriptive])
    assert said[2:] == (
        "hypernet − wrong_trajectory = +2.0 [+1.0, +3.0]: above zero by its interval, p = 0.012 after Holm.",
    )
