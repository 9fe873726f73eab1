"""What a gate of N tasks and k draws can and cannot see, by simulation, before any GPU minute is spent.

Model: task rates p ~ Beta(mean, icc), passes ~ Binomial(k, p), drawn afresh for both arms. An effect of δ
points moves every task's log-odds by the one constant that moves the mean by δ ("alike"), or by that constant
plus N(0, `effect_sd`²) noise of its own ("mixed": helps some tasks, hurts others). The gate's rule is applied to
integers as the gate applies it. Significance is the one-sided paired t test over tasks, which stands in for
the exact sign-flip test (tests/stats holds them against each other).

Shapes: S simulated experiments · N tasks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

GRID_POINTS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0, 25.0)


class Baseline(NamedTuple):
    """How hard the tasks are for the bare model."""

    mean: float  # pass@1, 0..1
    icc: float  # intra-class correlation of draws within a task, 0..1


class Design(NamedTuple):
    num_tasks: int
    k: int  # draws per task and arm


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
    detectable: float  # smallest true effect found significant with the wanted power; inf if above 25 points
    curve: tuple[Point, ...]


def simulate(
    baseline: Baseline,
    design: Design,
    *,
    threshold: float,
    alpha: float,
    target_power: float,
    effect_sd: float,
    simulations: int,
    seed: int,
) -> Power:
    """Monte Carlo over `simulations` experiments per true effect, the same tasks and base draws at each."""
    import numpy as np
    from scipy.special import stdtrit

    points = sorted({*GRID_POINTS, threshold, 2 * threshold})
    rng = np.random.default_rng(seed)
    size = (simulations, design.num_tasks)
    logits_SN = _task_logits(baseline, size, rng)
    base_SN = rng.binomial(design.k, _expit(logits_SN))
    wobble_SN = effect_sd * rng.standard_normal(size) if effect_sd else 0.0
    critical = float(stdtrit(design.num_tasks - 1, 1 - alpha)) if design.num_tasks > 1 else math.inf
    needed = threshold * design.num_tasks * design.k / 100 - 1e-9
    curve, luck = [], 0.0
    for true in points:
        shift = _shift(baseline, true / 100, effect_sd)
        rates_SN = _expit(logits_SN + wobble_SN + shift)
        difference_SN = rng.binomial(design.k, rates_SN) - base_SN
        sums_S = difference_SN.sum(axis=1)
        error_S = difference_SN.std(axis=1, ddof=1) / math.sqrt(design.num_tasks)
        with np.errstate(divide="ignore", invalid="ignore"):
            t_S = np.where(error_S > 0, difference_SN.mean(axis=1) / error_S, 0.0)
        curve.append(Point(true, float((sums_S >= needed).mean()), float((t_S > critical).mean())))
        if true == 0.0:
            luck = 100 * float(np.quantile(sums_S, 0.95)) / (design.num_tasks * design.k)
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
    return min(fit, key=lambda p: (p.design.num_tasks * p.design.k, p.design.num_tasks), default=None)


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
