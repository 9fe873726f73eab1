"""docs/statistics.md, claim by claim, on verdicts made so that a broken one shows."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from rune.analysis import gate, leakage, power, stats
from rune.errors import GateError
from rune.types import Contrast, Decision, Outcome
from tests.gate.test_gate import BASE, FIVE, SETTINGS, both, decide, tasks, verdicts

LARGE = leakage.Finding("clean", 50.0)


def arms(passes: Mapping[str, Sequence[int]], settings: gate.Config = SETTINGS, n: int = 5, **more: object) -> Decision:
    records = itertools.chain.from_iterable(verdicts(arm, c, n) for arm, c in passes.items())
    return decide(records, len(next(iter(passes.values()))), settings, **more)


def by_name(decision: Decision) -> dict[str, Contrast]:
    return {c.name: c for c in decision.contrasts}


# --------------------------------------------------------------------------- the rule


def test_the_rule_without_settings_is_the_specified_one() -> None:
    assert gate.Config() == gate.Config(
        n=5, threshold_points=5.0, leakage_points=15.0, floor=0.02, ceiling=0.95, treatment="hypernet",
        baseline="vanilla", level=0.95, alpha=0.05, resamples=10_000, simulations=1_000, seed=0,
    )  # fmt: skip
    family = ("wrong_trajectory", "static", "empty_trajectory", "lora", "rag", "teacher", "oracle")
    assert family == gate.SECONDARY
    assert (gate.PASSED, gate.FAILED) == ("Gate PASSED", "Gate FAILED — reassessing")


@pytest.mark.parametrize("seed", range(3))
def test_the_answer_is_the_point_rule_whatever_stands_beside_it(seed: int) -> None:
    rng = random.Random(seed)
    base = [rng.randint(0, 5) for _ in range(12)]
    treated = [min(5, c + rng.choice((0, 0, 0, 1))) for c in base]
    effect = Fraction(100 * (sum(treated) - sum(base)), 60)
    expected = "Gate PASSED" if effect >= 5 else "Gate FAILED — reassessing"
    alone = arms({"vanilla": base, "hypernet": treated})
    beside = {"wrong_trajectory": treated, "static": [5] * 12, "rag": [0] * 12}
    crowd = arms({"vanilla": base, "hypernet": treated, **beside}, leak=leakage.Finding("suspicious", -20.0))
    for decision in (alone, crowd):
        assert (decision.passed, decision.answer) == (effect >= 5, expected)
        assert Fraction(decision.details["effect_exact"]) == effect
        assert decision.contrasts[0].points == decision.effect_points == float(effect)


def test_a_threshold_that_no_float_holds_is_met_exactly() -> None:
    """1.1 as a binary float is a little more than 1.1: 11 draws of 1,000 would not reach it."""
    settings = replace(SETTINGS, threshold_points=1.1)
    base = [1] * 200
    assert arms({"vanilla": base, "hypernet": [2] * 11 + base[11:]}, settings).passed
    assert not arms({"vanilla": base, "hypernet": [2] * 10 + base[10:]}, settings).passed


@pytest.mark.parametrize(("passed", "gated"), [(1, False), (2, True), (95, True), (96, False)])
def test_a_base_from_2_to_95_percent_can_be_gated_ends_included(passed: int, gated: bool) -> None:
    base = [5] * (passed // 5) + [passed % 5] + [0] * 20
    passes = {"vanilla": base[:20], "hypernet": [2] * 20}
    if gated:
        assert arms(passes).details["passes"]["vanilla"] == base[:20]
    else:
        with pytest.raises(GateError, match=rf"vanilla passes {passed}\.0 % of draws, outside 2–95 %"):
            arms(passes)


def test_the_gated_pair_is_the_configs() -> None:
    settings = replace(SETTINGS, treatment="lora", baseline="rag")
    decision = arms({"vanilla": [5] * 20, "hypernet": [0] * 20, "lora": FIVE, "rag": BASE}, settings)
    assert decision.passed and decision.effect_points == 5.0 and decision.contrasts[0].name == "lora − rag"
    assert decision.hypotheses[0].startswith("H0: lora does not raise pass@1 over rag")


def test_only_a_passed_outcome_is_a_pass() -> None:
    for outcome in Outcome:
        records = [replace(v, outcome=outcome) if v.condition == "hypernet" else v for v in both(FIVE, BASE)]
        assert decide(records).passed is (outcome is Outcome.PASSED)


@pytest.mark.parametrize(
    ("vanilla", "hypernet", "said"),
    [
        (6, 5, "arm 'hypernet' has 5 draws per task, 'vanilla' 6; arms must be equal"),
        (5, 7, "arm 'hypernet' has 7 draws per task, 'vanilla' 5; arms must be equal"),
        (4, 7, "the gate needs 5 samples per task, arm 'vanilla' has 4; "),
        (3, 2, "the gate needs 5 samples per task, arm 'hypernet' has 2; "),
    ],
)
def test_a_refusal_names_the_arm_and_its_own_number_of_draws(vanilla: int, hypernet: int, said: str) -> None:
    with pytest.raises(GateError, match=re.escape(said)):
        decide(verdicts("vanilla", BASE, vanilla) + verdicts("hypernet", FIVE, hypernet))


def test_a_doubled_verdict_or_task_is_named_wherever_it_stands() -> None:
    records = both(FIVE, BASE)
    for twice in (records[7], records[-1]):
        with pytest.raises(GateError, match=f"{twice.condition}, {twice.task_id}, draw {twice.draw}: two verdicts"):
            decide([*records, twice])
    with pytest.raises(GateError, match="held-out task T/3 stands twice"):
        gate.decide([*tasks(20), tasks(4)[3]], records, SETTINGS)


def test_an_arm_without_verdicts_is_named_with_those_that_have_some() -> None:
    with pytest.raises(GateError, match=r"no verdicts of arm 'hypernet' \(found: rag, vanilla\); run `rune score RUN`"):
        decide(verdicts("vanilla", BASE) + verdicts("rag", BASE))
    with pytest.raises(GateError, match=r"no verdicts of arm 'vanilla' \(found: none\)"):
        decide([])


# --------------------------------------------------------------------------- intervals and tests


def test_a_contrast_and_its_mirror_image_have_mirrored_intervals_from_one_set_of_resamples() -> None:
    passes = {"vanilla": BASE, "hypernet": [5, 0, 3, 4] * 5, "lora": [5, 0, 3, 4] * 5}
    decision = arms(passes)
    forward = decision.contrasts[0]
    assert by_name(decision)["lora − vanilla"].interval == forward.interval  # the same numbers, the same resamples
    back = arms(passes, replace(SETTINGS, treatment="vanilla", baseline="hypernet")).contrasts[0]
    assert (back.interval.low, back.interval.high) == pytest.approx((-forward.interval.high, -forward.interval.low))
    assert back.p_value == forward.p_value and (back.wins, back.losses) == (forward.losses, forward.wins)
    # P(sum ≥ s) + P(sum ≤ s) is 1 and what both hold: the observed sum itself.
    assert forward.p_greater + back.p_greater > 1


def test_level_and_seed_of_the_intervals_are_the_configs() -> None:
    records = both([5, 0, 3, 4] * 5, BASE)
    wide, narrow = (decide(records, settings=replace(SETTINGS, level=level)) for level in (0.95, 0.5))
    for a, b in zip((*wide.arms, *wide.contrasts), (*narrow.arms, *narrow.contrasts), strict=True):
        assert (a.interval.level, b.interval.level) == (0.95, 0.5)
        assert a.interval.low < b.interval.low < b.interval.high < a.interval.high
    assert "95 % interval" in wide.evidence and "50 % interval" in narrow.evidence
    other = decide(records, settings=replace(SETTINGS, seed=1))
    assert other.contrasts[0].interval != wide.contrasts[0].interval
    assert other.contrasts[0].p_value == wide.contrasts[0].p_value  # exact: no seed in it


def test_intervals_stay_within_what_a_rate_and_a_difference_can_be() -> None:
    decision = arms({"vanilla": [0, 0, 0, 1], "hypernet": [5, 5, 5, 4]}, n=5)
    assert all(0 <= a.interval.low <= 100 * a.pass_at_1 <= a.interval.high <= 100 for a in decision.arms)
    assert all(-100 <= c.interval.low <= c.points <= c.interval.high <= 100 for c in decision.contrasts)


def test_intervals_are_the_task_bootstrap_of_rates_and_of_differences_in_points() -> None:
    passes = {"vanilla": BASE, "hypernet": [5, 0, 3, 4] * 5, "lora": [5] * 20, "rag": [0] * 20}
    decision = arms(passes)
    weights = stats.task_weights(20, SETTINGS.resamples, SETTINGS.seed)
    for score in decision.arms:
        rates = [20.0 * c for c in passes[score.condition]]
        expected = stats.task_interval(rates, weights, level=0.95, low=0.0, high=100.0)
        assert score.interval == replace(expected, over="tasks, one training")
    for contrast in decision.contrasts:
        pairs = zip(passes[contrast.treatment], passes[contrast.baseline], strict=True)
        gains = [20.0 * (a - b) for a, b in pairs]
        expected = stats.task_interval(gains, weights, level=0.95, low=-100.0, high=100.0)
        assert contrast.interval == replace(expected, over="tasks, one training")


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"floor": 0.0, "ceiling": 1.0}, True),
        ({"floor": 0.5, "ceiling": 0.5}, False),
        ({"floor": -0.01}, False),
        ({"ceiling": 1.01}, False),
        ({"level": 0.0}, False),
        ({"alpha": 0.0}, False),
        ({"alpha": 1.0}, False),
        ({"n": 1, "resamples": 100, "simulations": 100}, True),
        ({"resamples": 99}, False),
        ({"simulations": 99}, False),
    ],
)
def test_settings_are_refused_exactly_where_they_lose_their_meaning(settings: dict[str, float], fits: bool) -> None:
    if fits:
        replace(SETTINGS, **settings)  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match="needs"):
            replace(SETTINGS, **settings)  # type: ignore[arg-type]


def test_both_p_values_are_those_of_the_exact_test_over_tasks() -> None:
    treated = [3, 3, 3, 3, 3, 1, *BASE[6:]]
    primary = decide(both(treated, BASE)).contrasts[0]
    differences = [1, 1, 1, 1, 1, -1]
    flips = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in itertools.product((1, -1), repeat=6)
    ]
    assert primary.p_greater == pytest.approx(sum(f >= 4 for f in flips) / 64)
    assert primary.p_value == pytest.approx(sum(abs(f) >= 4 for f in flips) / 64)
    assert decide(both(BASE, treated)).contrasts[0].p_greater == pytest.approx(sum(f >= -4 for f in flips) / 64)


def test_every_arm_has_pass_at_k_for_every_k_up_to_its_draws() -> None:
    passes = [0, 1, 3, 5] * 5
    decision = arms({"vanilla": passes, "hypernet": FIVE})
    for score in decision.arms:
        counts = decision.details["passes"][score.condition]
        assert score.pass_curve == pytest.approx(
            [sum(stats.pass_at_k(5, c, k) for c in counts) / 20 for k in range(1, 6)]
        )
        assert score.pass_at_1 == pytest.approx(score.pass_curve[0]) == pytest.approx(sum(counts) / 100)
        assert (score.num_tasks, score.num_samples, score.num_passed) == (20, 100, sum(counts))


# --------------------------------------------------------------------------- many contrasts


def up(count: int) -> list[int]:
    """BASE with `count` tasks one pass better: alone a two-sided p of 2 · 2^−count."""
    return [c + 1 if i < count else c for i, c in enumerate(BASE)]


def test_credit_needs_a_p_below_alpha_after_holm_not_before() -> None:
    """Six tasks of twenty better than under the wrong trajectory: p = 0.031 alone, 0.0625 of two contrasts."""
    hypernet = [c + 3 for c in BASE]
    six_less = [c - 1 if i < 6 else c for i, c in enumerate(hypernet)]
    alone = arms({"vanilla": BASE, "hypernet": hypernet, "wrong_trajectory": six_less}, leak=LARGE)
    two = arms({"vanilla": BASE, "hypernet": hypernet, "wrong_trajectory": six_less, "static": six_less}, leak=LARGE)
    for decision, adjusted, grade in ((alone, 2 / 64, "attributed"), (two, 4 / 64, "unattributed")):
        contrast = by_name(decision)["hypernet − wrong_trajectory"]
        assert contrast.interval.low > 0 and contrast.p_value == pytest.approx(2 / 64)
        assert contrast.p_adjusted == pytest.approx(adjusted)
        assert decision.grade == grade
        assert f"p = {adjusted:.3f} after Holm" in " ".join(decision.reasons)


def test_the_family_is_the_treatment_against_its_controls_and_nothing_else() -> None:
    """Steps of Holm with different p-values: the smallest is multiplied by the family's size, and so on."""
    controls = dict(zip(gate.SECONDARY, range(1, 8), strict=True))
    top = up(8)
    passes = {arm: [c - 1 if i < lost else c for i, c in enumerate(top)] for arm, lost in controls.items()}
    decision = arms({"vanilla": BASE, "hypernet": top, **passes, "mine": [0] * 19 + [1]})
    found = by_name(decision)
    raw = {arm: 2.0 * 0.5**lost for arm, lost in controls.items()}
    expected, running = {}, 0.0
    for left, arm in enumerate(sorted(raw, key=lambda a: raw[a])):
        running = max(running, min(1.0, (7 - left) * raw[arm]))
        expected[arm] = running
    assert {a: found[f"hypernet − {a}"].p_value for a in raw} == pytest.approx({a: min(1, p) for a, p in raw.items()})
    assert {a: found[f"hypernet − {a}"].p_adjusted for a in raw} == pytest.approx(expected)
    assert [a.condition for a in decision.arms[:2]] == list(decision.details["passes"])[:2] == ["vanilla", "hypernet"]
    assert [c.name for c in decision.contrasts[1:8]] == [f"hypernet − {a}" for a in gate.SECONDARY]
    rest = [c for c in decision.contrasts if c.role != "secondary"]
    assert [c.p_adjusted for c in rest] == [None] * len(rest)
    assert found["mine − vanilla"].role == "descriptive" and "hypernet − mine" not in found


