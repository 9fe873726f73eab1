"""Every number of `analysis.stats` and `analysis.power` on inputs that use each branch, and of one whole decision.

python -m tests.stats.frozen      writes frozen.json anew: only when a number is meant to change, and say why
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rune import config
from rune.analysis import gate, leakage, power, stats
from rune.types import Decision, Outcome, Problem, Split, Verdict

FILE = Path(__file__).with_name("frozen.json")
TASKS = [3.0, -1.5, 0.0, 12.5, 4.0, 4.0, -7.25, 30.0, 1.0]
TABLE = [[0, 20, 40], [60, 60, 100], [20, 0, 0], [100, 80, 100], [40, 60, 20], [0, 0, 20], [80, 60, 60]]
DOMAINS = ["a", "a", "a", "b", "b", "c", "d"]


def numbers() -> dict[str, Any]:
    """Name → what a function gives."""
    found: dict[str, Any] = {"pass_at_k": [stats.pass_at_k(7, c, k) for c in (0, 1, 4, 7) for k in (1, 3, 7)]}
    found["pass_curve"] = stats.pass_curve([0, 1, 3, 5, 5], 5)
    weights = stats.task_weights(9, 400, 3)
    found["weights"] = [weights.shape, weights[0].tolist(), weights[-1].tolist(), float(weights.sum())]
    found["task_interval"] = [
        stats.task_interval(TASKS, weights, level=0.9, low=-100.0, high=100.0),
        stats.task_interval(TASKS, weights, level=0.99, low=-1.0, high=9.0),
        stats.task_interval(TASKS[:2], stats.task_weights(2, 400, 1), level=0.8, low=-100.0, high=100.0),
        stats.task_interval([20.0] * 9, weights, level=0.95, low=0.0, high=100.0),
        stats.task_interval([20.0], weights[:, :1], level=0.95, low=-50.0, high=100.0),
    ]
    tables: dict[str, Any] = {
        "trainings": TABLE,
        "trainings far apart": [[v + 300 * s for s, v in enumerate(row)] for row in TABLE],
        "one training": [row[:1] for row in TABLE],
        "all alike": [[40, 40]] * 7,
        "two tasks": TABLE[:2],
        "one task": TABLE[:1],
    }
    for name, table in tables.items():
        clusters = DOMAINS[: len(table)]
        for over in ((), clusters):
            units = len(set(over)) or len(table)
            found[f"mean_interval, {name}, {len(over)} clusters"] = [
                stats.mean_interval(table, over, stats.task_weights(units, 300, 5), level=level, low=low, high=high)
                for level, low, high in ((0.95, -1000.0, 1000.0), (0.5, 42.0, 48.0))
            ]
    several = np.asarray([TABLE, [[v * 2 for v in row] for row in TABLE], tables["trainings far apart"]], dtype=float)
    found["crossed_error"] = [[each.tolist() for each in stats.crossed_error(several)]]
    found["crossed_error"] += [[each.tolist() for each in stats.crossed_error(several[:, :, :1])]]
    found["crossed_error"] += [[each.tolist() for each in stats.crossed_error(np.zeros((2, 4, 3)))]]
    found["cluster_standard_error"] = stats.cluster_standard_error(TASKS)
    found["sign_flip"] = [
        stats.sign_flip(d) for d in ([3, -1, 0, 2, 2, -4, 1], [-3, 1, -2], [5], [-1, -1, -1, -1], [0, 0], [])
    ]
    found["holm"] = [stats.holm(p) for p in ([0.04, 0.01, 0.3, 0.01], [0.9, 0.8], [0.2], [])]
    x, y = [1.0, 2.0, 2.0, 5.0, 9.0, 9.0, 9.0, 11.0], [3.0, 1.0, 4.0, 4.0, 8.0, 2.0, 9.0, 9.0]
    found["rank_correlation"] = [
        stats.rank_correlation(x, y, shuffles=500, seed=2),
        stats.rank_correlation(x, [-v for v in y], shuffles=50, seed=0),
        stats.rank_correlation([1, 2, 3], [1, 1, 4], shuffles=200, seed=1),
    ]
    fits = {}
    for name, passes in {"mixed": [0, 0, 1, 3, 5, 5, 4, 2, 0], "none": [0] * 9, "all": [5] * 9}.items():
        fit = fits[name] = stats.fit_beta_binomial(passes, 5)
        found[f"beta-binomial, {name}"] = [
            *(fit.mean, fit.icc, fit.low, fit.high, fit.grid_mean.shape, fit.grid_icc.shape),
            *(fit.grid_mean[[0, -1]].tolist(), fit.grid_icc[[0, -1]].tolist(), float(fit.posterior.sum())),
            *(int(fit.posterior.argmax()), fit.posterior.sum(axis=0)[::20].tolist()),
            fit.posterior.sum(axis=1)[::40].tolist(),
        ]
    rng = np.random.default_rng(4)
    base = stats.task_rates(fits["mixed"], [0, 0, 1, 3, 5, 5, 4, 2, 0], 5, draws=40, rng=rng)
    treated = stats.task_rates(fits["all"], [5] * 9, 5, draws=40, rng=rng)
    found["task_rates"] = [base.shape, base[0].tolist(), base[-1].tolist(), treated.mean(axis=0).tolist()]
    found["shrunken_effect"] = [
        stats.shrunken_effect(treated, base, threshold=40.0, level=0.9),
        stats.shrunken_effect(np.full((3, 4), 0.75), np.full((3, 4), 0.5), threshold=25.0, level=0.9),
        stats.shrunken_effect(np.full((3, 4), 0.5), np.full((3, 4), 0.5), threshold=0.5, level=0.9),
    ]
    return found


def designs() -> dict[str, power.Power]:
    """Name → what a design buys: tasks alike or not, one training or several, and tasks that are too easy or hard."""
    rule: dict[str, Any] = {"threshold": 5.0, "alpha": 0.05, "target_power": 0.8, "effect_sd": 0.0, "seed": 3}
    rule["simulations"] = 200
    plain = power.Baseline(0.45, 0.5)
    return {
        "plain": power.simulate(plain, power.Design(60, 5), **rule),
        "another threshold": power.simulate(plain, power.Design(40, 2), **{**rule, "threshold": 7.5, "alpha": 0.2}),
        "mixed": power.simulate(plain, power.Design(60, 5), **{**rule, "effect_sd": 0.8}),
        "trainings": power.simulate(plain, power.Design(30, 2, 3), seed_sd=3.0, **rule),
        "mixed trainings": power.simulate(plain, power.Design(30, 2, 2), seed_sd=3.0, **{**rule, "effect_sd": 0.5}),
        "hard": power.simulate(power.Baseline(0.0, 0.0), power.Design(20, 4), **rule),
        "easy": power.simulate(power.Baseline(1.0, 1.0), power.Design(20, 4), **rule),
        "one task": power.simulate(plain, power.Design(1, 5), **rule),
    }


PASSES = {
    "vanilla": [0, 1, 2, 0, 3, 6, 6, 1, 0, 2, 4, 5],
    "hypernet": [1, 2, 4, 0, 5, 6, 6, 3, 0, 1, 6, 6],
    "wrong_trajectory": [0, 1, 1, 0, 3, 6, 5, 1, 0, 2, 4, 4],
    "static": [0, 2, 2, 1, 3, 6, 6, 1, 0, 2, 4, 5],
    "rag": [1, 2, 5, 0, 5, 6, 6, 3, 1, 1, 6, 6],
    "tuned": [2, 2, 5, 0, 5, 6, 6, 3, 1, 1, 6, 6],
}


def _trainings() -> list[dict[str, tuple[int, ...]]]:
    """What each of two trainings passes of it."""
    return [{arm: tuple((c + s) // 2 for c in each) for arm, each in PASSES.items()} for s in (0, 1)]


def decisions() -> dict[str, Decision]:
    """Name → a whole decision over twelve tasks of four domains and six arms."""
    problems = [
        Problem(
            task_id=f"T/{i}", benchmark="t", prompt="", entry_point="f", test="", split=Split.HELD_OUT,
            domain="abcd"[i % 4] if i != 3 else "a",
        )
        for i in range(12)
    ]  # fmt: skip
    verdicts = [
        Verdict(task_id=f"T/{i}", condition=arm, draw=d, outcome=Outcome.PASSED if d < c else Outcome.FAILED)
        for arm, passes in PASSES.items()
        for i, c in enumerate(passes)
        for d in range(6)
    ]
    rule = gate.Config(n=6, resamples=300, simulations=100)
    suspicious = leakage.Finding(status="suspicious", effect_without=2.5)
    return {
        "as specified": gate.decide(problems, verdicts, rule),
        "domains and trainings": gate.decide(problems, verdicts, rule, trainings=_trainings(), by="domain"),
        "a leak carries it": gate.decide(problems, verdicts, rule, leak=suspicious),
        "another threshold": gate.decide(
            problems, verdicts, replace(rule, threshold_points=40.0, level=0.8, alpha=0.2, leakage_points=5.0, seed=9)
        ),
        "another treatment": gate.decide(problems, verdicts, replace(rule, treatment="rag", baseline="static")),
    }


PARTS: dict[str, Callable[[], Any]] = {
    "numbers": numbers,
    "designs": designs,
    "decisions": lambda: config.plain(decisions()),
}


def differences(frozen: Any, found: Any, where: str = "") -> list[str]:
    """Where the two differ by more than rounding."""
    if isinstance(frozen, dict) and isinstance(found, dict) and frozen.keys() == found.keys():
        return [d for key in frozen for d in differences(frozen[key], found[key], f"{where} / {key}")]
    if isinstance(frozen, list) and isinstance(found, list) and len(frozen) == len(found):
        return [
            d for i, (a, b) in enumerate(zip(frozen, found, strict=True)) for d in differences(a, b, f"{where}[{i}]")
        ]
    if isinstance(frozen, float) and isinstance(found, float | int):
        same = math.isclose(frozen, found, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(frozen) and math.isnan(found))
        return [] if same else [f"{where}: {frozen} → {found}"]
    return [] if frozen == found else [f"{where}: {frozen!r} → {found!r}"]


if __name__ == "__main__":
    found = {name: part() for name, part in PARTS.items()}
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False, default=asdict) + "\n", encoding="utf-8")
