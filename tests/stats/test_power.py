"""The design's simulator, against what was published for this gate and against the exact test."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rune.analysis import power, stats
from rune.analysis.power import Baseline, Design


def simulate(
    num_tasks: int,
    k: int,
    seeds: int = 1,
    *,
    icc: float = 0.5,
    effect_sd: float = 0.0,
    seed_sd: float = 0.0,
    simulations: int = 2000,
) -> power.Power:
    return power.simulate(
        Baseline(0.5, icc),
        Design(num_tasks, k, seeds),
        threshold=5.0,
        alpha=0.05,
        target_power=0.8,
        effect_sd=effect_sd,
        seed_sd=seed_sd,
        simulations=simulations,
        seed=0,
    )


def test_the_specified_gate_passes_one_time_in_eight_without_any_effect() -> None:
    found = simulate(25, 5)
    assert 0.09 <= found.false_pass <= 0.15
    assert 6.4 <= found.luck <= 8.0
    assert 0.42 <= found.at_threshold.passes <= 0.53
    assert 10.5 <= found.detectable <= 13.0


def test_more_tasks_and_draws_make_the_gate_mean_something() -> None:
    found = simulate(164, 20, simulations=400)
    assert found.false_pass <= 0.01
    assert found.at_threshold.significant >= 0.99
    assert found.detectable < 3.0


def test_an_adapter_that_helps_some_and_hurts_others_is_harder_to_judge() -> None:
    alike, effect_sd = simulate(25, 5), simulate(25, 5, effect_sd=1.0)
    assert effect_sd.false_pass > alike.false_pass
    assert effect_sd.detectable > alike.detectable


@pytest.mark.parametrize("effect_sd", [0.0, 1.0])
def test_the_simulated_effect_is_the_effect_that_was_asked_for(effect_sd: float) -> None:
    base = Baseline(0.4, 0.3)
    shift = power._shift(base, 0.10, effect_sd)
    rng = np.random.default_rng(0)
    logits = power._task_logits(base, (400, 500), rng)
    moved = power._expit(logits + effect_sd * rng.standard_normal(logits.shape) + shift)
    assert float(moved.mean()) == pytest.approx(0.50, abs=0.005)


def test_the_t_test_of_the_simulator_agrees_with_the_exact_test_of_the_gate() -> None:
    rng = np.random.default_rng(3)
    rates = rng.beta(0.5, 0.5, size=(500, 25))
    lifted = np.clip(rates + 0.15 * (1 - rates), 0, 1)
    d = rng.binomial(5, lifted) - rng.binomial(5, rates)
    t = d.mean(axis=1) / (d.std(axis=1, ddof=1) / math.sqrt(25))
    by_t = t > 1.7109  # one-sided 5 %, 24 degrees of freedom
    exact = np.array([stats.sign_flip(row.tolist()).greater < 0.05 for row in d])
    assert np.mean(by_t == exact) > 0.93
    # The exact test is discrete, so it rejects a little less often than its nominal level allows.
    assert 0 <= by_t.mean() - exact.mean() < 0.06


def test_the_proposal_is_the_cheapest_design_that_is_neither_fooled_nor_blind() -> None:
    table = [simulate(n, k, simulations=500) for n in (25, 164) for k in (5, 20)]
    chosen = power.propose(table, alpha=0.05)
    assert chosen is not None
    assert chosen.false_pass <= 0.05
    assert chosen.detectable <= 5.0
    assert chosen.design == Design(164, 5)
    assert power.propose(table[:1], alpha=0.05) is None


def test_two_tasks_can_be_significant_and_one_cannot() -> None:
    one, two = (simulate(tasks, 20).curve[-1] for tasks in (1, 2))
    assert one.significant == 0
    assert 0.02 < two.significant < 0.5


def test_same_seed_same_answer() -> None:
    assert simulate(25, 5, simulations=200) == simulate(25, 5, simulations=200)


@pytest.mark.parametrize("mean", [0.05, 0.4, 0.42, 0.95])
def test_only_effects_that_a_mean_can_have_are_tabled(mean: float) -> None:
    effects, shifts = power._shifts(Baseline(mean, 0.5), 0.0)
    reached = mean + effects / 100
    assert reached.min() > 0.001 and reached.max() < 0.999
    assert reached.min() < 0.022 or effects[0] == -40.0  # and none of them is left out
    assert reached.max() > 0.978 or effects[-1] == 58.0
    assert np.all(np.diff(shifts) > 0) and np.abs(shifts).max() < 29.0  # none at the end of what is searched


def test_the_rule_is_over_the_draws_of_all_trainings() -> None:
    """Trainings that do not differ are draws: three of five are one of fifteen."""
    three, fifteen = simulate(25, 5, 3), simulate(25, 15)
    assert three.false_pass == pytest.approx(fifteen.false_pass, abs=0.03)
    assert three.luck == pytest.approx(fifteen.luck, abs=0.5)
    assert three.at_twice.passes == pytest.approx(fifteen.at_twice.passes, abs=0.03)


def test_what_trainings_differ_by_averages_out_over_them() -> None:
    one, four = (simulate(60, 5, seeds, seed_sd=8.0, simulations=500) for seeds in (1, 4))
    assert one.luck == pytest.approx(1.645 * 8, rel=0.2)  # far above what tasks and draws give
    assert four.luck == pytest.approx(one.luck / 2, rel=0.2)


def test_a_design_that_luck_passes_is_not_proposed_whatever_it_can_see() -> None:
    fooled = simulate(25, 5, simulations=200)._replace(false_pass=0.12, detectable=3.0)
    blind = fooled._replace(false_pass=0.01, detectable=9.0)
    good = fooled._replace(false_pass=0.05, detectable=5.0, design=Design(164, 5))
    assert power.propose([fooled, blind], alpha=0.05) is None
    assert power.propose([fooled, blind, good], alpha=0.05) == good


def test_trainings_differ_by_what_the_page_says_unless_one_is_told_otherwise() -> None:
    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    assert f"Without it trainings differ by {power.SEED_SD:g} points" in page


def test_an_effect_without_any_spread_is_not_called_significant() -> None:
    """No error can be estimated from it, so no test says anything."""
    for value in (5.0, 0.0, -5.0):
        assert not power._significant(np.full((1, 4, 3), value), 0.05).any()
    spread = np.array([[[9.0], [10.0], [11.0], [10.0]]])
    assert power._significant(spread, 0.05).all() and not power._significant(-spread, 0.05).any()
