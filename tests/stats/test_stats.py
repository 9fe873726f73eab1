"""Estimators against closed forms, brute force and simulation."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rune.analysis import stats
from rune.errors import NotEnoughSamples


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_draws_of_k_with_a_pass(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    outcomes = [i < c for i in range(n)]
    subsets = list(itertools.combinations(outcomes, k))
    assert stats.pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_pass_at_k_refuses_fewer_draws_than_k() -> None:
    with pytest.raises(NotEnoughSamples, match=r"needs 6 samples per task, found 5"):
        stats.pass_at_k(5, 5, 6)


def test_pass_curve_starts_at_the_mean_and_never_falls() -> None:
    curve = stats.pass_curve([0, 1, 3, 5], 5)
    assert curve[0] == pytest.approx(9 / 20)
    assert curve == sorted(curve)
    assert curve[-1] == pytest.approx(3 / 4)


def test_five_points_are_exactly_five_points() -> None:
    treated, base = [2] * 15 + [1] * 5, [2] * 10 + [1] * 10  # 35 and 30 of 100 draws
    assert (sum(treated) / 100 - sum(base) / 100) * 100 < 5  # what floats make of it
    assert stats.effect_points(treated, base, 5) == Fraction(5)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=10))
def test_sign_flip_is_exact(differences: list[int]) -> None:
    flips = [
        sum(s * d for s, d in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    observed = sum(differences)
    test = stats.sign_flip(differences)
    assert test.greater == pytest.approx(sum(f >= observed for f in flips) / len(flips))
    assert test.two_sided == pytest.approx(sum(abs(f) >= abs(observed) for f in flips) / len(flips))


def test_sign_flip_of_no_difference_is_one() -> None:
    assert stats.sign_flip([0, 0, 0]) == (1.0, 1.0)


def test_sign_flip_holds_its_level_when_there_is_no_effect() -> None:
    rng = np.random.default_rng(0)
    rates = rng.beta(0.5, 0.5, size=(400, 25))
    differences = rng.binomial(5, rates) - rng.binomial(5, rates)
    rejected = np.mean([stats.sign_flip(row.tolist()).greater < 0.05 for row in differences])
    assert rejected <= 0.08  # 3 standard errors above 0.05


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # worked by hand: 3·0.01, 2·0.03, then the running maximum
        ([0.5], [0.5]),
        ([], []),
        ([0.9, 0.8, 0.7], [1.0, 1.0, 1.0]),
    ],
)
def test_holm(p_values: list[float], adjusted: list[float]) -> None:
    assert stats.holm(p_values) == pytest.approx(adjusted)


def test_bootstrap_weights_resample_tasks_and_repeat_with_the_seed() -> None:
    weights = stats.task_weights(25, 500, seed=3)
    assert weights.sum(axis=1) == pytest.approx(np.ones(500))
    assert np.array_equal(weights, stats.task_weights(25, 500, seed=3))
    assert not np.array_equal(weights, stats.task_weights(25, 500, seed=4))


@pytest.mark.parametrize(("num_tasks", "k"), [(25, 5), (164, 5)])
def test_a_95_percent_interval_covers_93_to_97_percent(num_tasks: int, k: int) -> None:
    rng = np.random.default_rng(1)
    weights = stats.task_weights(num_tasks, 1000, seed=0)
    runs, covered = 1500, 0
    for _ in range(runs):
        rates = rng.beta(0.5, 0.5, size=num_tasks)
        lifted = np.clip(rates + 0.1 * (1 - rates), 0, 1)  # population effect: 0.1 · E[1 − p] = 5 points
        values = 100 * (rng.binomial(k, lifted) - rng.binomial(k, rates)) / k
        interval = stats.task_interval(values, weights, level=0.95, low=-100, high=100)
        covered += interval.low <= 5.0 <= interval.high
    assert 0.93 <= covered / runs <= 0.97


def test_an_interval_over_draws_instead_of_tasks_would_not_cover() -> None:
    """The twin that shows the coverage test can fail: naive intervals cover far too little."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(500):
        rates = rng.beta(0.5, 0.5, size=25)
        draws = rng.random((25, 5)) < rates[:, None]
        error = draws.std() / math.sqrt(draws.size)
        covered += abs(draws.mean() - 0.5) <= 1.96 * error
    assert covered / 500 < 0.85


