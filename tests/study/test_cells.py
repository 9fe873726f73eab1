"""Cells follow from the config alone: their names, their tasks, what they share, and the promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.corpus import splits
from rune.errors import ConfigError
from rune.stages import retrieve
from rune.study import cells, config, creation, folders
from rune.types import Attempt, ModelRef, Outcome, Problem, Split, Trajectory
from tests.pipeline.experiment import settings, write

CONFIGS = Path(__file__).parents[2] / "configs"


def loaded(root: Path, model: ModelRef, **changes: Any) -> config.RunConfig:
    return config.load(write(root, settings(root, model, **changes))).settings


def task(name: str, domain: str) -> Problem:
    code = f"def {name}(x):\n    return x\n"
    return Problem(
        task_id=name, benchmark="b", prompt=f"Write {name}.", entry_point=name, test="", reference=code, domain=domain
    )


TASKS = [task(f"t{d}{i}", f"d{d}") for d in range(4) for i in range(3)]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_config_of_the_repository_is_read_and_has_its_cells(path: Path) -> None:
    read = config.load(path).settings
    every = cells.cells(read)
    assert every and len({c.name for c in every}) == len(every)
    for cell in every:
        own = cells.settings_of(read, cell)
        assert cells.cells(own) == [cell._replace(variant=cells.MAIN)]  # the cell as an experiment of its own


def test_variants_cross_the_grid_and_the_temperatures(tmp_path: Path, tiny_model: ModelRef) -> None:
    design = {
        "temperatures": [0.8, 0.2],
        "grid": {"sample.top_p": [0.5, 1.0]},
        "variants": {"plain": {}, "long": {"train.hypernet.schedule.steps": 9}},
    }
    read = loaded(tmp_path, tiny_model, design=design)
    found = cells.variants(read.design)
    assert len(found) == 8 and next(iter(found)) == "plain_top_p-0.5_temperature-0.8"
    last = cells.settings_of(read, cells.Cell("long_top_p-1_temperature-0.2", 3, -1))
    assert (last.train.hypernet.schedule.steps, last.sample.top_p, last.sample.temperature) == (9, 1.0, 0.2)
    assert read.train.hypernet.schedule.steps != 9


@pytest.mark.parametrize(
    ("value", "word"),
    [(0.8, "0.8"), (1e-4, "0.0001"), (16, "16"), (True, "True"), ("perceiver", "perceiver"), ("a/b", "3"), ("", "3"),
     ([1], "3"), (["a"], "3"), ({"a": 1}, "3"), (-0.5, "3")],
)  # fmt: skip
def test_a_value_names_its_variants_folder_if_a_folder_may_be_called_so(value: object, word: str) -> None:
    assert cells._word(value, 3) == word


def test_cells_share_a_stage_as_far_as_their_settings_are_the_same(tmp_path: Path, tiny_model: ModelRef) -> None:
    read = loaded(tmp_path, tiny_model, design={"temperatures": [0.8, 0.2], "seeds": [1, 2]})

    def key(variant: str, seed: int, stage: str) -> str:
        cell = cells.Cell(variant, seed, -1)
        return cells.key(cells.settings_of(read, cell), cell, stage)

    hot, cold = "temperature-0.8", "temperature-0.2"
    assert key(hot, 1, "adapt") == key(cold, 1, "adapt") and key(hot, 1, "sample") != key(cold, 1, "sample")
    assert key(hot, 1, "collect") == key(hot, 2, "collect") and key(hot, 1, "train") != key(hot, 2, "train")


def test_folds_share_nothing_and_variants_that_retrieve_otherwise_share_the_training_alone(
    tmp_path: Path, tiny_model: ModelRef
) -> None:
    read = loaded(tmp_path, tiny_model, design={"folds": 2, "grid": {"retrieve.top_k": [1, 2]}})
    one, other_fold = cells.Cell("top_k-1", 3, 0), cells.Cell("top_k-1", 3, 1)
    other_hits = cells.Cell("top_k-2", 3, 0)

    def key(cell: cells.Cell, stage: str) -> str:
        return cells.key(cells.settings_of(read, cell), cell, stage)

    assert all(key(one, stage) != key(other_fold, stage) for stage in ("collect", "train", "adapt", "sample", "score"))
    assert key(one, "train") == key(other_hits, "train") and key(one, "adapt") != key(other_hits, "adapt")


@pytest.mark.parametrize(
    ("setting", "value", "shared"),
    [
        ("collect.history", 1, False),
        ("collect.temperature", 0.1, False),
        ("collect.max_attempts", 1, False),
        ("collect.reflect", False, False),
        ("engine.settings.default", ["x"], False),
        ("score.settings.cpu_seconds", 1.0, False),
        ("run.seed", 9, False),
        ("collect.keep", 3, True),
        ("collect.tasks", 3, True),
        ("train.neighbours", 3, True),
    ],
)
def test_attempts_are_shared_by_cells_whose_loop_is_the_same(
    setting: str, value: object, shared: bool, tmp_path: Path, tiny_model: ModelRef
) -> None:
    read = loaded(tmp_path, tiny_model)
    assert (cells.loop_key(config.changed(read, {setting: value})) == cells.loop_key(read)) is shared


@pytest.mark.parametrize("design", [{"held_out": 1}, {"folds": 2}], ids=["held out", "folds"])
def test_by_domain_no_domain_stands_on_both_sides(design: dict[str, Any]) -> None:
    for fold in cells.folds(config.Design(by="domain", **design)):
        marked = cells.split(TASKS, config.Design(by="domain", **design), fold)
        sides = [{p.domain for p in marked if p.split is s} for s in Split]
        assert all(sides) and not sides[0] & sides[1]


@pytest.mark.parametrize(
    "design",
    [{"held_out": 1}, {"held_out": 1, "by": "domain"}, {"folds": 2}, {"folds": 2, "by": "domain"}],
    ids=["tasks", "domains", "folds", "folds of domains"],
)
def test_the_split_seed_says_what_is_held_out(design: dict[str, Any]) -> None:
    def held_out(seed: int, tasks: list[Problem]) -> frozenset[str]:
        wanted = config.Design(**design, split_seed=seed)
        marked = cells.split(tasks, wanted, cells.folds(wanted)[0])
        return frozenset(p.task_id for p in marked if p.split is Split.HELD_OUT)

    assert len({held_out(seed, TASKS) for seed in range(10)}) > 1
    assert held_out(3, TASKS) == held_out(3, list(TASKS))


@pytest.mark.parametrize(
    ("design", "count"),
    [({"held_out": 25, "scored": 4}, 4), ({"held_out": 3, "scored": 4}, 3), ({"held_out": 3, "scored": 0}, 3),
     ({"held_out": 5, "scored": 0, "folds": 2, "tasks": 30}, 30)],
)  # fmt: skip
def test_the_tasks_of_the_decision_are_counted(
    design: dict[str, Any], count: int, tmp_path: Path, tiny_model: ModelRef, data_dir: Path
) -> None:
    assert cells.count_scored(loaded(tmp_path, tiny_model, design=design), tmp_path) == count


@pytest.mark.parametrize(("design", "fold"), [({"held_out": 4}, -1), ({"folds": 2}, 0)], ids=["held out", "folds"])
def test_by_task_a_domain_may_stand_on_both_sides(design: dict[str, Any], fold: int) -> None:
    marked = cells.split(TASKS, config.Design(**design), fold)
    sides = [{p.domain for p in marked if p.split is s} for s in Split]
    assert sides[0] & sides[1]


def test_every_domain_may_be_held_out_only_where_the_benchmark_marks_others_to_train_on() -> None:
    tasks = [task(f"T/{d}{i}", f"d{d}") for d in range(4) for i in range(2)]
    marked = [replace(t, split=Split.HELD_OUT) if t.domain in ("d2", "d3") else t for t in tasks]
    for given, most in ((tasks, 3), (marked, 2)):
        held = {p.domain for p in splits.split(given, held_out=most, seed=0, by="domain") if p.split is Split.HELD_OUT}
        assert len(held) == most and (given is tasks or held == {"d2", "d3"})
        with pytest.raises(ConfigError, match=f"cannot hold out {most + 1} of .* domains; give 1 to {most}"):
            splits.split(given, held_out=most + 1, seed=0, by="domain")


def test_a_task_without_a_domain_cannot_be_split_by_one() -> None:
    with pytest.raises(ConfigError, match="has no domain"):
        cells.split([*TASKS, task("stray", "")], config.Design(by="domain", held_out=1), -1)


def trajectory(problem: Problem) -> Trajectory:
    attempt = Attempt(code=problem.reference, outcome=Outcome.PASSED)
    return Trajectory(
        trajectory_id=f"of {problem.task_id}",
        task_id=problem.task_id,
        benchmark="b",
        prompt=problem.prompt,
        attempts=(attempt,),
        solution=problem.reference,
        domain=problem.domain,
    )


def test_retrieval_stays_in_the_domain_and_leaves_the_task_itself_out() -> None:
    corpus = [trajectory(p) for p in TASKS]

    def found(**settings: Any) -> set[str]:
        hits = retrieve.hits([TASKS[0]], corpus, retrieve.Config(top_k=12, **settings))
        return {h.trajectory.task_id for h in hits[TASKS[0].task_id]}

    assert found(within="domain") == {"t01", "t02"}
    assert found(within="domain", exclude_same_task=False) == {"t00", "t01", "t02"}
    assert found() == {p.task_id for p in TASKS[1:]}
    outside = retrieve.hits([task("plain", "")], corpus, retrieve.Config(top_k=3))
    assert outside == {"plain": ()}  # a private domain is no help to a task outside of all domains


def test_a_config_extends_another_and_its_paths_are_relative_to_it(tmp_path: Path, tiny_model: ModelRef) -> None:
    base = write(tmp_path, settings(tmp_path, tiny_model, collect={"imports": ["data/more.jsonl"]}))
    (tmp_path / "other.toml").write_text(f'extends = "{base.name}"\n[sample]\nn = 7\n')
    read, where = config.load(tmp_path / "other.toml")
    assert read.sample.n == 7 and read.sample.max_new_tokens == 400
    at = config.located(read, where, seed=0, fold=-1)
    assert at.collect.imports == (str(tmp_path / "data" / "more.jsonl"),)
    assert read.collect.imports == ("data/more.jsonl",)  # as written: no path of a machine in a run folder
    (tmp_path / "other.toml").write_text('extends = "../x.toml"\n')
    with pytest.raises(ConfigError, match="same folder"):
        config.load(tmp_path / "other.toml")


def test_a_run_folder_finds_the_configs_paths_again(tmp_path: Path, tiny_model: ModelRef) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "more.jsonl").write_text("")
    path = write(tmp_path, settings(tmp_path, tiny_model, collect={"imports": ["data/more.jsonl"]}))
    made = creation.create(config.load(path), resume=False)
    assert str(tmp_path / "data") not in (made.folder / "config.toml").read_text()
    again = folders.reopen(made.folder.path)
    (place,) = again.places()
    assert Path(again.located(place).collect.imports[0]) == tmp_path / "data" / "more.jsonl"


def test_each_cell_goes_on_from_its_own_checkpoint(tmp_path: Path, tiny_model: ModelRef) -> None:
    raw = settings(tmp_path, tiny_model, design={"seeds": [4, 5]})
    for name in ("start_from", "use"):
        own = {**raw, "train": {**raw["train"], name: "earlier/seed-{seed}/fold-{fold}"}}
        read, where = config.load(write(tmp_path, own))
        found = [getattr(config.located(read, where, seed=s, fold=2).train, name) for s in (4, 5)]
        assert found == [str(tmp_path / "earlier" / f"seed-{s}" / "fold-2") for s in (4, 5)]
        for folder in ("earlier/{sed}", "earlier/{", "earlier/{}"):
            other = config.changed(read, {f"train.{name}": folder})
            with pytest.raises(ConfigError, match=rf"train\.{name}: earlier/.*only {{seed}} and {{fold}} are known"):
                config.located(other, where, seed=4, fold=2)
