"""Verdicts → a decision: `Gate PASSED` or `Gate FAILED — reassessing`, and what stands beside it.

`decide` is pure: problems and verdicts in, a Decision out; no model, no torch, no file. The answer follows
the pre-registered point rule on exact fractions. Intervals, exact tests, power and controls stand beside it
and never change it. Whatever would make the comparison meaningless is refused: missing, surplus or doubled
verdicts, too few draws, a base at the floor or the ceiling. Broken promises and seals are
refused before, in `stages/gate.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from rune.analysis import counts as _counts
from rune.analysis import evidence, leakage, power, stats
from rune.config import ADDED
from rune.errors import GateError
from rune.runs import records
from rune.types import ArmScore, Contrast, Decision, Problem, Scorer, Split, Verdict

PASSED = "Gate PASSED"
FAILED = "Gate FAILED — reassessing"
# Arms that the treatment is compared with, one Holm family. The first three ask whether it was the trajectory.
SECONDARY = ("wrong_trajectory", "static", "empty_trajectory", "lora", "rag", "teacher", "oracle")
_DRAWS = 4000  # posterior draws of the hierarchical estimate


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[gate]`; their digest is fixed when the run starts. The rule's values are the specified ones."""

    n: int = 5  # draws a task that every arm must have at least (the specified k)
    threshold_points: float = 5.0  # measured effect that passes, percentage points
    leakage_points: float = 15.0  # above this a leakage check is demanded
    floor: float = 0.02  # a base below this share cannot be gated: nothing works
    ceiling: float = 0.95  # nor above this: nothing is left to gain
    treatment: str = "hypernet"
    baseline: str = "vanilla"
    level: float = 0.95  # of intervals
    alpha: float = 0.05  # of tests
    resamples: int = 10_000  # of the task bootstrap
    simulations: int = 1_000  # experiments per point of the power curve
    seed: int = 0  # of bootstrap and simulation
    most_loss: float = field(default=0.0, metadata=ADDED)  # percent of pass@1 that variants may lose; 0 = not the rule

    def __post_init__(self) -> None:
        if self.n < 1 or self.resamples < 100 or self.simulations < 100:
            raise ValueError("needs n >= 1, resamples >= 100 and simulations >= 100")
        if not 0 <= self.floor < self.ceiling <= 1 or not 0 < self.level < 1 or not 0 < self.alpha < 1:
            raise ValueError("needs 0 <= floor < ceiling <= 1, and level and alpha between 0 and 1")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, found {self.seed}")
        if not 0 <= self.most_loss < 100:
            raise ValueError(
                f"most_loss is a percentage, 0 (not the rule) or more and below 100, found {self.most_loss:g}"
            )
        if self.threshold_points <= 0:
            raise ValueError(f"threshold_points must be above 0, found {self.threshold_points:g}")
        if self.treatment == self.baseline:
            raise ValueError(f"treatment and baseline are the same arm, {self.treatment!r}")


