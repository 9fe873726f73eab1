"""Estimates from passes and draws: pass@k, paired effects over tasks, intervals, exact tests, shrinkage.

Pure and seeded; numpy and scipy load inside the functions that need them. The unit of analysis is the *task*:
draws of one task resemble each other, so every interval resamples tasks and every test permutes tasks
(Miller 2024, "Adding Error Bars to Evals", sections 2.2 and 4). Effects are in percentage points.

Shapes: T tasks · D domains · S trainings (seeds) · R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from rune.errors import NotEnoughSamples
from rune.types import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]


# --------------------------------------------------------------------------- pass@k


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k of one task from `c` passes in `n` draws (Chen et al. 2021, equation 1).

    Raises NotEnoughSamples if n < k: below k draws the estimator is undefined, not zero.
    """
    if not 0 <= c <= n or k < 1:
        raise ValueError(f"pass@k needs 0 <= c <= n and k >= 1, found c={c}, n={n}, k={k}")
    if n < k:
        raise NotEnoughSamples(f"pass@{k} needs {k} samples per task, found {n}; run `rune sample --set sample.n={k}`")
    return float(1 - Fraction(math.comb(n - c, k), math.comb(n, k)))


def pass_curve(passes: Sequence[int], n: int) -> list[float]:
    """Mean over tasks of pass@k for k = 1…n, in 0..1."""
    each = {c: [pass_at_k(n, c, k) for k in range(1, n + 1)] for c in set(passes)}
    return [math.fsum(each[c][i] for c in passes) / len(passes) for i in range(n)]


def effect_points(treated: Sequence[int], base: Sequence[int], n: int) -> Fraction:
    """Mean over tasks of (c_treated − c_base)/n in percentage points, exactly.

    The gate compares this with its threshold: integers in, a fraction out, so 5 points is never 4.999….
    """
    assert len(treated) == len(base) and n > 0
    return Fraction(100 * (sum(treated) - sum(base)), n * len(base))


# --------------------------------------------------------------------------- intervals