def test_right_and_wrong_are_told_apart_from_right_and_static() -> None:
    hypernet = [c + 3 for c in BASE]
    passes = {"vanilla": BASE, "hypernet": hypernet, "wrong_trajectory": hypernet, "static": BASE}
    no_credit = arms(passes, leak=LARGE)
    assert no_credit.grade == "unattributed"  # better than the constant part, but so is the wrong one
    assert (
        "right − wrong trajectory +0.0" in no_credit.evidence and "right − static adapter +60.0" in no_credit.evidence
    )
    swapped = arms({**passes, "wrong_trajectory": BASE, "static": hypernet}, leak=LARGE)
    assert swapped.grade == "attributed" and "right − wrong trajectory +60.0" in swapped.evidence


# --------------------------------------------------------------------------- leakage and the grade


def test_exactly_fifteen_points_need_no_leakage_check_and_one_draw_more_does() -> None:
    fifteen = [c + 1 if i < 15 else c for i, c in enumerate(BASE)]
    at = decide(both(fifteen, BASE))
    assert (at.effect_points, at.leakage_check) == (15.0, "not required") and at.grade != "suspended"
    above = decide(both([*fifteen[:-1], fifteen[-1] + 1], BASE))
    assert (above.effect_points, above.leakage_check, above.grade) == (16.0, "required", "suspended")


