"""What an arm loses from one variant to another, checked by hand and against resampling."""

from __future__ import annotations

import numpy as np
import pytest

from rune.analysis import relative
from rune.analysis.relative import Loss, Table
from rune.errors import GateError


def table(draws: int, **passes: list[list[int]]) -> Table:
    return Table(tuple(f"t{i}" for i in range(len(next(iter(passes.values()))))), draws, passes)


def losses(reference: Table, other: Table, clusters: list[str] | None = None) -> list[Loss]:
    return relative.losses(reference, other, variant="nf4", clusters=clusters or [], level=0.95, resamples=4000, seed=0)


def test_a_loss_is_a_share_of_what_the_reference_passed_by_arm() -> None:
    before = table(5, vanilla=[[5], [3], [0], [2]], hypernet=[[5], [5], [5], [5]])
    after = table(5, vanilla=[[4], [3], [0], [2]], hypernet=[[5], [5], [5], [5]])
    vanilla, hypernet = losses(before, after)
    assert vanilla.percent == pytest.approx(10.0) and (vanilla.condition, vanilla.variant) == ("vanilla", "nf4")
    assert vanilla.reference_pass_at_1 == 0.5 and vanilla.pass_at_1 == 0.45
    assert hypernet.percent == 0.0 and -100 < hypernet.interval.low < 0 < hypernet.interval.high < 100  # four tasks
    assert losses(after, before)[0].percent == pytest.approx(-100 / 9)


def test_the_interval_is_that_of_resampling_tasks_of_a_ratio() -> None:
    rng = np.random.default_rng(3)
    rates = rng.beta(1, 1, 160)
    had, has = rng.binomial(5, rates), rng.binomial(5, 0.93 * rates)
    (found,) = losses(table(5, a=[[int(c)] for c in had]), table(5, a=[[int(c)] for c in has]))
    picks = rng.integers(0, 160, (20_000, 160))
    ratios = 100 * (1 - has[picks].sum(1) / had[picks].sum(1))
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert found.interval.low == pytest.approx(low, abs=0.6) and found.interval.high == pytest.approx(high, abs=0.6)
    assert found.interval.low < found.percent < found.interval.high and found.interval.over == "tasks, one training"


def test_trainings_that_disagree_widen_it_and_domains_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    had = [[3, 3, 3] for _ in range(40)]
    alike = [[int(x) for x in rng.binomial(5, 0.55, 3)] for _ in range(40)]
    apart = [[row[0], min(5, row[1] + 1), max(0, row[2] - 1)] for row in alike]
    (narrow,), (wide,) = (losses(table(5, a=had), table(5, a=rows)) for rows in (alike, apart))
    assert wide.interval.high - wide.interval.low > narrow.interval.high - narrow.interval.low
    assert wide.interval.over == "tasks and trainings"
    (by_domain,) = losses(table(5, a=had), table(5, a=alike), [f"d{i // 4}" for i in range(40)])
    assert by_domain.interval.over == "domains and trainings"


def test_other_tasks_draws_or_a_reference_of_nothing_are_refused() -> None:
    some = table(5, a=[[3], [2]])
    with pytest.raises(GateError, match="nf4 has other tasks, draws or trainings than the first one"):
        losses(some, table(5, a=[[3]]))
    with pytest.raises(GateError, match="nf4 has other tasks, draws"):
        losses(some, table(4, a=[[3], [2]]))
    with pytest.raises(GateError, match="a passes nothing in the first variant"):
        losses(table(5, a=[[0], [0]]), some)