def task_weights(num_tasks: int, resamples: int, seed: int) -> Floats:
    """Bootstrap weights_RT: how often each task is in each resample, over T. Rows sum to 1.

    One set of resamples serves every arm and contrast, which keeps all comparisons paired.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    return rng.multinomial(num_tasks, np.full(num_tasks, 1 / num_tasks), size=resamples) / num_tasks


def task_interval(values: Any, weights_RT: Floats, *, level: float, low: float, high: float) -> Interval:
    """Bootstrap interval of the mean of per-task `values`, in the same unit; `low`, `high` bound one value.

    Percentile interval with the small-sample expansion of Hesterberg (2015, "What Teachers Should Know About
    the Bootstrap", section 4.1.3), without which 25 tasks cover 93 % where 95 % is written. If all tasks
    agree the bootstrap says nothing: then the bound is that of a share of deviating tasks not yet seen
    (Clopper-Pearson at 0 of T), never a width of zero.
    """
    import numpy as np
    from scipy.special import ndtr, stdtrit

    values_T = np.asarray(values, dtype=float)
    num_tasks = values_T.size
    alpha = 1 - level
    mean = float(values_T.mean())
    if num_tasks < 2 or float(np.ptp(values_T)) == 0.0:
        unseen = 1 - (alpha / 2) ** (1 / num_tasks)
        return Interval(low=mean + unseen * (low - mean), high=mean + unseen * (high - mean), level=level)
    spread = math.sqrt(num_tasks / (num_tasks - 1)) * float(stdtrit(num_tasks - 1, alpha / 2))
    tail = float(ndtr(spread))
    ends = np.quantile(weights_RT @ values_T, [tail, 1 - tail])
    return Interval(low=max(low, float(ends[0])), high=min(high, float(ends[1])), level=level)


def mean_interval(
    values: Any, clusters: Sequence[str], weights_RT: Floats, *, level: float, low: float, high: float
) -> Interval:
    """Interval of the mean of values_TS, per task and training, in the same unit; `low`, `high` bound one value.

    `clusters`: each task's domain where domains were drawn and not tasks, else (). With one training it is
    `task_interval` over tasks or domains (`weights_RT` over as many), and says so. With several, tasks and trainings
    are crossed random effects: y = mean + task + training + rest, so that the mean's variance is
    (MS_tasks + MS_trainings − MS_rest) / TS (Searle, Casella and McCulloch 1992, chapter 4), at least LEAST_SHARE of
    what tasks alone give. A variance of trainings estimated below 0 stays below 0: set to 0, intervals are too wide
    where trainings do not differ. Degrees of freedom as Satterthwaite (1946, "An Approximate Distribution of Estimates
    of Variance Components") counts them, with MS_trainings, the least certain of the three, as the only uncertain one;
    that count is divided by 1 + PENALTY / (S − 1) and held between S − 1 and T − 1. The two constants were chosen by
    simulation; `bench/seed_intervals.py` shows what they cover. The plain crossed bootstrap (Owen 2007, "The
    pigeonhole bootstrap") has no such degrees of freedom, and 3 trainings are too few to resample.
    """
    import numpy as np
    from scipy.special import stdtrit

    values_TS = np.asarray(values, dtype=float)
    unit = "domains" if clusters else "tasks"
    mean = float(values_TS.mean())
    if clusters:
        values_TS = _by_cluster(values_TS, clusters)
    num_units, num_trainings = values_TS.shape
    if num_trainings == 1 or num_units < 2 or float(np.ptp(values_TS)) == 0.0:
        over = f"{unit}, one training" if num_trainings == 1 else f"{unit} and trainings"
        return replace(task_interval(values_TS.mean(axis=1), weights_RT, level=level, low=low, high=high), over=over)
    error, freedom = crossed_error(values_TS)
    half = float(stdtrit(freedom, (1 + level) / 2) * error)
    return Interval(low=max(low, mean - half), high=min(high, mean + half), level=level, over=f"{unit} and trainings")


LEAST_SHARE = 0.5  # a variance below this much of the tasks' own is the luck of few trainings
PENALTY = 0.8  # Satterthwaite's count is too high where a variance of 2 degrees of freedom is added to a sure one


class Crossed(NamedTuple):
    """Uncertainty of a mean over units (tasks or domains) and trainings; each an array of the values' leading shape."""

    error: Any  # standard error, in the values' unit
    freedom: Any  # degrees of freedom


def crossed_error(values: Any) -> Crossed:
    """Of the mean of each table in values_…TS (T and S at least 2; S = 1: over units alone). See `mean_interval`."""
    import numpy as np

    units, trainings, rest = _mean_squares(values)
    num_units, num_trainings = np.shape(values)[-2:]
    most = num_units - 1.0
    if num_trainings == 1:
        return Crossed(np.sqrt(units / num_units), np.full(np.shape(units), most))
    scale = np.maximum(units + trainings - rest, LEAST_SHARE * units)
    least = num_trainings - 1.0
    uncertain = (1 + PENALTY / least) * trainings**2
    freedom = np.where(uncertain > 0, least * scale**2 / np.where(uncertain > 0, uncertain, 1.0), most)
    return Crossed(
        np.sqrt(scale / (num_units * num_trainings)),
        np.clip(freedom, min(least, most), most),
    )


def _mean_squares(values: Any) -> tuple[Any, Any, Any]:
    """Two-way analysis of variance of values_…TS: mean squares of units, trainings and the rest (0 if S = 1)."""
    import numpy as np

    values_TS = np.asarray(values, dtype=float)
    num_units, num_trainings = values_TS.shape[-2:]
    row_T, column_S = values_TS.mean(axis=-1), values_TS.mean(axis=-2)
    units = num_trainings * row_T.var(axis=-1, ddof=1)
    if num_trainings == 1:
        return units, np.zeros_like(units), np.zeros_like(units)
    rest_TS = values_TS - row_T[..., :, None] - column_S[..., None, :] + row_T.mean(axis=-1)[..., None, None]
    left = (num_units - 1) * (num_trainings - 1)
    return units, num_units * column_S.var(axis=-1, ddof=1), (rest_TS**2).sum(axis=(-2, -1)) / left


def _by_cluster(values_TS: Floats, clusters: Sequence[str]) -> Floats:
    """One row a domain, whose mean over domains is the mean over tasks: the ratio estimate made linear.

    A domain's row is mean + (its size / the mean size) · (its own means − mean) (Cochran 1977, section 9A.1).
    """
    import numpy as np

    _, index, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    sums_DS = np.zeros((sizes.size, values_TS.shape[1]))
    np.add.at(sums_DS, index, values_TS)
    mean = values_TS.mean()
    found: Floats = mean + (sums_DS - sizes[:, None] * mean) / sizes.mean()
    return found


def cluster_standard_error(values: Any) -> float:
    """Standard error of a mean over tasks; NaN below two tasks, where there is none to be had."""
    import numpy as np

    values_T = np.asarray(values, dtype=float)
    if values_T.size < 2:
        return math.nan
    return float(values_T.std(ddof=1) / math.sqrt(values_T.size))


# --------------------------------------------------------------------------- tests


class SignFlip(NamedTuple):
    """Exact p-values of the sign-flip (paired permutation) test over tasks."""

    greater: float  # P(sum at least as large | each task's sign is a fair coin)
    two_sided: float


def sign_flip(differences: Sequence[int]) -> SignFlip:
    """Exact, not sampled: the distribution of Σ ±d over all 2^T flips, by convolution over integers.

    `differences` are c_treated − c_base per task (same n in both arms). O(T · Σ|d|).
    """
    import numpy as np

    sizes = [abs(int(d)) for d in differences if d]
    total, observed = sum(sizes), int(sum(differences))
    probability = np.zeros(2 * total + 1)  # index: sum + total
    probability[total] = 1.0
    for size in sizes:
        flipped = np.zeros_like(probability)
        flipped[size:] += 0.5 * probability[: probability.size - size]
        flipped[: probability.size - size] += 0.5 * probability[size:]
        probability = flipped
    sums = np.arange(-total, total + 1)
    greater = float(probability[sums >= observed].sum())
    two_sided = float(probability[np.abs(sums) >= abs(observed)].sum())
    return SignFlip(min(1.0, greater), min(1.0, two_sided))


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p-values in the order given (Holm 1979): family-wise error held at any level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [1.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def rank_correlation(x: Sequence[float], y: Sequence[float], *, shuffles: int, seed: int) -> tuple[float, float]:
    """Spearman's ρ and its one-sided permutation p (ρ at least as large by chance); (0, 1) if one is constant."""
    import numpy as np

    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0, 1.0
    x_T, y_T = _ranks(x), _ranks(y)
    x_T, y_T = x_T - x_T.mean(), y_T - y_T.mean()
    scale = math.sqrt(float(x_T @ x_T) * float(y_T @ y_T))
    rho = float(x_T @ y_T) / scale
    rng = np.random.default_rng(seed)
    chance_R = rng.permuted(np.broadcast_to(y_T, (shuffles, y_T.size)), axis=1) @ x_T / scale
    # The observed order is one of the permutations: p is never 0.
    return rho, float((1 + int((chance_R >= rho - 1e-12).sum())) / (1 + shuffles))


def _ranks(values: Sequence[float]) -> Floats:
    """Ranks from 1, ties sharing their mean. (`scipy.stats` has it, and costs a second to import.)"""
    import numpy as np

    _, inverse, repeats = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    last = np.cumsum(repeats)
    ranks: Floats = (last - (repeats - 1) / 2)[inverse]
    return ranks


# --------------------------------------------------------------------------- hierarchical estimate


class BetaBinomial(NamedTuple):
    """Task rates p ~ Beta with this mean and intra-class correlation; passes c ~ Binomial(n, p).

    Beta(a, b) with a + b = 1/icc − 1. Posterior over a grid under flat priors on (mean, icc).
    """

    mean: float  # posterior mean of the population's pass@1, 0..1
    icc: float  # posterior mean; 0: all tasks alike, 1: each task always or never solved
    low: float  # 95 % credible interval of `mean`
    high: float
    grid_mean: Floats
    grid_icc: Floats
    posterior: Floats  # over grid_mean × grid_icc, sums to 1


def fit_beta_binomial(passes: Sequence[int], n: int) -> BetaBinomial:
    """Hierarchical estimate of one arm from its per-task passes (Gelman et al., BDA3, section 5.3)."""
    import numpy as np
    from scipy.special import betaln

    mean = np.linspace(0.0025, 0.9975, 200)
    icc = np.linspace(0.005, 0.985, 99)
    total = (1 / icc - 1)[None, :]
    a, b = mean[:, None] * total, (1 - mean)[:, None] * total
    values, repeats = np.unique(np.asarray(passes), return_counts=True)
    log = np.zeros(a.shape)
    for c, times in zip(values.tolist(), repeats.tolist(), strict=True):
        log += times * (betaln(a + c, b + n - c) - betaln(a, b))
    posterior = np.exp(log - log.max())
    posterior /= posterior.sum()
    marginal = posterior.sum(axis=1)
    cumulative = np.cumsum(marginal)
    ends = [float(mean[min(int(np.searchsorted(cumulative, q)), mean.size - 1)]) for q in (0.025, 0.975)]
    return BetaBinomial(
        float(marginal @ mean), float(posterior.sum(axis=0) @ icc), ends[0], ends[1], mean, icc, posterior
    )


class Shrunken(NamedTuple):
    """Posterior of the mean paired effect over *these* tasks, in points."""

    points: float
    low: float
    high: float
    level: float
    positive: float  # P(effect > 0)
    at_least: float  # P(effect >= threshold)


def task_rates(fit: BetaBinomial, passes: Sequence[int], n: int, *, draws: int, rng: Any) -> Floats:
    """Posterior draws of each task's pass rate, rates_RT, given the arm's fit."""
    import numpy as np

    cell = rng.choice(fit.posterior.size, size=draws, p=fit.posterior.ravel())
    mean_R1 = fit.grid_mean[cell // fit.grid_icc.size][:, None]
    total_R1 = 1 / fit.grid_icc[cell % fit.grid_icc.size][:, None] - 1
    passes_T = np.asarray(passes)
    rates: Floats = rng.beta(mean_R1 * total_R1 + passes_T, (1 - mean_R1) * total_R1 + n - passes_T)
    return rates


def shrunken_effect(treated_RT: Floats, base_RT: Floats, *, threshold: float, level: float) -> Shrunken:
    """The hierarchical effect from two arms' posterior task rates (drawn independently, so conservative)."""
    import numpy as np

    effect_R = 100 * (treated_RT - base_RT).mean(axis=1)
    tail = (1 - level) / 2
    low, high = (float(v) for v in np.quantile(effect_R, [tail, 1 - tail]))
    return Shrunken(
        float(effect_R.mean()), low, high, level, float((effect_R > 0).mean()), float((effect_R >= threshold).mean())
    )