@pytest.mark.parametrize(
    ("leak", "grade"),
    [
        (leakage.Finding("suspicious", 4.9), "suspended"),
        (leakage.Finding("suspicious", 5.0), "unattributed"),  # without those tasks it still passes
        (leakage.Finding("suspicious", None), "suspended"),  # no task is left to say so
        (leakage.Finding("clean", 60.0), "unattributed"),
    ],
)
def test_a_pass_that_needs_its_suspicious_tasks_is_suspended(leak: leakage.Finding, grade: str) -> None:
    decision = decide(both([c + 3 for c in BASE], BASE), leak=leak)
    assert (decision.grade, decision.leakage_check, decision.answer) == (grade, leak.status, "Gate PASSED")


def test_what_the_check_found_is_the_gates_not_a_threshold_of_its_own() -> None:
    settings = replace(SETTINGS, threshold_points=8.0)
    assert decide(both([4] * 20, BASE), settings=settings, leak=leakage.Finding("suspicious", 6.0)).grade == "suspended"
    lenient = replace(SETTINGS, leakage_points=60.0)
    assert decide(both([4] * 20, BASE), settings=lenient).leakage_check == "not required"


# --------------------------------------------------------------------------- beside it: power and shrinkage


def test_the_designs_power_is_that_of_the_base_model_and_of_these_tasks_and_draws() -> None:
    low = decide(both(FIVE, BASE))
    fit = stats.fit_beta_binomial(BASE, 5)
    expected = power.simulate(
        power.Baseline(fit.mean, fit.icc), power.Design(20, 5), threshold=5.0, alpha=0.05,
        target_power=0.8, effect_sd=0.0,
        simulations=SETTINGS.simulations, seed=SETTINGS.seed,
    )  # fmt: skip
    found = low.details["power"]
    assert found["design"] == {"num_tasks": 20, "k": 5, "seeds": 1}
    assert (found["false_pass"], found["detectable"]) == (expected.false_pass, expected.detectable)
    assert found["at_threshold"] == expected.at_threshold._asdict() and found["threshold"] == 5.0
    # Another treatment is another effect, not another design.
    assert decide(both([0, 5] * 10, BASE)).details["power"] == found
    assert decide(both(FIVE, [0, 5] * 10)).details["power"] != found


def test_the_hierarchical_effect_is_treatment_minus_base_and_nearer_to_zero_than_the_measured() -> None:
    treated = [5, 5, 5, 5, 3] * 4
    for settings, sign in ((SETTINGS, 1), (replace(SETTINGS, treatment="vanilla", baseline="hypernet"), -1)):
        decision = decide(both(treated, BASE), settings=settings, leak=LARGE)
        effect = decision.details["hierarchical"]["effect"]
        assert 0 < sign * effect["points"] < sign * decision.effect_points
        assert effect["low"] < effect["points"] < effect["high"] and effect["level"] == 0.95
        assert (effect["positive"] > 0.99, effect["at_least"] > 0.99) == ((True, True) if sign > 0 else (False, False))
    arms = decision.details["hierarchical"]["arms"]
    assert arms["hypernet"]["low"] < 0.92 < arms["hypernet"]["high"] and arms["vanilla"]["mean"] < 0.4
    assert decision.details["hierarchical"]["base_se_points"] == pytest.approx(
        stats.cluster_standard_error([20 * c for c in treated])
    )
