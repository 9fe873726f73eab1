"""What the memory study draws on and counts: releases that share nothing, and rates from what an evolution kept."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rune.runs import store
from rune.types import Problem, Split, Trajectory

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


def test_the_grid_adjusts_as_holm_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(STUDY.parent / "phase4-grid"))
    grid = importlib.import_module("grid_told")
    assert grid.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    own = {0: {"f/x/0": 1.0, "f/y/0": 0.5}, 1: {"f/x/0": 0.5, "f/y/0": 0.5}}
    other = {0: {"f/x/0": 0.5, "f/y/0": 0.5}, 1: {"f/x/0": 0.5, "f/y/0": 0.0}, 2: {"f/x/0": 1.0}}
    found = grid.interval(own, other)
    assert found["points"] == pytest.approx(25) and found["seeds"] == 2 and found["conventions"] == 2
    assert found["by seed"] == pytest.approx([25, 25]) and found["low"] <= 25 <= found["high"]
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