def test_tasks_that_all_agree_do_not_make_an_interval_of_width_zero() -> None:
    weights = stats.task_weights(25, 200, seed=0)
    interval = stats.task_interval([0.0] * 25, weights, level=0.95, low=-100, high=100)
    assert interval.low == pytest.approx(-interval.high)
    assert interval.high == pytest.approx(100 * (1 - 0.025 ** (1 / 25)))


def test_standard_error_of_one_task_is_refused_not_zero() -> None:
    assert math.isnan(stats.cluster_standard_error([40.0]))
    assert stats.cluster_standard_error([0.0, 100.0]) == pytest.approx(50.0)


def test_rank_correlation_matches_scipy_and_its_p_is_never_zero() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(5)
    x = rng.integers(0, 6, 40).astype(float).tolist()
    y = (np.asarray(x) + rng.normal(0, 2, 40)).round().tolist()
    rho, p = stats.rank_correlation(x, y, shuffles=500, seed=0)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    assert 1 / 501 <= p < 0.05


@pytest.mark.parametrize(("x", "y"), [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [5, 5, 5]), ([1, 2], [1, 2]), ([], [])])
def test_without_three_points_and_two_values_there_is_no_correlation(x: list[float], y: list[float]) -> None:
    assert stats.rank_correlation(x, y, shuffles=10, seed=0) == (0.0, 1.0)


def test_three_points_and_two_values_are_enough_and_p_counts_the_orders_that_do_as_well() -> None:
    """Of the 6 orders of three values 1 is as good; of the 3 places of the odd one out, 1."""
    shuffles = 4000
    rho, p = stats.rank_correlation([1, 2, 3], [10, 20, 30], shuffles=shuffles, seed=0)
    assert (rho, p) == (pytest.approx(1), pytest.approx(1 / 6, abs=0.02))
    for x, y in (([0, 0, 1], [1, 2, 3]), ([1, 2, 3], [0, 0, 1])):
        rho, p = stats.rank_correlation(x, y, shuffles=shuffles, seed=0)
        assert (rho, p) == (pytest.approx(math.sqrt(3) / 2), pytest.approx(1 / 3, abs=0.03))
    # None does as well: what was observed is counted once, with itself.
    x = list(range(30))
    assert stats.rank_correlation(x, x, shuffles=9, seed=0) == (pytest.approx(1), 0.1)
    assert stats.rank_correlation(x, x[::-1], shuffles=9, seed=0) == (pytest.approx(-1), 1.0)


def test_beta_binomial_finds_the_population_it_was_drawn_from() -> None:
    rng = np.random.default_rng(2)
    mean, icc = 0.4, 0.3
    total = 1 / icc - 1
    rates = rng.beta(mean * total, (1 - mean) * total, size=2000)
    fit = stats.fit_beta_binomial(rng.binomial(5, rates).tolist(), 5)
    assert fit.mean == pytest.approx(mean, abs=0.02)
    assert fit.icc == pytest.approx(icc, abs=0.04)
    assert fit.low < mean < fit.high
    assert fit.posterior.sum() == pytest.approx(1.0)


def test_shrinkage_pulls_extreme_tasks_toward_the_population() -> None:
    passes = [0, 5, 2, 3, 2, 3, 2, 3]
    fit = stats.fit_beta_binomial(passes, 5)
    rates = stats.task_rates(fit, passes, 5, draws=4000, rng=np.random.default_rng(0)).mean(axis=0)
    assert 0.05 < rates[0] < 0.4
    assert 0.6 < rates[1] < 0.95
    assert rates[0] == min(rates)


def test_the_hierarchical_interval_covers_the_effect_on_these_tasks() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(60):
        rates = rng.beta(1, 1, size=30)
        lifted = np.clip(rates + 0.05, 0, 1)
        truth = 100 * float((lifted - rates).mean())
        arms = [rng.binomial(5, p).tolist() for p in (lifted, rates)]
        draws = [stats.task_rates(stats.fit_beta_binomial(c, 5), c, 5, draws=600, rng=rng) for c in arms]
        effect = stats.shrunken_effect(*draws, threshold=5.0, level=0.95)
        covered += effect.low <= truth <= effect.high
    assert covered / 60 >= 0.88


