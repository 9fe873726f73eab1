"""What the memory study draws on and counts: releases that share nothing, and rates from what an evolution kept."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from rune.adapters.registry.records import Place
from rune.runs import store
from rune.study.config import load
from rune.types import Outcome, Problem, Split, Trajectory, Verdict

STUDY = Path(__file__).parents[2] / "studies" / "memory"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module("memory")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module("memory_told")


def test_releases_share_no_function_and_no_task_is_both_learned_and_asked(
    study: ModuleType, told: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "RELEASES", 4)
    study.corpus(argparse.Namespace(out=tmp_path))
    corpus = tmp_path / "corpus"
    scored, tests = (store.read_jsonl(corpus / f"{name}.jsonl", Problem) for name in ("problems", "tests"))
    lessons, later = (store.read_jsonl(corpus / f"{name}.jsonl", Trajectory) for name in ("lessons", "later"))
    groups = [[x.task_id for x in some] for some in (scored, tests, lessons, later)]
    assert [len(g) for g in groups] == [4 * 3 * n for n in (2, 3, 2, 1)]
    assert len(set().union(*groups)) == sum(map(len, groups))
    releases: dict[str, set[str]] = {}
    for one in (*scored, *tests, *lessons, *later):
        releases.setdefault(one.domain, set()).add(told.update(one.task_id))
    assert len(releases) == 4 and all(len(updates) == 3 for updates in releases.values())
    functions = [u.partition(":")[0] for updates in releases.values() for u in updates]
    assert len(set(functions)) == 12
    assert all(p.split is Split.HELD_OUT for p in (*scored, *tests))
    # In order of arrival every update comes once before any comes again.
    assert len({told.update(t.task_id) for t in lessons[:12]}) == 12
    assert (tmp_path / "memory.toml").read_text() == (STUDY / "memory.toml").read_text()


def test_an_interval_over_releases_holds_the_mean_and_widens_with_their_spread(told: ModuleType) -> None:
    mean, low, high = told.bootstrap([0.2, 0.4, 0.6])
    assert mean == pytest.approx(40) and low < 40 < high
    assert told.bootstrap([0.4, 0.4, 0.4]) == pytest.approx((40, 40, 40))


def test_phi_is_recomputed_from_passes_at_any_alpha(told: ModuleType) -> None:
    passes = {"a": {"in/0": (2, 2), "in/1": (0, 2), "out/0": (1, 4)}}
    measured = told.Measured(passes, {"one": ["in/0", "in/1"]}, ["out/0"])
    for alpha in told.ALPHAS:
        assert told.phi_of(measured, "a", ["one"], alpha).value == pytest.approx(alpha * 0.5 + (1 - alpha) * 0.25)
    assert told.rate(measured, "a", ["in/0", "in/1"]) == 0.5


def test_a_release_counts_only_where_all_of_its_tasks_were_drawn(told: ModuleType) -> None:
    drawn = told.Tested({"x": {"t1": 1.0, "t2": 0.0}, "y": {"t3": 1.0}}, {"one": ["t1", "t2"], "two": ["t3", "t4"]}, {})
    assert told.by_release(drawn, {"one": "x", "two": "y"}) == {"one": 0.5}
    means = {"a": {"one": 0.5, "two": 1.0}, "b": {"one": 0.25}}
    assert told.paired(means, "a", "b") == pytest.approx((25, 25, 25)) and told.paired(means, "a", "c") is None


def test_what_an_alpha_keeps_is_selected_and_nothing_where_it_refuses(told: ModuleType) -> None:
    knows = {"a": 1, "b": 1, "c": 2, "d": 3}  # of three tasks: two lessons, what was made of both, its update
    outside = {"a": 3, "b": 3, "c": 2, "d": 0}
    passes = {
        name: {
            f"{where}/{n}": (int(n < of[name]), 1) for where, of in (("r", knows), ("out", outside)) for n in range(3)
        }
        for name in knows
    }
    measured = told.Measured(passes, {"r": ["r/0", "r/1", "r/2"]}, ["out/0", "out/1", "out/2"])
    entries = {name: SimpleNamespace(place=Place(project="p", domain="r")) for name in knows}
    whole = SimpleNamespace(kind="consolidate", inputs=("a", "b"), result="c")
    update = SimpleNamespace(kind="update", inputs=("c",), result="d")
    assert told.kept(entries, [whole, update], measured, "r", 1.0) == "d"
    assert told.kept(entries, [whole], measured, "r", 1.0) == "c"
    assert told.kept(entries, [whole, update], measured, "r", 0.6) == "c"  # the update loses all that is outside
    assert told.kept(entries, [whole, update], measured, "r", 0.4) == ""  # and c more there than it gains


def test_a_limit_on_harm_leaves_out_what_loses_more_and_selects_the_best_of_the_rest(told: ModuleType) -> None:
    limits = importlib.import_module("memory_limits")
    worth = limits.Worth
    adapters = {"harmless": worth(0.2, 0.4, 1), "good": worth(0.6, 0.1, 2), "newer": worth(0.6, 0.1, 3)}
    # Against 0.4: "harmless" loses nothing, the others exactly 30 points.
    assert [limits.selected(adapters, 0.4, limit) for limit in (0.0, 29.0, 30.0, 100.0)] == [
        "harmless", "harmless", "newer", "newer",
    ]  # fmt: skip
    assert limits.selected({"good": worth(0.6, 0.1, 2)}, 0.4, 15.0) == limits.BARE


def test_harm_is_the_mean_over_an_arms_releases_less_the_bare_model_task_by_task(
    told: ModuleType, tmp_path: Path
) -> None:
    assert told.harm_by_arm(tmp_path) is None
    passed = {"vanilla": (True, True), "x": (True, False), "y": (False, False)}
    verdicts = [
        Verdict(
            task_id=f"t{n}", condition=name, draw=0, outcome=Outcome.PASSED if yes else Outcome.FAILED
        )
        for name, some in passed.items() for n, yes in enumerate(some)
    ]  # fmt: skip
    (tmp_path / "harm").mkdir()
    store.write_jsonl(tmp_path / "harm" / "verdicts.jsonl", verdicts)
    arms = {"vanilla": {"a": "", "b": "", "c": ""}, "consolidated": {"a": "x", "b": "x", "c": "y"}, "other": {"a": "z"}}
    store.write_json(tmp_path / "tests" / "arms.json", arms)
    found = told.harm_by_arm(tmp_path)
    # Two of three releases have x, which passes t0 alone; "other" was not drawn.
    assert set(found) == {"vanilla", "consolidated"}
    assert found["consolidated"]["pass@1"][0] == pytest.approx(100 / 3)
    assert found["consolidated"]["less the bare model"][0] == pytest.approx(-200 / 3)
    assert found["vanilla"]["less the bare model"] == pytest.approx((0, 0, 0))


def test_a_test_that_was_cut_off_is_told_as_none(told: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    store.write_json(tmp_path / "tests" / "arms.json", {"selected": {}})
    assert told.tested(tmp_path) is None


def test_the_interval_over_pairs_draws_releases_and_not_pairs(told: ModuleType) -> None:
    effects = importlib.import_module("memory_effects")
    # One release is in every pair that loses: what is drawn anew is the release, so no resample knows the mean well.
    pairs = [("a", other, -0.3) for other in "bcdef"] + [("b", "c", 0.0), ("d", "e", 0.0), ("e", "f", 0.0)]
    found = effects.over_vertices(pairs)
    assert found["points"] == pytest.approx(100 * -0.3 * 5 / 8) and found["units"] == "8 pairs of 6 releases"
    assert found["low"] == pytest.approx(-30) and found["high"] == 0 and found["p"] > 0.05
    apart = effects.over_vertices([(f"{n}x", f"{n}y", -0.1) for n in range(8)])
    assert apart["points"] == apart["low"] == apart["high"] == pytest.approx(-10) and apart["p"] < 0.001
    same = effects.paired({"a": 0.5, "b": 0.25}, {"a": 0.5, "b": 0.25, "c": 1.0})
    assert (same["points"], same["low"], same["high"], same["p"], same["units"]) == (0, 0, 0, 1, "2 releases")
    assert effects.paired({"a": 0.5}, {"b": 0.5}) is None


def test_a_merge_loses_what_its_parents_have_on_their_own_tasks(told: ModuleType) -> None:
    effects = importlib.import_module("memory_effects")
    entries = {n: SimpleNamespace(place=Place(project="p", domain=f"d{n}")) for n in "xy"}
    rates = {"dx": {"m": 0.25, "x": 0.75, "y": 0.0}, "dy": {"m": 0.5, "x": 0.125, "y": 0.5}}
    merge = SimpleNamespace(inputs=("x", "y"), result="m", numbers={"domains": rates})
    assert effects.lost(entries, merge) == ("dx", "dy", -0.25)


def test_every_other_alpha_and_every_sum_is_an_effect_against_what_is_specified(told: ModuleType) -> None:
    effects = importlib.import_module("memory_effects")
    task = SimpleNamespace(place=Place(project="releases", domain="r", task="t"), parameters=8)
    summed = SimpleNamespace(place=Place(project="beside", domain="sum of the lessons r"), parameters=48)
    arms = {"selected": {"r": 0.5, "s": 0.5}, "sum of the lessons": {"r": 0.25, "s": 0.0}}
    by_alpha = {"0.5": {"r": 0.25, "s": 0.5}, "0.7": {"r": 0.5, "s": 0.5}}
    rows = effects.effects({"a": task, "b": summed}, [], arms, by_alpha, {"0.7": {"r": 0.5}, "1": {"r": 1.0}})
    told_of = [(r["axis"], r["variant"], r["against"], r["points"], r["parameters"], r["units"]) for r in rows]
    assert told_of == [
        ("α, fittest of any level", "0.5", "0.7", -12.5, 8, "2 releases"),
        ("α, kept and selected", "1", "0.7", 50.0, 8, "1 releases"),
        ("composition", "sum of the lessons", "selected", -37.5, 48, "2 releases"),
    ]


def test_one_table_holds_the_grid_and_the_memory_and_corrects_over_all_that_is_tested(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(STUDY.parent / "phase4-grid"))
    grid = importlib.import_module("grid_told")
    row = {"points": -20.0, "low": -30.0, "high": -10.0, "p": 0.01, "conventions": 64}
    result = {
        "against": {"mean_pool": {**row, "seeds": 3}, "rank-2": {**row, "seeds": 1}},
        "seconds": {"mean_pool": {"train": 61.0}, "rank-2": {"train": 59.0}},
        "parameters": {"mean_pool": 2e6, "rank-2": 1e6},
    }  # fmt: skip
    told = {"axis": "α", "variant": "0.5", "against": "0.7", "parameters": 4e6, "units": "16 releases"}
    memory = {"effects": [{**told, "points": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}]}
    lines = grid.whole(result, memory).splitlines()[4:]
    assert lines == [
        "| encoder | mean_pool | perceiver | -20.0 [-30.0, -10.0] | 64 conventions, 3 seeds | 0.020 | 2.0 M | 61 |",
        "| rank | rank-2 | perceiver | -20.0 [-30.0, -10.0] | 64 conventions, 1 seeds | – | 1.0 M | 59 |",
        "| α | 0.5 | 0.7 | +0.0 [+0.0, +0.0] | 16 releases | 1.000 | 4.0 M | – |",
    ]


def test_every_variant_of_the_grid_has_an_axis_and_a_stage_taken_over_costs_what_it_cost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(STUDY.parent / "phase4-grid"))
    grid = importlib.import_module("grid_told")
    settings = load(STUDY.parents[1] / "configs" / "phase4-grid.toml", []).settings
    assert {grid.FIRST, *grid.AXES} == set(settings.design.variants)
    store.write_json(tmp_path / "cells" / "first" / "manifest.json", {"stages": {"train": {"seconds": 40.0}}})
    own = {"stages": {"train": {"seconds": 0.2, "same_as": "first"}, "adapt": {"seconds": 3.0}, "score": {}}}
    assert grid.took(tmp_path, own) == {"train": 40.0, "adapt": 3.0}


def test_the_grid_adjusts_as_holm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDY.parent / "phase4-grid"))
    grid = importlib.import_module("grid_told")
    assert grid.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    own = {0: {"f/x/0": 1.0, "f/y/0": 0.5}, 1: {"f/x/0": 0.5, "f/y/0": 0.5}}
    other = {0: {"f/x/0": 0.5, "f/y/0": 0.5}, 1: {"f/x/0": 0.5, "f/y/0": 0.0}, 2: {"f/x/0": 1.0}}
    found = grid.interval(own, other)
    assert found["points"] == pytest.approx(25) and found["seeds"] == 2 and found["conventions"] == 2
    assert found["by seed"] == pytest.approx([25, 25]) and found["low"] <= 25 <= found["high"]
    # A convention with two tasks weighs twice: the effect is the difference of the arms' pass@1.
    assert grid.interval({0: {"f/x/0": 1.0, "f/x/1": 1.0, "f/y/0": 0.0}}, None)["points"] == pytest.approx(200 / 3)
    assert grid.interval(own, None)["points"] == pytest.approx(100 * np.mean([1.0, 0.5, 0.5, 0.5]))


def test_inputs_of_the_grid_lose_what_they_say_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from rune.benchmarks import families

    monkeypatch.syspath_prepend(str(STUDY.parent / "phase4-grid"))
    grid = importlib.import_module("grid")
    whole = families.trajectories(families.generate(families.Config(families=4, held_out=0, tasks=4)), None)
    for trajectory in whole:
        bare, quiet = grid.without_attempts(trajectory), grid.without_errors(trajectory)
        assert [a.code for a in bare.attempts] == [trajectory.solution] and bare.solution == trajectory.solution
        assert [a.code for a in quiet.attempts] == [a.code for a in trajectory.attempts]
        assert [a.outcome for a in quiet.attempts] == [a.outcome for a in trajectory.attempts]
        assert {a.error for a in quiet.attempts} == {"", grid.HIDDEN}
