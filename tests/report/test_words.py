"""The page's sentences: each number in its place, and no more said than the decision beside them says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.analysis import evidence, gate
from rune.reporting import data, words
from rune.reporting.data import Report
from rune.reporting.tables import _plateau
from rune.types import Contrast
from tests.report import runs


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = runs.build(tmp_path_factory.mktemp("words"), extras=False)
    runs.decide(folder, gate.Config(resamples=500, simulations=100))
    return data.gather(folder, programs_per_arm=1, most_programs=10)


def changed(report: Report, baseline: str, **changes: Any) -> Report:
    """With another right − `baseline`."""

    def edit(c: Contrast) -> Contrast:
        if (c.treatment, c.baseline) != ("hypernet", baseline):
            return c
        ends = {k: changes.pop(k) for k in ("low", "high") if k in changes}
        return replace(c, interval=replace(c.interval, **ends), **changes)

    return replace(report, decision=replace(report.decision, contrasts=tuple(map(edit, report.decision.contrasts))))


@pytest.mark.parametrize(
    ("low", "high", "adjusted", "said"),
    [
        (1.0, 9.0, 0.049, "it matters which one is read."),
        (1.0, 9.0, 0.05, "no evidence that it matters which one is read."),  # not after Holm
        (1.0, 9.0, None, "no evidence that it matters which one is read."),
        (0.0, 9.0, 0.001, "no evidence that it matters which one is read."),
        (-9.0, 0.0, 0.001, "no evidence that it matters which one is read."),
        (-9.0, -1.0, 0.001, "the wrong ones did better."),
    ],
)
def test_the_page_credits_trajectories_only_where_the_grade_would(
    report: Report, low: float, high: float, adjusted: float | None, said: str
) -> None:
    one = changed(report, "wrong_trajectory", points=4.04, low=low, high=high, p_adjusted=adjusted, p_value=0.001)
    wrong = next(c for c in one.decision.contrasts if c.baseline == "wrong_trajectory")
    sure = words.minute(one)["How sure it is"]
    assert sure.endswith(f"Right minus wrong trajectory is +4.0 points {evidence.span(wrong.interval)}: {said}")
    primary = replace(report.primary, interval=replace(report.primary.interval, low=1.0), p_greater=0.001)
    grade = evidence.grade(
        passed=True, primary=primary, threshold=5.0, wrong=wrong, unexplained=False, alpha=gate.Config.alpha
    )
    assert (grade == "attributed") is said.startswith("it matters")


def test_the_alpha_is_the_one_that_was_promised(report: Report) -> None:
    one = changed(report, "wrong_trajectory", low=1.0, high=9.0, p_adjusted=0.02)
    strict = replace(one, preregistration={"rule": {"alpha": 0.01}})
    assert "it matters which" in words._attribution(one)
    assert "no evidence that it matters" in words._attribution(strict)


def test_without_the_control_the_page_says_so(report: Report) -> None:
    kept = tuple(c for c in report.decision.contrasts if c.baseline != "wrong_trajectory")
    alone = replace(report, decision=replace(report.decision, contrasts=kept))
    assert "was not measured: there is no wrong-trajectory control" in words._attribution(alone)


def test_one_minute_holds_the_decisions_numbers(report: Report) -> None:
    said, decision = words.minute(report), report.decision
    rate = {a.condition: f"{100 * a.pass_at_1:.1f} %" for a in decision.arms}
    primary, power = decision.contrasts[0], decision.details["power"]
    assert (
        f"more of {len(report.tasks)} tasks" in said["What was asked"] and "at least 5 points" in said["What was asked"]
    )
    assert said["What came out"] == (
        f"Without it {rate['vanilla']} of 125 programs pass, with it {rate['hypernet']}: "
        f"{evidence.points(primary.points)} points. Of 25 tasks {primary.wins} went better, {primary.losses} worse, "
        f"{primary.ties} the same. For comparison: ordinary fine-tuning on the same tries {rate['lora']}; "
        f"the same tries as text in the prompt {rate['rag']}."
    )
    assert said["How sure it is"].startswith(
        f"The true effect lies plausibly between {evidence.points(primary.interval.low)} and "
        f"{evidence.points(primary.interval.high)} points. A gate of 25 tasks × 5 tries passes by luck "
        f"{evidence.chance(power['false_pass'])} and misses a true effect of 5 points "
        f"{evidence.chance(1 - power['at_threshold']['passes'])}. "
    )


@pytest.mark.parametrize(
    ("name", "other"), [("static", "static (the hypernetwork's constant part alone)"), ("mine", "mine (another arm)")]
)
def test_one_minute_names_a_baseline_that_is_not_the_bare_model(report: Report, name: str, other: str) -> None:
    primary = next(c for c in report.decision.contrasts if (c.treatment, c.baseline) == ("hypernet", "static"))
    (static,) = [a for a in report.decision.arms if a.condition == "static"]
    arms = (*report.decision.arms, replace(static, condition=name))
    changed = replace(report.decision, contrasts=(replace(primary, baseline=name),), arms=arms)
    said = words.minute(replace(report, decision=changed))
    assert said["What was asked"].endswith(f"at least 5 points more than with {other}.")
    assert said["What came out"].startswith(f"With {other} {100 * static.pass_at_1:.1f} % of 125 programs pass, with ")
    assert "without it" not in str(said).lower()


def test_a_run_below_the_specified_size_claims_nothing(report: Report, tmp_path: Path) -> None:
    assert words.banner(report, claim=True) == ""
    assert words.banner(report, claim=False).startswith("Demo: too small to claim anything. 25 tasks × 5 draws")
    few = replace(report, tasks=report.tasks[:19])
    assert words.banner(few, claim=True).endswith("this run has 19 × 5.")
    assert words.banner(replace(report, tasks=report.tasks[:20]), claim=True) == ""
    short = replace(report, decision=replace(report.decision, details={**report.decision.details, "n": 4}))
    assert words.banner(short, claim=True).endswith("this run has 25 × 4.")


def test_the_readme_says_answer_and_evidence_first_and_then_the_table(report: Report) -> None:
    text = words.readme(report, claim=True, folder="results/x")
    assert text.startswith(f"**{report.decision.answer}.** {report.decision.evidence}\n\n| condition |")
    assert text.endswith(
        "[report](results/x/report.html), [assessment](results/x/assessment.md), all records in `results/x/`"
    )
    assert "\n\n> Demo: too small" in words.readme(report, claim=False, folder="x")


def test_a_plateau_is_told_only_of_trainings_long_enough() -> None:
    few = {"steps": 6, "plateau_step": 0, "early_plateau": True}
    assert _plateau(few) == "not told from 6 steps"
    assert _plateau({**few, "steps": 200}) == "step 0 of 200 (early)"
    assert _plateau({**few, "steps": 200, "plateau_step": None}) == "none"