# --------------------------------------------------------------------------- the width of an interval


def normal_scores(count: int) -> np.ndarray:
    """As normal as so many values can be, with mean 0 and (sample) spread 1."""
    from scipy.special import ndtri

    values = ndtri((np.arange(count) + 0.5) / count)
    return (values - values.mean()) / values.std(ddof=1)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("num_tasks", [12, 25, 164])
def test_an_interval_of_few_tasks_is_as_wide_as_students(num_tasks: int, level: float) -> None:
    """Of nearly normal values the expanded percentile interval is Student's t; a plain one at 25 tasks is 7 % narrower.

    A twin without the expansion shows that the bound can tell.
    """
    from scipy.stats import t

    values = normal_scores(num_tasks)
    weights = stats.task_weights(num_tasks, 40_000, seed=0)
    student = t.ppf((1 + level) / 2, num_tasks - 1) / math.sqrt(num_tasks)
    interval = stats.task_interval(values, weights, level=level, low=-100, high=100)
    assert interval.level == level
    assert interval.high == pytest.approx(student, rel=0.025) and interval.low == pytest.approx(-student, rel=0.025)
    plain = np.quantile(weights @ values, (1 + level) / 2)
    if num_tasks <= 25:
        assert plain < (1 - 0.7 / num_tasks) * interval.high


def test_an_interval_at_25_tasks_covers_what_it_says() -> None:
    """Differences of passes out of five, true effect 6 points: 95 % cover it, and 80 % where 80 % is written."""
    rng = np.random.default_rng(0)
    weights = stats.task_weights(25, 1000, seed=0)
    covered = {0.95: 0, 0.8: 0}
    runs = 4000
    rates = rng.uniform(0.1, 0.8, size=(runs, 25))
    values = 20.0 * (rng.binomial(5, rates + 0.06) - rng.binomial(5, rates))
    for row in values:
        for level in covered:
            interval = stats.task_interval(row, weights, level=level, low=-100, high=100)
            covered[level] += interval.low <= 6.0 <= interval.high
    assert 0.94 <= covered[0.95] / runs <= 0.96  # unexpanded: 0.930 and 0.778
    assert 0.785 <= covered[0.8] / runs <= 0.815


def test_an_interval_moves_and_scales_with_its_values_and_lies_within_their_bounds() -> None:
    values = np.random.default_rng(0).normal(10, 30, size=25)
    weights = stats.task_weights(25, 2000, seed=1)
    one = stats.task_interval(values, weights, level=0.95, low=-1000, high=1000)
    moved = stats.task_interval(2 * values + 7, weights, level=0.95, low=-1000, high=1000)
    assert (moved.low, moved.high) == pytest.approx((2 * one.low + 7, 2 * one.high + 7))
    tight = stats.task_interval(values, weights, level=0.95, low=one.low + 1, high=one.high - 1)
    assert (tight.low, tight.high) == (one.low + 1, one.high - 1)


def test_a_single_task_and_tasks_that_agree_get_a_bound_on_what_was_not_seen() -> None:
    weights = stats.task_weights(10, 100, seed=0)
    alike = stats.task_interval([40.0] * 10, weights, level=0.9, low=0.0, high=100.0)
    unseen = 1 - 0.05 ** (1 / 10)
    assert (alike.low, alike.high) == pytest.approx((40 - 40 * unseen, 40 + 60 * unseen))
    one = stats.task_interval([40.0], stats.task_weights(1, 10, seed=0), level=0.9, low=0.0, high=100.0)
    assert (one.low, one.high) == pytest.approx((40 - 40 * 0.95, 40 + 60 * 0.95))


def test_the_hierarchical_effect_reads_its_numbers_off_the_posterior_draws() -> None:
    """Draws 0, 1, … 100 points: mean, both ends at the level asked for, and the shares above zero and the threshold."""
    treated = np.repeat(np.arange(101)[:, None] / 100, 3, axis=1)
    found = stats.shrunken_effect(treated, np.zeros((101, 3)), threshold=20.0, level=0.8)
    assert (found.points, found.low, found.high, found.level) == pytest.approx((50.0, 10.0, 90.0, 0.8))
    assert found.positive == pytest.approx(100 / 101) and found.at_least == pytest.approx(81 / 101)
