"""How good an adapter is: φ = α · pass_rate + (1 − α) · generalization, with an interval.

pass_rate: pass@1, the mean over tasks of its own domains that it was not made from. generalization: the same over tasks
of other domains. Why these, and why α = 0.7, is argued in docs/memory.md.

The two means are over different tasks, so they are independent. Each has the task bootstrap's interval of `stats`; the
interval of their weighted sum is put together from the two (MOVER: Zou and Donner 2008, Statistics in Medicine 27:1693,
eq. 3), which keeps their skew and never has width zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rune.adapters.registry.records import Fitness
from rune.analysis import stats
from rune.errors import ConfigError, DataError
from rune.types import Interval

ALPHA = 0.7
LEVEL = 0.95
RESAMPLES = 4000

Passes = Mapping[str, tuple[int, int]]  # task → (passes, draws)


def fault(alpha: float) -> str:
    """What is wrong with an α, "" if nothing is."""
    return "" if 0 <= alpha <= 1 else f"alpha is a share, 0 to 1 (the specified one is {ALPHA}); found {alpha:g}"


def check_alpha(alpha: float) -> None:
    """Raises ConfigError outside 0..1."""
    if said := fault(alpha):
        raise ConfigError(said)


def fitness(
    inside: Passes, outside: Passes, *, alpha: float, protocol: str, measured: str, level: float = LEVEL, seed: int = 0
) -> Fitness:
    """φ of one adapter from its passes, in 0..1. A part of weight zero may have no tasks; its rate is NaN.

    `alpha`: the weight of `inside`; `level` of the interval, whose bootstrap `seed` draws. `protocol` is the digest
    that the passes were drawn under, `measured` a time; both are kept as they are.

    Raises ConfigError for α outside 0..1, DataError for a part that counts and has no tasks.
    """
    check_alpha(alpha)
    parts = []
    for what, weight, passes in (("its domain", alpha, inside), ("other domains", 1 - alpha, outside)):
        if weight and not passes:
            raise DataError(f"no held-out tasks of {what}: nothing to measure φ with α = {alpha:g} on")
        parts.append(_rate(passes, level, seed) if passes else None)
    terms = [(w, p) for w, p in zip((alpha, 1 - alpha), parts, strict=True) if w and p is not None]
    value = math.fsum(w * rate for w, (rate, _) in terms)
    below = math.hypot(*(w * (rate - interval.low) for w, (rate, interval) in terms))
    above = math.hypot(*(w * (interval.high - rate) for w, (rate, interval) in terms))
    rates = [math.nan if part is None else part[0] for part in parts]
    return Fitness(
        value=value,
        low=max(0.0, value - below),
        high=min(1.0, value + above),
        level=level,
        alpha=alpha,
        pass_rate=rates[0],
        generalization=rates[1],
        inside_tasks=len(inside),
        outside_tasks=len(outside),
        draws=sum(n for _, n in (*inside.values(), *outside.values())),
        protocol=protocol,
        measured=measured,
    )


def _rate(passes: Passes, level: float, seed: int) -> tuple[float, Interval]:
    values = [passes[task][0] / passes[task][1] for task in sorted(passes)]
    weights_RT = stats.task_weights(len(values), RESAMPLES, seed)
    return math.fsum(values) / len(values), stats.task_interval(values, weights_RT, level=level, low=0.0, high=1.0)
