"""Intervals over tasks and trainings, against simulation, hand-made tables and the pooled interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import stdtrit

from rune.analysis import stats
from rune.types import Interval

WEIGHTS = stats.task_weights(50, 500, seed=0)


def interval(values_TS: object, clusters: tuple[str, ...] = ()) -> Interval:
    return stats.mean_interval(values_TS, clusters, WEIGHTS, level=0.95, low=-100.0, high=100.0)


@pytest.mark.parametrize(("seeds", "seed_sd"), [(3, 0.0), (3, 3.0), (5, 3.0), (10, 3.0)])
def test_it_covers_where_the_pooled_interval_does_not(seeds: int, seed_sd: float) -> None:
    rng = np.random.default_rng(1)
    ours = pooled = 0
    for _ in range(1000):
        task, training = 15 * rng.standard_normal((50, 1)), seed_sd * rng.standard_normal((1, seeds))
        values = 5 + task + training + 15 * rng.standard_normal((50, seeds))
        found = interval(values)
        ours += found.low <= 5 <= found.high
        by_task = values.mean(axis=1)
        pooled += bool(abs(by_task.mean() - 5) <= 2.0096 * stats.cluster_standard_error(by_task))
    assert 930 <= ours <= 970
    if seed_sd and seeds < 10:
        assert pooled < 925  # the band would fail it


def test_it_says_what_it_is_over() -> None:
    table = np.random.default_rng(1).standard_normal((50, 3))
    assert interval(table).over == "tasks and trainings"
    assert interval(table[:, :1]).over == "tasks, one training"
    assert (
        interval(np.repeat(table, 2, axis=0), tuple(f"d{i // 2}" for i in range(100))).over == "domains and trainings"
    )


def test_copies_of_a_task_in_one_domain_tell_nothing_new() -> None:
    table = 10 * np.random.default_rng(2).standard_normal((50, 3))
    twice = interval(np.repeat(table, 2, axis=0), tuple(f"d{i // 2:02}" for i in range(100)))
    once = interval(table)
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))


def test_trainings_that_do_not_differ_leave_the_t_interval_over_tasks() -> None:
    task = 10 * np.random.default_rng(3).standard_normal((50, 1))
    found, half = interval(np.repeat(task, 3, axis=1)), 2.0096 * stats.cluster_standard_error(task[:, 0])
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=1e-3)


def test_where_trainings_differ_and_tasks_do_not_there_are_as_many_degrees_of_freedom_as_trainings_less_one() -> None:
    rng = np.random.default_rng(4)
    training = np.array([[-9.0, 1.0, 8.0]])
    table = training + 0.01 * rng.standard_normal((50, 3))
    error, freedom = stats.crossed_error(table)
    assert float(freedom) == pytest.approx(2.0, rel=1e-3)
    assert float(error) == pytest.approx(training.std(ddof=1) / np.sqrt(3), rel=1e-2)
    found = interval(table)  # 4.303: the quantile of Student's t at 2 degrees of freedom
    assert (found.high - found.low) / 2 == pytest.approx(4.303 * training.std(ddof=1) / np.sqrt(3), rel=1e-2)


def test_a_domain_weighs_by_its_tasks() -> None:
    """Against the ratio estimate's variance written out: Σ (sum of a domain − size · mean)², over the mean size."""
    sizes = (1, 2, 3, 4, 20)
    values = 10 * np.random.default_rng(5).standard_normal(sum(sizes))
    clusters = tuple(f"d{d}" for d, size in enumerate(sizes) for _ in range(size))
    mean, squares, start = values.mean(), 0.0, 0
    for size in sizes:
        squares += (values[start : start + size].sum() - size * mean) ** 2
        start += size
    error = np.sqrt(squares / (5 * 4)) / np.mean(sizes)
    found = interval(np.stack([values, values], axis=1), clusters)
    assert (found.low, found.high) == pytest.approx((mean - 2.7764 * error, mean + 2.7764 * error), rel=1e-3)


def test_two_tasks_are_enough_for_an_interval_over_trainings() -> None:
    values_TS = np.array([[1.0, 2.0, 4.0], [2.0, 3.0, 3.5]])
    error, freedom = stats.crossed_error(values_TS)
    half = float(stdtrit(freedom, 0.975) * error)
    found = stats.mean_interval(values_TS, (), np.ones((1, 2)) / 2, level=0.95, low=-1e6, high=1e6)
    assert (found.low, found.high) == pytest.approx((values_TS.mean() - half, values_TS.mean() + half))


def test_trainings_that_happen_to_agree_make_the_interval_narrower_than_the_tasks_alone_would() -> None:
    """The variance of trainings is estimated below zero here; cut off at zero, intervals are too wide on average."""
    rng = np.random.default_rng(0)
    values_TS = 2 * rng.standard_normal((50, 1)) + rng.standard_normal((50, 4))
    values_TS -= 0.9 * (values_TS.mean(axis=0) - values_TS.mean())
    by_task = values_TS.mean(axis=1)
    rest_TS = values_TS - by_task[:, None] - values_TS.mean(axis=0) + values_TS.mean()
    trainings, rest = 50 * values_TS.mean(axis=0).var(ddof=1), (rest_TS**2).sum() / (49 * 3)
    assert trainings < rest
    error, freedom = stats.crossed_error(values_TS)
    assert float(error) == pytest.approx(np.sqrt((4 * by_task.var(ddof=1) + trainings - rest) / 200))
    assert float(error) < stats.cluster_standard_error(by_task)
    assert float(freedom) == 49.0


def test_however_much_trainings_agree_half_of_the_tasks_variance_stays() -> None:
    values_TS = np.random.default_rng(1).standard_normal((50, 4))
    values_TS -= values_TS.mean(axis=0)
    values_TS -= 0.9 * values_TS.mean(axis=1, keepdims=True)
    error, _ = stats.crossed_error(values_TS)
    assert float(error) == pytest.approx(np.sqrt(0.5) * stats.cluster_standard_error(values_TS.mean(axis=1)))
