"""What a config's gate can see, before anything is drawn: power of its design and of the designs one could afford.

From a baseline run (its tasks' difficulties, fitted) or from a prior on the base's pass@1 and intra-class
correlation. Writes power.json and, with a plot, power.html.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune.analysis import counts as _counts
from rune.analysis import evidence, power, stats
from rune.analysis.power import Baseline, Design, Power
from rune.reporting.tables import Table
from rune.runs import store
from rune.types import Problem, Verdict

TASKS = (25, 30, 64, 164)  # the specified gate, its upper end, a published split, all of HumanEval
DRAWS = (5, 10, 20, 50)


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of the simulator."""

    baseline: Baseline
    design: Design  # the config's own
    threshold: float
    alpha: float
    seed_sd: float = power.SEED_SD  # of trainings, points
    target_power: float = 0.8  # power that counts as seeing
    simulations: int = 2000
    seed: int = 0


def baseline_of(folder: store.RunDir, arm: str) -> Baseline:
    """Difficulties of an earlier run's tasks under `arm`, by the beta-binomial fit."""
    counts = _counts.count(
        store.read_jsonl(folder / "problems.jsonl", Problem),
        [v for v in store.read_jsonl(folder / "verdicts.jsonl", Verdict) if v.condition == arm],
        treatment=arm,
        baseline=arm,
        least=1,
    )
    fit = stats.fit_beta_binomial(counts.passes[arm], counts.n)
    return Baseline(fit.mean, fit.icc)


def answer(question: Question) -> tuple[list[tuple[Power, Power]], Power | None]:
    """(alike, mixed) for the config's design and the grid, and the cheapest design that means something.

    A proposal must hold in the harder case, where the adapter helps some tasks and hurts others.
    """
    designs = dict.fromkeys([question.design, *(Design(n, k, question.design.seeds) for n in TASKS for k in DRAWS)])
    pairs = [(_simulate(question, d, 0.0), _simulate(question, d, 1.0)) for d in designs]
    return pairs, power.propose([effect_sd for _, effect_sd in pairs], alpha=question.alpha)


def _simulate(question: Question, design: Design, effect_sd: float) -> Power:
    return power.simulate(
        question.baseline,
        design,
        threshold=question.threshold,
        alpha=question.alpha,
        target_power=question.target_power,
        effect_sd=effect_sd,
        seed_sd=question.seed_sd,
        simulations=max(200, min(question.simulations, 4_000_000 // (design.num_tasks * design.k * design.seeds))),
        seed=question.seed,
    )


def table(question: Question, pairs: Sequence[tuple[Power, Power]]) -> Table:
    """One line per design; ranges are alike – mixed."""

    def span(a: float, b: float) -> str:
        return f"{100 * a:.1f} – {100 * b:.1f} %"

    rows = tuple(
        (
            f"{a.design.num_tasks} × {a.design.k}" + (" (this config)" if a.design == question.design else ""),
            str(a.design.seeds),
            span(a.false_pass, b.false_pass),
            f"{a.luck:.1f} – {b.luck:.1f}",
            span(a.at_threshold.passes, b.at_threshold.passes),
            span(a.at_threshold.significant, b.at_threshold.significant),
            span(a.at_twice.passes, b.at_twice.passes),
            f"{_detectable(a)} – {_detectable(b)}",
        )
        for a, b in pairs
    )
    t = f"{question.threshold:g}"
    return Table(
        f"Power of a gate at {t} points (base {100 * question.baseline.mean:.0f} %, "
        f"intra-class correlation {question.baseline.icc:.2f}, trainings differ by {question.seed_sd:g} points)",
        (
            "tasks × draws",
            "trainings",
            "passes by luck",
            "95 % of luck",
            f"passes at +{t}",
            f"significant at +{t}",
            f"passes at +{2 * question.threshold:g}",
            "detectable, points",
        ),
        rows,
        "Ranges: an effect alike for all tasks – one that helps some and hurts others. Draws: a task and "
        "training. Significant: one-sided over tasks, and over trainings where there are several, at "
        f"{100 * question.alpha:g} %. Detectable: found significant {100 * question.target_power:g} times in 100.",
    )


def verdict(question: Question, pairs: Sequence[tuple[Power, Power]], best: Power | None) -> str:
    """What to do about it, in one sentence or two."""
    own = pairs[0][1]
    said = (
        f"This gate ({evidence.size(own.design)}) passes without any effect {evidence.chance(own.false_pass)} at worst."
    )
    if best is None:
        largest = evidence.size(Design(TASKS[-1], DRAWS[-1], own.design.seeds))
        return f"{said} No design up to {largest} sees {question.threshold:g} points reliably."
    return (
        f"{said} The cheapest gate that is fooled at most {100 * question.alpha:g} times in 100 and sees "
        f"{question.threshold:g} points: {evidence.size(best.design)}."
    )


def write(path: Path, question: Question, pairs: Sequence[tuple[Power, Power]], best: Power | None) -> None:
    """power.json in `path`, and power.html with the curve of the config's design."""
    from rune.reporting import figures as _figures
    from rune.reporting.page import render

    alike, effect_sd = pairs[0]
    record: dict[str, Any] = {
        "baseline": question.baseline._asdict(),
        "threshold": question.threshold,
        "seed_sd": question.seed_sd,
        "designs": [{"alike": evidence.power_record(a), "mixed": evidence.power_record(b)} for a, b in pairs],
        "proposal": best.design._asdict() if best else None,
    }
    store.write_json(path / "power.json", record)
    figures = {
        "alike": _figures.power_curve([p._asdict() for p in alike.curve], question.threshold, None),
        "mixed": _figures.power_curve(
            [p._asdict() for p in effect_sd.curve], question.threshold, None, name="power-mixed"
        ),
    }
    view = {"table": table(question, pairs), "figures": figures, "verdict": verdict(question, pairs, best)}
    store.write_atomic(path / "power.html", render("power.html.j2", view))


def _detectable(found: Power) -> str:
    return f"{found.detectable:.1f}" if math.isfinite(found.detectable) else f"> {found.curve[-1].true_points:g}"