def decide(
    problems: Sequence[Problem],
    verdicts: Sequence[Verdict],
    config: Config,
    *,
    arms: Sequence[str] = (),
    leak: leakage.Finding | None = None,
    trainings: Sequence[Mapping[str, tuple[int, ...]]] = (),
    by: str = "task",
) -> Decision:
    """The decision from verdicts alone; `leak` is what the leakage check found, None if it was not made.

    `trainings`: arm → passes per held-out task, of each training by itself, where there are several; they add up to
    what the verdicts say. `by`: "domain" if the design splits by domain, so that intervals are over domains.

    Raises GateError for whatever `counts.count` refuses, and for a base outside [floor, ceiling].
    """
    counts = _count(problems, verdicts, config, arms)
    domains = {p.task_id: p.domain for p in problems}
    clusters = tuple(domains[t] for t in counts.tasks) if by == "domain" else ()
    counts = replace(counts, trainings=tuple(trainings) if len(trainings) > 1 else (), clusters=clusters)
    base, treated = counts.passes[config.baseline], counts.passes[config.treatment]
    total = counts.n * len(counts.tasks)
    compared = counts.scorer is Scorer.EXACT_VALUE
    _check_base(Fraction(sum(base), total), config, nothing=compared and any(map(sum, counts.passes.values())))
    effect = stats.effect_points(treated, base, counts.n)
    passed = effect >= Fraction(str(config.threshold_points))
    checked = leak.status if leak else ("required" if effect > Fraction(str(config.leakage_points)) else "not required")

    weights_RT = stats.task_weights(len(set(clusters)) or len(counts.tasks), config.resamples, config.seed)
    scores = tuple(_score(arm, counts, weights_RT, config) for arm in counts.passes)
    contrasts = _contrasts(counts, weights_RT, config)
    primary = contrasts[0]
    by_baseline = {c.baseline: c for c in contrasts if c.treatment == config.treatment}
    wrong, static = by_baseline.get("wrong_trajectory"), by_baseline.get("static")

    fits = {arm: stats.fit_beta_binomial(c, counts.n) for arm, c in counts.passes.items()}
    reach = power.simulate(
        power.Baseline(fits[config.baseline].mean, fits[config.baseline].icc),
        power.Design(len(counts.tasks), counts.n // max(1, len(trainings)), max(1, len(trainings))),
        threshold=config.threshold_points,
        alpha=config.alpha,
        target_power=power.TARGET_POWER,
        effect_sd=0.0,
        seed_sd=power.SEED_SD if len(trainings) > 1 else 0.0,
        simulations=config.simulations,
        seed=config.seed,
    )
    grade = evidence.grade(
        passed=passed,
        primary=primary,
        threshold=config.threshold_points,
        wrong=wrong,
        unexplained=checked == "required" or _carried_by_leak(leak, config),
        alpha=config.alpha,
    )
    return Decision(
        passed=passed,
        answer=PASSED if passed else FAILED,
        effect_points=float(effect),
        threshold_points=config.threshold_points,
        relative_change=sum(treated) / sum(base) - 1 if sum(base) else None,
        leakage_check=checked,
        arms=scores,
        contrasts=contrasts,
        reasons=evidence.reasons(
            passed=passed,
            primary=primary,
            threshold=config.threshold_points,
            leakage=checked,
            effect_without=leak.effect_without if leak else None,
            leakage_points=config.leakage_points,
            power=reach,
            alpha=config.alpha,
            contrasts=contrasts,
        ),
        grade=grade,
        evidence=evidence.sentence(
            grade, primary=primary, wrong=wrong, static=static, power=reach, threshold=config.threshold_points
        ),
        hypotheses=evidence.hypotheses(
            primary=primary,
            base=sum(base) / total,
            treated=sum(treated) / total,
            passed=passed,
            threshold=config.threshold_points,
            alpha=config.alpha,
            measure=counts.scorer.measure(),
        ),
        scorer=counts.scorer,
        details={
            "effect_exact": str(effect),
            "tasks": list(counts.tasks),
            "n": counts.n,
            "trainings": max(1, len(trainings)),
            "passes": {arm: list(c) for arm, c in counts.passes.items()},
            "power": evidence.power_record(reach),
            "hierarchical": _hierarchical(counts, fits, config),
        },
    )


def over(
    problems: Sequence[Problem],
    parts: Sequence[records.Records],
    config: Config,
    *,
    seeds: Sequence[int] = (),
    by: str = "task",
) -> tuple[Decision, dict[str, Any]]:
    """The decision from the records of one or several cells, and what the leakage check found in each of them.

    A task that several cells scored (with other training seeds) counts its draws of all of them together;
    `config.n` is what each cell must have at least. `seeds`: each part's training seed, () if there is one for all.
    A task is as suspicious as in the worst of its cells.
    """
    verdicts: list[Verdict] = records.counted_on([part.verdicts for part in parts])
    rows: dict[str, leakage.Row] = {}
    times: Counter[str] = Counter()
    passes: dict[int, Counter[tuple[str, str]]] = {}
    for part, seed in zip(parts, seeds or [0] * len(parts), strict=True):
        held_out = [p for p in part.problems if p.split is Split.HELD_OUT]
        times.update(p.task_id for p in held_out)
        # Each cell must be whole by itself: put together, one's surplus would stand in for what another lacks.
        own = _count(held_out, part.verdicts, config, list(dict.fromkeys(t.condition for t in part.treatments)))
        of_seed = passes.setdefault(seed, Counter())
        for arm, found_T in own.passes.items():
            of_seed.update({(arm, task): c for task, c in zip(own.tasks, found_T, strict=True)})
        for row in leakage.rows(held_out, part.trajectories, part.treatments, shown=part.shown):
            if row.task_id not in rows or row.suspicious:
                rows[row.task_id] = row
    rule = replace(config, n=config.n * max(times.values(), default=1))
    arms = list(dict.fromkeys(t.condition for part in parts for t in part.treatments))
    counts = _count(problems, verdicts, rule, arms)
    found = leakage.assess(
        [rows[t] for t in counts.tasks],
        max(len(part.trajectories) for part in parts),
        counts.passes[rule.treatment],
        counts.passes[rule.baseline],
        counts.n,
    )
    trainings = [{arm: tuple(c[arm, t] for t in counts.tasks) for arm in counts.passes} for c in passes.values()]
    decision = decide(problems, verdicts, rule, arms=arms, leak=leakage.finding(found), trainings=trainings, by=by)
    return decision, found


def _carried_by_leak(leak: leakage.Finding | None, config: Config) -> bool:
    """Would the gate fail without the suspicious tasks?"""
    if leak is None or leak.status == "clean":
        return False
    return leak.effect_without is None or leak.effect_without < config.threshold_points


def _count(
    problems: Sequence[Problem], verdicts: Sequence[Verdict], config: Config, arms: Sequence[str]
) -> _counts.Counts:
    return _counts.count(
        problems, verdicts, treatment=config.treatment, baseline=config.baseline, least=config.n, arms=arms
    )


def _check_base(rate: Fraction, config: Config, *, nothing: bool) -> None:
    """`nothing`: a base that passes nothing is believed, where `floor` says that it may.

    A scorer that executes may break, and then all fail; values are only compared, and another arm passed something.
    """
    if rate == 0 and nothing and config.floor == 0:
        return
    if rate == 0:
        raise GateError(
            f"{config.baseline} passed nothing: a broken model or scorer, not a baseline; look at verdicts.jsonl"
        )
    if not Fraction(str(config.floor)) <= rate <= Fraction(str(config.ceiling)):
        raise GateError(
            f"{config.baseline} passes {100 * float(rate):.1f} % of draws, outside "
            f"{100 * config.floor:g}–{100 * config.ceiling:g} %: no effect could be measured on these tasks"
        )


def _score(arm: str, counts: _counts.Counts, weights_RT: Any, config: Config) -> ArmScore:
    passes, n = counts.passes[arm], counts.n
    curve = stats.pass_curve(passes, n)
    interval = stats.mean_interval(
        counts.table(arm), counts.clusters, weights_RT, level=config.level, low=0.0, high=100.0
    )
    return ArmScore(
        condition=arm,
        num_tasks=len(passes),
        num_samples=n * len(passes),
        num_passed=sum(passes),
        pass_at_1=sum(passes) / (n * len(passes)),
        interval=interval,
        pass_curve=tuple(curve),
    )


def _contrasts(counts: _counts.Counts, weights_RT: Any, config: Config) -> tuple[Contrast, ...]:
    """Primary, then treatment − control (one Holm family), then every other arm − baseline for information."""
    secondary = [(config.treatment, a) for a in SECONDARY if a in counts.passes and a != config.treatment]
    others = [(a, config.baseline) for a in counts.passes if a not in (config.treatment, config.baseline)]
    made = [
        _contrast(counts, *pair, weights_RT, config)
        for pair in [(config.treatment, config.baseline), *secondary, *others]
    ]
    adjusted = stats.holm([c.p_value for c in made[1 : 1 + len(secondary)]])
    roles = ["primary", *["secondary"] * len(secondary), *["descriptive"] * len(others)]
    tests: list[float | None] = [None, *adjusted, *[None] * len(others)]
    return tuple(replace(c, role=role, p_adjusted=p) for c, role, p in zip(made, roles, tests, strict=True))


def _contrast(counts: _counts.Counts, treatment: str, baseline: str, weights_RT: Any, config: Config) -> Contrast:
    differences = [a - b for a, b in zip(counts.passes[treatment], counts.passes[baseline], strict=True)]
    pairs = zip(counts.table(treatment), counts.table(baseline), strict=True)
    values_TS = [[a - b for a, b in zip(*rows, strict=True)] for rows in pairs]
    interval = stats.mean_interval(values_TS, counts.clusters, weights_RT, level=config.level, low=-100.0, high=100.0)
    test = stats.sign_flip(differences)
    return Contrast(
        name=f"{treatment} − {baseline}",
        treatment=treatment,
        baseline=baseline,
        points=float(stats.effect_points(counts.passes[treatment], counts.passes[baseline], counts.n)),
        interval=interval,
        p_value=test.two_sided,
        p_greater=test.greater,
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        ties=sum(d == 0 for d in differences),
    )


def _hierarchical(counts: _counts.Counts, fits: Mapping[str, stats.BetaBinomial], config: Config) -> dict[str, Any]:
    import numpy as np

    rng = np.random.default_rng(config.seed)
    gated = (config.treatment, config.baseline)
    rates = {a: stats.task_rates(fits[a], counts.passes[a], counts.n, draws=_DRAWS, rng=rng) for a in gated}
    effect = stats.shrunken_effect(*rates.values(), threshold=config.threshold_points, level=config.level)
    return {
        "effect": effect._asdict(),
        "arms": {
            arm: {"mean": fit.mean, "low": fit.low, "high": fit.high, "icc": fit.icc} for arm, fit in fits.items()
        },
        "base_se_points": _finite(stats.cluster_standard_error([100 * c / counts.n for c in counts.passes[gated[1]]])),
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
