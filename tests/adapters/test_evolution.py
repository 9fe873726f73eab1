"""The memory evolves by what is measured: a merge is kept only beyond doubt, nothing is drawn or done twice."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.adapters import merging, peft
from rune.adapters.merge_settings import Settings as MergeSettings
from rune.adapters.peft import Adapter
from rune.adapters.registry import intake, operations
from rune.adapters.registry.objects import Objects
from rune.adapters.registry.records import MadeFrom, Place, Source, Status
from rune.adapters.registry.registry import Registry, View
from rune.analysis import stats
from rune.errors import AdapterError, ConfigError, ContaminationError, DataError
from rune.study import evolution, fitness
from rune.study.evolution import Evaluation, Found, Tasks, Wanted
from rune.study.memory import Evolve, Memory
from tests.adapters import small

DATES, MONEY = Place(project="shop", domain="dates"), Place(project="shop", domain="money")
TASKS = 12  # a domain
DRAWS = 5


class Table:
    """An evaluator whose adapters pass as often as a table says: (adapter id, domain) → share of the draws."""

    draws = DRAWS
    objects: Objects  # of the test's registry

    def __init__(self, shares: dict[tuple[str, str], float], *, protocol: str = "table") -> None:
        self.shares, self._protocol = shares, protocol
        self.drawn: list[tuple[str, str]] = []
        self.stop_after: int | None = None

    @property
    def protocol(self) -> str:
        return self._protocol

    def tasks(self, domains: Sequence[str]) -> Tasks:
        known = {"dates": [f"dates/{n}" for n in range(TASKS)], "money": [f"money/{n}" for n in range(TASKS)]}
        if strange := [d for d in domains if d not in known]:
            raise DataError(f"domain {strange[0]} has no held-out tasks")
        return Tasks(
            tuple(t for d in domains for t in known[d]), tuple(t for d in known if d not in domains for t in known[d])
        )

    def measure(self, wanted: Sequence[Wanted]) -> Iterator[Found]:
        for ref, tasks in wanted:
            peft.read_peft(self.objects.folder(ref))
            for task in tasks:
                if self.stop_after is not None and len(self.drawn) >= self.stop_after:
                    raise KeyboardInterrupt
                self.drawn.append((ref.adapter_id, task))
                share = self.shares.get((ref.adapter_id, task.partition("/")[0]), 0.0)
                yield Found(ref.adapter_id, task, round(share * DRAWS), DRAWS)


class Sums:
    """A generator of adapters: one of a fixed kind for each set of trajectories."""

    name = "generator 1"

    def __init__(self, sources: dict[str, Source], domains: dict[str, str]) -> None:
        self._sources, self._domains = sources, domains

    def known(self, domain: str) -> list[Source]:
        return [s for t, s in self._sources.items() if self._domains[t] == domain]

    def make(self, sources: Sequence[Source]) -> Adapter:
        return small.adapter(sum(ord(c) for s in sources for c in s.trajectory_id))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path / "registry", create=True)
    Table.objects = made.objects
    return made


def settings(**changes: Any) -> Evolve:
    return replace(
        Evolve(project="shop", seed=0, budget=100_000, inside=0, outside=TASKS),
        **changes,
    )


SVD = {"merges": 5, "order": "alike", "methods": (MergeSettings(method="svd"),)}


def merged_id(registry: Registry, first: str, second: str) -> str:
    parts = [intake.load(registry, registry.get(digest)) for digest in (first, second)]
    whole = merging.merge(parts, [0.5, 0.5], MergeSettings(method="svd"))
    return intake.prepare(whole, DATES, MadeFrom(), base_name="org/base", max_rank=256).draft.id


# --------------------------------------------------------------------------- φ


def test_fitness_is_the_weighted_sum_of_both_rates() -> None:
    inside = {f"i{n}": (n % 6, 5) for n in range(12)}
    outside = {f"o{n}": (n % 3, 5) for n in range(9)}
    rate_in = sum(c for c, _ in inside.values()) / 60
    rate_out = sum(c for c, _ in outside.values()) / 45
    for alpha in (0.0, 0.3, 0.7, 1.0):
        found = fitness.fitness(inside, outside, alpha=alpha, protocol="p", measured="now")
        assert found.value == pytest.approx(alpha * rate_in + (1 - alpha) * rate_out)
        assert 0 <= found.low < found.value < found.high <= 1
        assert (found.pass_rate, found.generalization) == pytest.approx((rate_in, rate_out))
        assert (found.inside_tasks, found.outside_tasks, found.draws) == (12, 9, 105)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    import numpy as np

    rng, hits, runs = np.random.default_rng(5), 0, 300
    for run in range(runs):
        parts = []
        for mean, tasks in ((0.6, 20), (0.2, 30)):
            rates = rng.beta(2 * mean, 2 * (1 - mean), tasks)
            parts.append({f"{n}": (int(c), 5) for n, c in enumerate(rng.binomial(5, rates))})
        found = fitness.fitness(*parts, alpha=0.7, protocol="", measured="", seed=run)
        hits += found.low <= 0.7 * 0.6 + 0.3 * 0.2 <= found.high
    assert 0.91 <= hits / runs <= 0.99


def test_each_end_of_the_interval_is_made_from_the_same_ends_of_its_parts() -> None:
    """Eleven tasks always pass and one never does: far more doubt below than above."""
    skew = {f"{n}": (5 if n else 0, 5) for n in range(12)}
    shares = [c / n for c, n in skew.values()]
    weights = stats.task_weights(12, fitness.RESAMPLES, 0)
    part = stats.task_interval(sorted(shares), weights, level=0.95, low=0.0, high=1.0)
    rate = 11 / 12
    alone = fitness.fitness(skew, {}, alpha=1.0, protocol="", measured="")
    assert (alone.low, alone.value, alone.high) == pytest.approx((part.low, rate, part.high), abs=0.02)
    assert rate - alone.low > 1.5 * (alone.high - rate)
    both = fitness.fitness(skew, skew, alpha=0.6, protocol="", measured="")
    assert both.low == pytest.approx(rate - math.hypot(0.6, 0.4) * (rate - alone.low))
    assert both.high == pytest.approx(min(1.0, rate + math.hypot(0.6, 0.4) * (alone.high - rate)))


def test_passes_that_all_agree_still_leave_doubt() -> None:
    every = {f"{n}": (5, 5) for n in range(10)}
    found = fitness.fitness(every, every, alpha=0.7, protocol="", measured="")
    assert found.value == 1.0 and 0.6 < found.low < 0.9 and found.high == 1.0


@pytest.mark.parametrize("alpha", [-0.1, 1.01, math.nan, math.inf])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=r"alpha is a share, 0 to 1 \(the specified one is 0\.7\); found"):
        fitness.fitness({"t": (1, 1)}, {"u": (1, 1)}, alpha=alpha, protocol="", measured="")


def test_an_empty_domain_is_refused_where_it_counts() -> None:
    one = {"t": (1, 2), "u": (2, 2)}
    with pytest.raises(DataError, match="no held-out tasks of its domain"):
        fitness.fitness({}, one, alpha=0.7, protocol="", measured="")
    with pytest.raises(DataError, match="no held-out tasks of other domains"):
        fitness.fitness(one, {}, alpha=0.7, protocol="", measured="")
    assert math.isnan(fitness.fitness(one, {}, alpha=1.0, protocol="", measured="").generalization)


# --------------------------------------------------------------------------- measuring


def test_measuring_draws_each_task_once_and_selection_goes_by_it(registry: Registry) -> None:
    entry = small.put(registry, 1, DATES)
    table = Table({(entry.id, "dates"): 0.8, (entry.id, "money"): 0.4})
    outcome = Memory(registry, settings(), table, base=small.BASE).evolve()
    assert outcome.draws == 2 * TASKS * DRAWS == operations.spent(registry, "table")
    found = registry.get(entry.id)
    assert found.fitness == pytest.approx(0.7 * 0.8 + 0.3 * 0.4)
    (measured,) = registry.fitness(entry.id)
    assert (measured.pass_rate, measured.generalization) == pytest.approx((0.8, 0.4))
    again = Memory(registry, settings(), table, base=small.BASE).evolve()
    assert again.draws == 0 and len(table.drawn) == 2 * TASKS and len(registry.fitness(entry.id)) == 1
    # Another α needs no draws.
    Memory(registry, settings(alpha=1.0), table, base=small.BASE).evolve()
    assert registry.get(entry.id).fitness == pytest.approx(0.8) and len(table.drawn) == 2 * TASKS


def test_no_fitness_is_told_from_a_part_of_the_draws(registry: Registry) -> None:
    entry = small.put(registry, 1, DATES)
    table = Table({(entry.id, "dates"): 0.8})
    evaluation = Evaluation(registry, table, alpha=0.7, budget=100_000)
    with pytest.raises(DataError, match=f"adapter {entry.id[:12]}: task 'dates/0' was not measured"):
        evaluation.fitness(entry.id, ["dates"])
    Memory(registry, settings(outside=0), table, base=small.BASE).evolve()
    assert evaluation.fitness(entry.id, ["dates"]).pass_rate == pytest.approx(0.8)


def test_passes_under_another_protocol_are_none_of_this_one(registry: Registry) -> None:
    entry = small.put(registry, 1, DATES)
    for number, share in enumerate((0.8, 0.2)):
        table = Table({(entry.id, "dates"): share, (entry.id, "money"): share}, protocol=f"protocol {number}")
        outcome = Memory(registry, settings(), table, base=small.BASE).evolve()
        assert outcome.draws == 2 * TASKS * DRAWS == len(table.drawn) * DRAWS
        assert registry.get(entry.id).fitness == pytest.approx(share)
        assert operations.spent(registry, table.protocol) == outcome.draws
    assert [f.protocol for f in registry.fitness(entry.id)] == ["protocol 0", "protocol 1"]


def test_a_stopped_measurement_goes_on_where_it_was(registry: Registry) -> None:
    entries = [small.put(registry, n, DATES) for n in range(3)]
    table = Table({(e.id, "dates"): 0.6 for e in entries})
    table.stop_after = 31
    with pytest.raises(KeyboardInterrupt):
        Memory(registry, settings(), table, base=small.BASE).evolve()
    assert operations.spent(registry, "table") == 31 * DRAWS
    table.stop_after = None
    Memory(registry, settings(), table, base=small.BASE).evolve()
    assert len(table.drawn) == len(set(table.drawn)) == 3 * 2 * TASKS
    assert all(registry.get(e.id).fitness == pytest.approx(0.42) for e in entries)


def test_the_budget_holds_over_all_calls_and_what_is_left_is_said(registry: Registry) -> None:
    entries = [small.put(registry, n, DATES) for n in range(3)]
    table, one = Table({}), 2 * TASKS * DRAWS
    outcome = Memory(registry, settings(budget=2 * one + 5), table, base=small.BASE).evolve()
    assert outcome.draws == 2 * one and len(outcome.measured) == 2
    assert outcome.left == [f"measure {entries[2].short}: {one} draws"]
    outcome = Memory(registry, settings(budget=2 * one + 5), table, base=small.BASE).evolve()
    assert outcome.draws == 0 and len(outcome.left) == 1 and outcome.measured == []
    assert Memory(registry, settings(budget=3 * one), table, base=small.BASE).evolve().left == []


def test_an_adapter_made_from_a_scored_task_is_not_measured(registry: Registry) -> None:
    small.put(registry, 1, DATES, made_from=MadeFrom(sources=(Source(trajectory_id="t", task_id="dates/3"),)))
    with pytest.raises(ContaminationError, match="was made from task 'dates/3', which is scored"):
        Memory(registry, settings(), Table({}), base=small.BASE).evolve()
    assert operations.spent(registry, "table") == 0


def test_of_several_scored_tasks_the_first_by_name_is_told(registry: Registry) -> None:
    sources = tuple(Source(trajectory_id=f"t{n}", task_id=f"dates/{n}") for n in (9, 4, 7, 2, 11, 5))
    small.put(registry, 1, DATES, made_from=MadeFrom(sources=sources))
    with pytest.raises(ContaminationError, match="'dates/11', which is scored"):
        Memory(registry, settings(), Table({}), base=small.BASE).evolve()


def test_a_projects_adapter_is_about_the_domains_of_what_it_was_made_from(registry: Registry) -> None:
    a, b = small.put(registry, 1, DATES), small.put(registry, 2, MONEY)
    child = small.put(registry, 3, Place(project="shop"), made_from=MadeFrom(parents=((a.id, 1.0), (b.id, 1.0))))
    evaluation = Evaluation(registry, Table({}), alpha=0.7, budget=1)
    assert evaluation.domains(child) == ("dates", "money")
    assert evaluation.domains(a) == ("dates",)
    assert evaluation.domains(small.put(registry, 4, Place(project="shop"))) == ()


def test_a_domain_without_tasks_and_a_project_without_adapters_are_refused(registry: Registry) -> None:
    small.put(registry, 1, Place(project="shop", domain="nothing"))
    with pytest.raises(DataError, match="domain nothing has no held-out tasks"):
        Memory(registry, settings(), Table({}), base=small.BASE).evolve()
    with pytest.raises(DataError, match="no active adapter of project 'bank'"):
        Memory(registry, settings(project="bank"), Table({}), base=small.BASE).evolve()
    with pytest.raises(DataError, match="no active adapter of project 'bank'"):
        Memory(registry, settings(project="bank"), Table({}), base=small.BASE).plan()


# --------------------------------------------------------------------------- merges


@pytest.mark.parametrize(("share", "kept"), [(1.0, True), (0.5, False), (0.2, False)])
def test_a_merge_is_kept_only_if_its_interval_is_above_both_parents(
    registry: Registry, share: float, kept: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = small.put(registry, 1, DATES), small.put(registry, 2, DATES)
    child = merged_id(registry, a.id, b.id)
    # At 0.5 the merge's point is above both parents' 0.4; its interval is not, for half of the tasks fail.
    shares = {(d, domain): 0.4 for d in (a.id, b.id) for domain in ("dates", "money")}
    shares |= {(child, "dates"): share, (child, "money"): share}
    table = Table(shares)
    if share == 0.5:
        table.measure = _uneven(table, child)  # type: ignore[method-assign]
    outcome = Memory(registry, settings(**SVD), table, base=small.BASE).evolve()
    (operation,) = outcome.operations
    assert operation.kind == "merge" and operation.result == child and operation.kept is kept
    assert outcome.draws == operations.spent(registry, table.protocol) == 3 * 2 * TASKS * DRAWS
    entry = registry.get(child)
    assert entry.status is (Status.ACTIVE if kept else Status.ARCHIVED)
    assert entry.fitness is not None and entry.fitness_low is not None
    assert (entry.fitness_low > 0.4) is kept
    assert operation.numbers["result"]["value"] == pytest.approx(entry.fitness)  # archived with its numbers
    assert {d: n["value"] for d, n in operation.numbers["inputs"].items()} == pytest.approx({a.id: 0.4, b.id: 0.4})
    told = rf"merge {a.short} {b.short} → {child[:12]}: φ [01]\.\d+ \[.*\], best input 0\.400: "
    assert re.search(told + ("kept" if kept else "archived"), capsys.readouterr().err)
    assert {e.parent for e in registry.lineage(child).ancestors} == {a.id, b.id}
    assert registry.get(a.id).status is registry.get(b.id).status is Status.ACTIVE


def test_a_merge_that_beats_the_worse_of_its_parents_alone_is_not_kept(registry: Registry) -> None:
    a, b = small.put(registry, 1, DATES), small.put(registry, 2, DATES)
    child = merged_id(registry, a.id, b.id)
    shares = {(d, domain): s for d, s in ((a.id, 0.8), (b.id, 0.2), (child, 0.6)) for domain in ("dates", "money")}
    (operation,) = Memory(registry, settings(**SVD), Table(shares), base=small.BASE).evolve().operations
    result = operation.numbers["result"]
    assert 0.2 < result["low"] < result["value"] < 0.8  # beyond doubt above one, and below the other
    assert not operation.kept and registry.get(child).status is Status.ARCHIVED


@pytest.mark.parametrize(("order", "pair"), [("alike", (1, 2)), ("apart", (1, 3))])
def test_pairs_are_merged_in_the_order_of_how_alike_they_are(
    registry: Registry, order: str, pair: tuple[int, int]
) -> None:
    one = small.adapter(1)
    near = replace(one, pairs={n: p._replace(b=p.b + 0.1) for n, p in one.pairs.items()})
    against = replace(one, pairs={n: p._replace(b=0.2 - p.b) for n, p in one.pairs.items()})
    ids = {}
    for number, adapter in ((1, one), (2, near), (3, against)):
        ready = intake.prepare(adapter, DATES, MadeFrom(), base_name="org/base", max_rank=256)
        ids[number] = registry.insert(ready.draft, ready.config, ready.weights)[0].id
    memory = Memory(registry, settings(**{**SVD, "merges": 1, "order": order}), Table({}), base=small.BASE)
    (step,) = memory.merges()
    assert {e.id for e in step.inputs} == {ids[n] for n in pair}
    assert (step.notes["cosine"] > 0.9) is (order == "alike")


def test_a_step_under_another_protocol_alpha_or_method_is_another_step(registry: Registry) -> None:
    for number in (1, 2):
        small.put(registry, number, DATES)

    def key(protocol: str, alpha: float, method: str = "svd") -> str:
        wanted = settings(**{**SVD, "methods": (MergeSettings(method=method),)}, alpha=alpha)
        return Memory(registry, wanted, Table({}, protocol=protocol), base=small.BASE).merges()[0].key

    assert len({key("one", 0.7), key("two", 0.7), key("one", 0.5), key("one", 0.7, "cat")}) == 4
    assert key("one", 0.7) == key("one", 0.7)


def _uneven(table: Table, child: str) -> Any:
    """The child passes every other task in every draw and the others never: 0.5, and a wide interval."""

    def measure(wanted: Sequence[Wanted]) -> Iterator[Found]:
        for found in Table.measure(table, wanted):
            number = int(found.task.partition("/")[2])
            yield found._replace(passes=DRAWS if number % 2 else 0) if found.adapter == child else found

    return measure


def test_evolving_again_does_nothing_again_and_every_operation_can_be_replayed(registry: Registry) -> None:
    a, b = small.put(registry, 1, DATES), small.put(registry, 2, DATES)
    small.put(registry, 3, DATES)
    table = Table({(a.id, "dates"): 0.4, (b.id, "dates"): 0.4})
    methods = (MergeSettings(method="svd"), MergeSettings(method="dare_ties", density=0.5, seed=3))
    memory = Memory(registry, settings(**{**SVD, "methods": methods}), table, base=small.BASE)
    first = memory.evolve()
    assert len(first.operations) == len(operations.listed(registry)) == 6  # three pairs by two methods
    drawn = len(table.drawn)
    again = Memory(registry, memory.settings, table, base=small.BASE)
    assert again.evolve().operations == [] and len(table.drawn) == drawn
    for operation in operations.listed(registry):
        assert again.replay(operation) == operation.result
    assert registry.verify() == []
    # What was archived and then removed from the disk comes back byte by byte.
    lost = [o.result for o in operations.listed(registry) if not o.kept]
    assert lost and operations.release(registry).folders == len(lost)
    for operation in operations.listed(registry):
        if operation.result:
            again.replay(operation)
    assert set(lost) <= set(registry.objects.digests()) and registry.verify() == []
    entries = [registry.get(digest) for digest in lost]
    operations.restore(registry, entries, reason="made again")
    assert registry.verify() == []


def test_an_adapter_that_was_removed_says_by_which_operation_it_is_made_again(registry: Registry) -> None:
    a, b = small.put(registry, 1, DATES), small.put(registry, 2, DATES)
    table = Table({(a.id, "dates"): 0.4, (b.id, "dates"): 0.4})
    (merge,) = Memory(registry, settings(**SVD), table, base=small.BASE).evolve().operations
    operations.release(registry)
    with pytest.raises(AdapterError, match=f"evolve --config FILE --replay {merge.number}`"):
        operations.restore(registry, [registry.get(merge.result)], reason="missed")


def test_a_dry_run_tells_and_touches_nothing(registry: Registry) -> None:
    a, b = small.put(registry, 1, DATES), small.put(registry, 2, DATES)
    table = Table({})
    before = {p: p.read_bytes() for p in registry.folder.rglob("*") if p.is_file()}
    plan = Memory(registry, settings(**SVD), table, base=small.BASE).plan()
    assert sorted(plan["measure"]) == sorted([a.id, b.id]) and plan["draws"] == 2 * 2 * TASKS * DRAWS
    (step,) = plan["operations"]
    assert step["kind"] == "merge" and set(step["inputs"]) == {a.id, b.id}
    assert plan["scored"] == {"dates": [f"dates/{n}" for n in range(TASKS)]}
    assert table.drawn == [] and registry.count(View(status=None)) == 2
    assert {p: p.read_bytes() for p in registry.folder.rglob("*") if p.is_file()}.keys() >= before.keys()
    assert operations.listed(registry) == []
    Memory(registry, settings(), table, base=small.BASE).evolve()
    later = Memory(registry, settings(budget=99_999), table, base=small.BASE).plan()
    spent = 2 * 2 * TASKS * DRAWS
    assert (later["measure"], later["draws"], later["budget_left"]) == ([], 0, 99_999 - spent)
    assert Memory(registry, settings(budget=spent - 1), table, base=small.BASE).plan()["budget_left"] == 0


def test_a_merge_across_domains_belongs_to_the_project_and_all_are_compared_on_both_domains(
    registry: Registry,
) -> None:
    a, b = small.put(registry, 1, DATES), small.put(registry, 2, MONEY)
    memory = Memory(registry, settings(**SVD, alpha=1.0), Table({}), base=small.BASE)
    assert memory.merges() == []
    across = settings(**SVD, alpha=1.0, across=True)
    child = merged_id(registry, a.id, b.id)
    table = Table(
        {(a.id, "dates"): 1.0, (b.id, "money"): 1.0, (child, "dates"): 0.8, (child, "money"): 0.8}, protocol="across"
    )
    outcome = Memory(registry, across, table, base=small.BASE).evolve()
    (operation,) = outcome.operations
    # On its own domain each parent passes always; on both domains, half of the time. The merge: 0.8 everywhere.
    assert {n["value"] for n in operation.numbers["inputs"].values()} == {0.5}
    assert operation.kept and registry.get(operation.result).place == Place(project="shop")
    assert registry.get(a.id).fitness == 1.0
    # What the merge takes from each parent on its own tasks stands beside it.
    assert operation.numbers["domains"] == {
        "dates": pytest.approx({child: 0.8, a.id: 1.0, b.id: 0.0}),
        "money": pytest.approx({child: 0.8, a.id: 0.0, b.id: 1.0}),
    }


# --------------------------------------------------------------------------- consolidate, update, forget


def test_adapters_of_tasks_are_consolidated_from_all_their_trajectories(registry: Registry) -> None:
    members = [
        small.put(
            registry,
            n,
            Place(project="shop", domain="dates", task=f"t{n}"),
            made_from=MadeFrom(sources=(Source(trajectory_id=f"traj{n}", task_id=f"other/{n}"),), how="hypernet"),
        )
        for n in range(3)
    ]
    sources = {f"traj{n}": Source(trajectory_id=f"traj{n}", task_id=f"other/{n}") for n in range(3)}
    generator = Sums(sources, dict.fromkeys(sources, "dates"))
    table = Table({(m.id, "dates"): 0.4 for m in members})
    wanted = settings(consolidate=3, trajectories=("x",), checkpoint="y")
    made = intake.prepare(generator.make(list(sources.values())), DATES, MadeFrom(), base_name="org/base", max_rank=256)
    table.shares[made.draft.id, "dates"] = 0.8
    outcome = Memory(registry, wanted, table, base=small.BASE, generator=generator).evolve()
    (operation,) = outcome.operations
    assert (operation.kind, operation.result, operation.kept) == ("consolidate", made.draft.id, True)
    entry = registry.get(operation.result)
    assert entry.place == DATES and entry.hypernet == "generator 1" and entry.how == "consolidate"
    assert registry.sources(entry.id) == list(sources.values())
    assert {e.parent for e in registry.lineage(entry.id).ancestors} == {m.id for m in members}
    assert all(registry.get(m.id).status is Status.ACTIVE for m in members)
    assert Memory(registry, wanted, table, base=small.BASE, generator=generator).evolve().operations == []


@pytest.mark.parametrize(("better", "kept"), [(True, True), (False, False)])
def test_an_update_takes_the_place_of_what_it_updates_if_it_is_no_worse(
    registry: Registry, better: bool, kept: bool
) -> None:
    had, new = Source(trajectory_id="had", task_id="other/1"), Source(trajectory_id="new", task_id="other/2")
    scored = Source(trajectory_id="scored", task_id="dates/1")
    old = small.put(registry, 1, DATES, made_from=MadeFrom(sources=(had,), hypernet="generator 1", how="hypernet"))
    registry.set_alias("dates", old.id)
    sources = {s.trajectory_id: s for s in (had, new, scored)}
    generator = Sums(sources, dict.fromkeys(sources, "dates"))
    made = intake.prepare(generator.make([had, new]), DATES, MadeFrom(), base_name="org/base", max_rank=256).draft.id
    table = Table({(old.id, "dates"): 0.4, (made, "dates"): 0.6 if better else 0.2})
    wanted = settings(update=True, trajectories=("x",), checkpoint="y")
    outcome = Memory(registry, wanted, table, base=small.BASE, generator=generator).evolve()
    (operation,) = outcome.operations
    assert (operation.kind, operation.result, operation.kept) == ("update", made, kept)
    assert registry.sources(made) == [had, new]  # the trajectory of a scored task stays out
    assert registry.get(old.id).status is (Status.ARCHIVED if kept else Status.ACTIVE)
    assert registry.resolve("dates").id == (made if kept else old.id)
    assert Memory(registry, wanted, table, base=small.BASE, generator=generator).evolve().operations == []


def test_what_is_surely_weak_is_forgotten_and_stays(registry: Registry) -> None:
    weak, strong = small.put(registry, 1, DATES), small.put(registry, 2, DATES)
    table = Table({(strong.id, "dates"): 0.6})
    outcome = Memory(registry, settings(forget_below=0.4), table, base=small.BASE).evolve()
    (operation,) = outcome.operations
    assert operation.kind == "forget" and operation.inputs == (weak.id,)
    assert registry.get(weak.id).status is Status.ARCHIVED and registry.get(strong.id).status is Status.ACTIVE
    assert intake.load(registry, registry.get(weak.id)).rank == 3


def test_what_may_be_strong_enough_is_not_forgotten(registry: Registry) -> None:
    """By the upper end of its interval, not by its point."""
    doubtful = small.put(registry, 1, DATES)
    weak = small.put(registry, 2, DATES)
    unmeasured = small.put(registry, 3, DATES)
    registry.set_fitness(doubtful.id, small.measured(0.3, low=0.1, high=0.41))
    registry.set_fitness(weak.id, small.measured(0.3, low=0.1, high=0.39))
    outcome = evolution.Evolved()
    entries = [registry.get(e.id) for e in (doubtful, weak, unmeasured)]
    evolution.forget(registry, entries, below=0.4, outcome=outcome)
    assert [o.inputs for o in outcome.operations] == [(weak.id,)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": 1.5}, "alpha is a share, 0 to 1"),
        ({"budget": -1}, "must be 0 or more"),
        ({"consolidate": 1}, "would copy single adapters"),
        ({"merges": 3}, "merges needs methods"),
        ({"update": True}, "set trajectories, and checkpoint"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_an_operation_over_the_budget_is_left_and_said(registry: Registry) -> None:
    a, b = small.put(registry, 1, DATES), small.put(registry, 2, DATES)
    one = 2 * TASKS * DRAWS
    outcome = Memory(registry, settings(budget=3 * one - 1, **SVD), Table({}), base=small.BASE).evolve()
    assert outcome.left == [f"merge {a.short} {b.short}"] and outcome.operations == []
    assert outcome.draws == 2 * one
    again = Memory(registry, settings(budget=3 * one, **SVD), Table({}), base=small.BASE).evolve()
    assert again.left == [] and len(again.operations) == 1 and again.draws == one
