"""What a gate of N tasks and k draws can and cannot see, by simulation, before any GPU minute is spent.

Model: task rates p ~ Beta(mean, icc), passes ~ Binomial(k, p), drawn afresh for both arms. An effect of δ
points moves every task's log-odds by the one constant that moves the mean by δ ("alike"), or by that constant
plus N(0, `effect_sd`²) noise of its own ("mixed": helps some tasks, hurts others). The gate's rule is applied to
integers as the gate applies it. Significance is the one-sided paired t test over tasks, which stands in for
the exact sign-flip test (tests/stats holds them against each other).

With several trainings each has an effect of its own, δ + N(0, `seed_sd`²) points, and the test is over both.

Shapes: S simulated experiments · N tasks · M trainings.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rune.analysis import stats

TARGET_POWER = 0.8  # the gate asks which effect is found significant so often
GRID_POINTS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0)

# Standard deviation of trainings, in points of right − bare: what `rune power` assumes unless it is told otherwise.
SEED_SD = 2.0


class Baseline(NamedTuple):
    """How hard the tasks are for the bare model."""

    mean: float  # pass@1, 0..1
    icc: float  # intra-class correlation of draws within a task, 0..1


class Design(NamedTuple):
    num_tasks: int
    k: int  # draws per task, arm and training
    seeds: int = 1  # trainings


class Point(NamedTuple):
    """Chances at one true effect."""

    true_points: float
    passes: float  # P(measured effect >= threshold): the gate's rule
    significant: float  # P(one-sided p < alpha)


class Power(NamedTuple):
    """What a design buys."""

    design: Design
    threshold: float  # points
    false_pass: float  # P(gate passes | no effect)
    luck: float  # 95th percentile of the measured effect without any, points
    at_threshold: Point
    at_twice: Point
    detectable: float  # smallest true effect found significant with the wanted power; inf if beyond the curve
    curve: tuple[Point, ...]


def simulate(
    baseline: Baseline,
    design: Design,
    *,
    threshold: float,
    alpha: float,
    target_power: float,
    effect_sd: float,
    seed_sd: float = 0.0,
    simulations: int,
    seed: int,
) -> Power:
    """Monte Carlo over `simulations` experiments per true effect, the same tasks and base draws at each.

    `threshold` of the gate is in points, `alpha` and `target_power` in 0..1. `effect_sd` is of tasks, in log-odds;
    `seed_sd` of trainings, in points.
    """
    import numpy as np

    points = sorted({*GRID_POINTS, threshold, 2 * threshold})
    rng = np.random.default_rng(seed)
    size = (simulations, design.num_tasks)
    logits_SN = _task_logits(baseline, size, rng)
    base_SNM = rng.binomial(design.k, _expit(logits_SN)[..., None], size=(*size, design.seeds))
    trained_S1M = seed_sd * rng.standard_normal((simulations, 1, design.seeds)) if seed_sd else 0.0
    wobble_SN = effect_sd * rng.standard_normal(size) if effect_sd else 0.0
    draws = design.num_tasks * design.k * design.seeds
    needed = threshold * draws / 100 - 1e-9
    curve, luck = [], 0.0
    for true in points:
        shift = _shift(baseline, true / 100, effect_sd)
        if seed_sd:
            shift = np.interp(true + trained_S1M, *_shifts(baseline, effect_sd))
        rates_SNM = _expit((logits_SN + wobble_SN)[..., None] + shift)
        difference_SNM = rng.binomial(design.k, rates_SNM, size=base_SNM.shape) - base_SNM
        sums_S = difference_SNM.sum(axis=(1, 2))
        found = _significant(difference_SNM, alpha) if design.num_tasks > 1 else np.zeros(simulations)
        curve.append(Point(true, float((sums_S >= needed).mean()), float(found.mean())))
        if true == 0.0:
            luck = 100 * float(np.quantile(sums_S, 0.95)) / draws
    at = {p.true_points: p for p in curve}
    return Power(
        design,
        threshold,
        at[0.0].passes,
        luck,
        at[threshold],
        at[2 * threshold],
        _reach(curve, target_power),
        tuple(curve),
    )


def propose(table: Sequence[Power], *, alpha: float) -> Power | None:
    """The cheapest design whose gate is rarely fooled and that can see its own threshold.

    That is: false passes at most `alpha`, and a detectable effect no larger than the threshold. None if no
    row of the table qualifies.
    """
    fit = [p for p in table if p.false_pass <= alpha and p.detectable <= p.threshold]
    return min(fit, key=lambda p: (p.design.num_tasks * p.design.k * p.design.seeds, p.design.num_tasks), default=None)


def _significant(difference_SNM: Any, alpha: float) -> Any:
    """One-sided t test of each experiment's mean, as `stats.mean_interval`: over tasks, and trainings if several."""
    from scipy.special import stdtrit

    error_S, freedom_S = stats.crossed_error(difference_SNM)
    return (difference_SNM.mean(axis=(1, 2)) > stdtrit(freedom_S, 1 - alpha) * error_S) & (error_S > 0)


@functools.lru_cache(maxsize=16)  # a table of designs asks for the same ones again and again
def _shifts(baseline: Baseline, effect_sd: float) -> tuple[Any, Any]:
    """Effects in points, and the log-odds constant of each, to be interpolated between."""
    import numpy as np

    effects = np.arange(-40.0, 60.0, 2.0)
    effects = effects[(effects / 100 > 0.001 - baseline.mean) & (effects / 100 < 0.999 - baseline.mean)]
    return effects, np.array([_shift(baseline, e / 100, effect_sd) for e in effects])


def _reach(curve: Sequence[Point], target_power: float) -> float:
    """Where the significance curve first crosses `target_power`, between grid points by straight line."""
    for before, after in itertools.pairwise(curve):
        if before.significant < target_power <= after.significant:
            part = (target_power - before.significant) / (after.significant - before.significant)
            return before.true_points + part * (after.true_points - before.true_points)
    return math.inf


def _task_logits(baseline: Baseline, size: tuple[int, int], rng: Any) -> Any:
    import numpy as np

    total = 1 / min(max(baseline.icc, 1e-3), 0.999) - 1
    mean = min(max(baseline.mean, 1e-3), 1 - 1e-3)
    rates = np.clip(rng.beta(mean * total, (1 - mean) * total, size=size), 1e-9, 1 - 1e-9)
    return np.log(rates) - np.log1p(-rates)


def _shift(baseline: Baseline, effect: float, effect_sd: float) -> float:
    """The log-odds constant that moves the population mean by `effect` (bisection on fixed quantiles)."""
    import numpy as np
    from scipy.special import betaincinv, ndtri

    total = 1 / min(max(baseline.icc, 1e-3), 0.999) - 1
    mean = min(max(baseline.mean, 1e-3), 1 - 1e-3)
    grid = (np.arange(400) + 0.5) / 400
    rates = np.clip(betaincinv(mean * total, (1 - mean) * total, grid), 1e-9, 1 - 1e-9)
    noise = effect_sd * ndtri((np.arange(25) + 0.5) / 25) if effect_sd else np.zeros(1)
    logits = (np.log(rates) - np.log1p(-rates))[:, None] + noise[None, :]
    target = min(mean + effect, 0.999)
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if float(_expit(logits + middle).mean()) < target:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _expit(x: Any) -> Any:
    from scipy.special import expit

    return expit(x)
