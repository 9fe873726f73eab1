"""What a config says and refuses, value by value: no model, no benchmark, no folder of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune import config as read
from rune.cli.main import main
from rune.errors import ConfigError
from rune.runs import store
from rune.study import cells, checks, config
from rune.study.cells import Cell
from rune.study.config import MOST_FOLDS, Design, RunSection
from rune.types import Problem, Split

CONFIG = Path(__file__).parents[2] / "configs" / "phase1-0.5b.toml"


@pytest.fixture(scope="module")
def plain() -> config.RunConfig:
    return config.load(CONFIG).settings


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ({"seeds": (1, 2, 1)}, r"seeds must be named once each, found \[1, 2, 1\]"),
        ({"temperatures": (0.2, 0.2)}, r"temperatures must be 0 or more, each once, found \[0.2, 0.2\]"),
        ({"temperatures": (-0.1,)}, "temperatures must be 0 or more"),
        ({"folds": 1}, "folds must be 2 or more, or 0 for one held-out split, found 1"),
        ({"folds": -1}, "folds must be 2 or more, or 0 for one held-out split, found -1"),
        ({"folds": MOST_FOLDS + 1}, rf"found {MOST_FOLDS + 1} \(over {MOST_FOLDS}\)"),
        ({"held_out": -1}, "held_out, tasks and scored must be 0 or more"),
        ({"tasks": -1}, "held_out, tasks and scored must be 0 or more"),
        ({"scored": -1}, "held_out, tasks and scored must be 0 or more"),
        ({"grid": {"sample.n": ()}}, "grid: 'sample.n' has no values"),
    ],
)
def test_a_design_that_makes_no_sense_is_refused(design: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Design(**design)


def test_a_design_at_its_limits_is_fine() -> None:
    for design in (
        {"folds": 2}, {"folds": MOST_FOLDS}, {"folds": 0, "held_out": 0, "tasks": 0, "scored": 0},
        {"temperatures": (0.0, 0.2)}, {"seeds": (0, 1)},
    ):  # fmt: skip
        Design(**design)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", "a b", "a\tb", "a\n"])
def test_a_runs_name_is_one_word(name: str) -> None:
    with pytest.raises(ValueError, match="name must be one word without slashes"):
        RunSection(name=name, seed=0)
    assert RunSection(name="a-b_c.d", seed=0).folder == "runs"


@pytest.mark.parametrize(
    ("section", "key", "now"),
    [
        ("benchmark", "held_out", r"\[benchmark\] held_out is \[design\] held_out now; move it there"),
        ("benchmark", "split_seed", r"\[benchmark\] split_seed is \[design\] split_seed now"),
        ("benchmark", "limit", r"\[benchmark\] limit is \[design\] scored .* or tasks"),
        ("benchmark", "folds", r"\[benchmark\] folds is \[design\] folds now"),
        ("benchmark", "fold", r"\[benchmark\] fold is \[design\] fold now"),
        ("crossfit", "seeds", r"\[crossfit\] is \[design\], with folds, seeds and temperatures now"),
        ("engine.settings", "quantize", r"\[engine.settings\] quantize is \[model\] quantize now"),
    ],
)
def test_a_setting_that_has_moved_says_where(section: str, key: str, now: str) -> None:
    raw = read.parse(CONFIG.read_text(), where="config")
    *parents, last = section.split(".")
    at = raw
    for name in parents:
        at = at.setdefault(name, {})
    at.setdefault(last, {})[key] = 1
    with pytest.raises(ConfigError, match=now):
        config.build(raw)


def test_as_many_draws_are_counted_as_are_made(plain: config.RunConfig) -> None:
    n = plain.sample.n
    assert config.changed(plain, {"gate.n": n}).gate.n == n
    with pytest.raises(ConfigError, match=rf"\[gate\] n = {n + 1} needs .* n = {n}; add --set sample.n={n + 1}"):
        config.changed(plain, {"gate.n": n + 1})
    with pytest.raises(ConfigError, match=r"\[design\] run.seed.x: a part of it is a value, not a section"):
        config.changed(plain, {"run.seed.x": 1})


def test_a_config_is_another_with_some_values_changed_section_by_section(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text("a = [1, 2]\n[s]\nx = 1\ny = 2\n[s.t]\nz = 3\nw = 4\n[other]\nv = 5\n")
    (tmp_path / "second.toml").write_text('extends = "first.toml"\na = [9]\n[s]\ny = 20\n[s.t]\nz = 30\n')
    raw = read.parse('extends = "second.toml"\nother = 7\n[s]\nnew = 8\n', where="third")
    assert config._extended(raw, tmp_path / "third.toml") == {
        "a": [9], "s": {"x": 1, "y": 20, "new": 8, "t": {"z": 30, "w": 4}}, "other": 7,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"third.toml: extends gone.toml, and there is no such file beside it"):
        config._extended({"extends": "gone.toml"}, tmp_path / "third.toml")
    for name in ("../first.toml", 3):
        with pytest.raises(ConfigError, match="extends names a config in the same folder, found"):
            config._extended({"extends": name}, tmp_path / "third.toml")


@pytest.mark.parametrize(
    ("extends", "circle"),
    [
        ({"a": "a"}, "a.toml → a.toml"),
        ({"a": "b", "b": "a"}, "a.toml → b.toml → a.toml"),
        ({"a": "b", "b": "c", "c": "b"}, "b.toml → c.toml → b.toml"),  # a is not in it
    ],
)
def test_a_config_that_extends_itself_is_one_line(
    extends: dict[str, str], circle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, other in extends.items():
        (tmp_path / f"{name}.toml").write_text(f'extends = "{other}.toml"\n')
    assert main(["run", str(tmp_path / "a.toml")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / circle.split()[0]}: extends itself: {circle}; take" in said
    assert said.count("\n") == 1 and "Traceback" not in said


def test_a_config_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the config: No such file or directory; give a TOML file, or"):
        config.load(tmp_path / "gone.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"bytes.toml: not a text file, expected TOML; see configs/"):
        config.load(tmp_path / "bytes.toml")
    (tmp_path / "above.toml").write_text('extends = "bytes.toml"\n')
    with pytest.raises(ConfigError, match=r"bytes.toml: not a text file, expected TOML; see configs/"):
        config.load(tmp_path / "above.toml")
    assert config.load(Path("phase1-demo")).settings.run.name


def test_paths_are_made_absolute_where_they_lead_to_something(
    plain: config.RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model", "tasks.jsonl", "clones"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.path_at(tmp_path, "") == "" and config.path_at(tmp_path, "~/x") == str(tmp_path / "x")
    assert config.path_at(Path("/elsewhere"), "a/../b") == "/elsewhere/b"
    section = config.BenchmarkSection(
        name="mbpp", settings={"path": "tasks.jsonl", "clones": "gone", "seed": 3, "more": "model"}
    )
    found = config.located_benchmark(section, tmp_path)
    assert found.settings == {"path": str(tmp_path / "tasks.jsonl"), "clones": "gone", "seed": 3, "more": "model"}
    bare = replace(section, settings={"path": "", "clones": "clones"})
    assert config.located_benchmark(bare, tmp_path).settings == {"path": "", "clones": str(tmp_path / "clones")}
    assert config.located_model(replace(plain.model, name="model"), tmp_path).name == str(tmp_path / "model")
    assert config.located_model(replace(plain.model, name="gone"), tmp_path).name == "gone"
    own = replace(
        plain,
        collect=replace(plain.collect, imports=("a.jsonl",), shown=("b.jsonl", "/c.jsonl")),
        train=replace(plain.train, start_from="", hypernet=replace(plain.train.hypernet, reconstruct_from="loras")),
    )
    at = config.located(own, tmp_path, seed=1, fold=2)
    assert at.collect.imports == (str(tmp_path / "a.jsonl"),) and at.collect.shown == (
        str(tmp_path / "b.jsonl"),
        "/c.jsonl",
    )
    assert (at.train.start_from, at.train.hypernet.reconstruct_from) == ("", str(tmp_path / "loras"))


# --------------------------------------------------------------------------- cells


def test_a_cell_is_called_by_what_it_is() -> None:
    assert (Cell("main", 3, -1).name, Cell("hot", 0, 0).name) == ("main.seed-3.held-out", "hot.seed-0.fold-0")


@pytest.mark.parametrize(
    "key", ["run.seed", "design.folds", "benchmark.name", "gate.n", "report.x", "track.enabled", "phase.number"]
)
def test_what_is_the_same_for_all_of_an_experiment_is_no_variant(key: str) -> None:
    for design in (Design(grid={key: (1, 2)}), Design(variants={"a": {key: 1}})):
        with pytest.raises(ConfigError, match=rf"\[design\] {key} cannot differ between variants"):
            cells.variants(design)


def test_variants_are_named_by_their_values_and_each_name_is_one() -> None:
    assert cells.variants(Design()) == {"main": {}}
    assert cells.variants(Design(temperatures=(0.8, 0.2))) == {
        "temperature-0.8": {"sample.temperature": 0.8}, "temperature-0.2": {"sample.temperature": 0.2},
    }  # fmt: skip
    grid = Design(variants={"a": {"sample.n": 1}, "b": {}}, grid={"adapt.settings": ({"x": 1}, {"x": 2})})
    assert cells.variants(grid) == {
        f"{v}_settings-{i}": {**more, "adapt.settings": {"x": i + 1}}
        for v, more in (("a", {"sample.n": 1}), ("b", {}))
        for i in (0, 1)
    }
    twice = Design(grid={"sample.top_p": (0.5,), "train.top_p": (0.5, 0.5)})
    with pytest.raises(ConfigError, match=r"two variants are called 'top_p-0\.5_top_p-0\.5'; name them under"):
        cells.variants(twice)


def test_cells_that_share_most_stand_next_to_each_other(plain: config.RunConfig) -> None:
    design = Design(folds=2, seeds=(5, 4), temperatures=(0.8, 0.2))
    every = cells.cells(replace(plain, design=design))
    hot, cold = "temperature-0.8", "temperature-0.2"
    assert every == [Cell(v, s, f) for s in (5, 4) for f in (0, 1) for v in (hot, cold)]
    one = cells.cells(replace(plain, design=replace(design, fold=1, seeds=(), temperatures=())))
    assert one == [Cell("main", plain.run.seed, 1)]
    assert cells.folds(Design()) == (-1,) and cells.folds(Design(folds=3)) == (0, 1, 2)


def test_a_cells_config_is_the_experiments_with_its_own_values(plain: config.RunConfig) -> None:
    design = Design(folds=2, seeds=(5, 4), temperatures=(0.8, 0.25))
    own = cells.settings_of(replace(plain, design=design), Cell("temperature-0.25", 4, 1))
    assert own.sample.temperature == 0.25 and own.train == plain.train
    assert (own.design.seeds, own.design.fold, own.design.folds, own.design.temperatures) == ((4,), 1, 2, ())
    bare = cells.settings_of(replace(plain, design=replace(design, temperatures=())), Cell("main", 5, 0))
    assert bare.sample == plain.sample and (bare.design.seeds, bare.design.fold) == ((5,), 0)


def task(number: int, split: Split = Split.TRAIN, category: str = "") -> Problem:
    return Problem(
        task_id=f"T/{number}", benchmark="t", prompt=f"{number}", entry_point="f", test="", split=split,
        domain=f"d{number % 4}", category=category,
    )  # fmt: skip


TASKS = [task(i) for i in range(12)]


def counted(marked: list[Problem]) -> tuple[int, int]:
    held_out = sum(p.split is Split.HELD_OUT for p in marked)
    return held_out, len(marked) - held_out


def test_of_held_out_tasks_so_many_are_scored_and_no_other_is_left_out() -> None:
    whole = cells.split(TASKS, Design(held_out=5), -1)
    assert counted(whole) == (5, 7) and {p.task_id for p in whole} == {p.task_id for p in TASKS}
    some = cells.split(TASKS, Design(held_out=5, scored=2), -1)
    assert counted(some) == (2, 7)
    held_out = {p.task_id for p in whole if p.split is Split.HELD_OUT}
    assert {p.task_id for p in some if p.split is Split.HELD_OUT} < held_out
    folded = [cells.split(TASKS, Design(folds=3), fold) for fold in range(3)]
    assert [counted(marked) for marked in folded] == [(4, 8)] * 3
    once = [p.task_id for marked in folded for p in marked if p.split is Split.HELD_OUT]
    assert sorted(once) == sorted(p.task_id for p in TASKS)


def test_an_experiment_scores_what_any_of_its_cells_holds_out() -> None:
    one = cells.scored(TASKS, Design(held_out=5))
    assert one == cells.split(TASKS, Design(held_out=5), -1)
    assert cells.scored(TASKS, Design(folds=3, fold=1)) == cells.split(TASKS, Design(folds=3), 1)
    every = cells.scored(TASKS, Design(folds=3))
    assert counted(every) == (12, 0) and [p.task_id for p in every] == [p.task_id for p in TASKS]
    few = cells.scored(TASKS, Design(folds=3, scored=1))
    assert counted(few) == (3, 9) and len(few) == 12


def test_tasks_that_take_part_are_all_or_so_many(plain: config.RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "problems", lambda section: TASKS)
    assert cells.tasks(replace(plain, design=Design())) == TASKS
    some = cells.tasks(replace(plain, design=Design(tasks=5, split_seed=1)))
    assert len(some) == 5 and {p.task_id for p in some} < {p.task_id for p in TASKS}
    assert any(cells.tasks(replace(plain, design=Design(tasks=5, split_seed=s))) != some for s in range(2, 6))


def counts(design: Design) -> int | None:
    """What the config alone says; None where the tasks are read for it."""
    if design.folds or not design.held_out or design.by == "domain":
        return None
    return min(design.scored or design.held_out, design.held_out)


@pytest.mark.parametrize(
    "design",
    [
        Design(held_out=3), Design(held_out=3, scored=2), Design(held_out=3, scored=5), Design(folds=3, held_out=3),
        Design(held_out=2, by="domain"), Design(held_out=0),
    ],
)  # fmt: skip
def test_how_many_tasks_are_decided_over_is_what_would_be_held_out(
    plain: config.RunConfig, design: Design, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = [replace(p, split=Split.HELD_OUT) if i < 3 and not design.held_out else p for i, p in enumerate(TASKS)]
    asked: list[int] = []
    monkeypatch.setattr(cells, "problems", lambda section: asked.append(1) or tasks)
    found = cells.count_scored(replace(plain, design=design), Path("/"))
    assert found == counted(cells.scored(tasks, design))[0]
    assert bool(asked) is (counts(design) is None)


LOOP = {"collect.tasks": 3, "collect.keep": 3, "collect.keep_per_task": 2, "collect.shown": ["a"]}


def test_attempts_are_known_by_the_loop_alone(plain: config.RunConfig) -> None:
    same = [
        cells.loop_key(config.changed(plain, {k: v})) for k, v in {**LOOP, "sample.n": 9, "design.folds": 2}.items()
    ]
    assert set(same) == {cells.loop_key(plain)} and len(same[0]) == 8
    for key, value in {
        "collect.chains": 7, "collect.max_new_tokens": 77, "model.dtype": "bfloat16", "run.seed": 77,
        "benchmark.settings": {"path": "x"}, "score.cache": False, "engine.name": "scripted",
    }.items():  # fmt: skip
        changed = replace(
            plain,
            **{key.split(".")[0]: replace(getattr(plain, key.split(".")[0]), **{key.split(".")[1]: value})},  # type: ignore[arg-type]
        )
        assert cells.loop_key(changed) != cells.loop_key(plain), key


Edit = Callable[[config.RunConfig], config.RunConfig]
EDITS: dict[str, Edit] = {
    "collect": lambda s: replace(s, collect=replace(s.collect, keep=77)),
    "train": lambda s: replace(s, train=replace(s.train, neighbours=77)),
    "adapt": lambda s: replace(s, retrieve=replace(s.retrieve, top_k=7)),
    "sample": lambda s: replace(s, sample=replace(s.sample, n=77)),
}


@pytest.mark.parametrize("section", EDITS)
def test_a_setting_parts_cells_from_the_stage_on_that_reads_it(plain: config.RunConfig, section: str) -> None:
    cell, stages = Cell("main", 3, -1), ["collect", "train", "adapt", "sample", "score"]
    other = EDITS[section](plain)
    shared = [s for s in stages if cells.key(plain, cell, s) == cells.key(other, cell, s)]
    assert shared == stages[: stages.index(section)]
    assert cells.key(plain, cell, "collect") == cells.key(plain, cell._replace(seed=4), "collect")
    for stage in stages[1:]:
        assert cells.key(plain, cell, stage) != cells.key(plain, cell._replace(seed=4), stage)
    assert len({cells.key(plain, cell, stage) for stage in stages}) == len(stages)
    with pytest.raises(AssertionError, match="nothing"):
        cells.key(plain, cell, "nothing")


# --------------------------------------------------------------------------- what is refused at once


@pytest.mark.parametrize(
    ("model", "sample", "engine", "saved", "words"),
    [
        ("nf4", "", "torch", True, ""),
        ("none", "nf4", "torch", True, ""),
        ("nf4", "nf4", "torch", False, ""),
        ("nf4", "", "torch", False, ""),
        ("none", "none", "server", True, ""),
        ("nf4", "", "server", True, r"\[model\] quantize = 'nf4': the engine server loads the base itself"),
        ("none", "nf4", "server", True, r"\[sample\] quantize = 'nf4': the engine server loads the base itself"),
        ("none", "nf4", "torch", False, r"\[sample\] quantize = 'nf4' carries adapters to another base"),
        ("nf4", "none", "torch", False, r"\[sample\] quantize = 'none' carries adapters to another base"),
    ],
)
def test_a_quantised_base_needs_an_engine_that_loads_it_and_adapters_that_can_be_carried(
    plain: config.RunConfig, model: str, sample: Any, engine: str, saved: bool, words: str
) -> None:
    own = replace(
        plain,
        model=replace(plain.model, quantize=model),  # type: ignore[arg-type]
        sample=replace(plain.sample, quantize=sample),
        engine=replace(plain.engine, name=engine),
        adapt=replace(plain.adapt, save_adapters=saved),
    )
    if words:
        with pytest.raises(ConfigError, match=words):
            checks._quantised(own)
    else:
        checks._quantised(own)


@pytest.mark.parametrize("key", ["imports", "shown"])
def test_files_that_a_run_reads_must_be_there(plain: config.RunConfig, key: str, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").touch()

    def own(*names: str) -> config.RunConfig:
        collect = replace(plain.collect, **{key: names})  # type: ignore[arg-type]
        return replace(plain, train=replace(plain.train, start_from=""), collect=collect)

    written = own("there.jsonl")
    checks.inputs(config.located(written, tmp_path, seed=0, fold=-1), written)
    written = own("there.jsonl", "gone.jsonl")
    with pytest.raises(ConfigError, match=rf"collect.{key}: gone.jsonl: no such file \({tmp_path}/gone.jsonl;"):
        checks.inputs(config.located(written, tmp_path, seed=0, fold=-1), written)
    checks.inputs(config.located(own(), tmp_path, seed=0, fold=-1), own())
    with pytest.raises(ConfigError, match=r"train.start_from: earlier: no checkpoints"):
        earlier = replace(own(), train=replace(plain.train, start_from="earlier"))
        checks.inputs(config.located(earlier, tmp_path, seed=0, fold=-1), earlier)
    with pytest.raises(ConfigError, match=r"train.use: net: no checkpoint"):
        taken = replace(own(), train=replace(plain.train, start_from="", use="net"))
        checks.inputs(config.located(taken, tmp_path, seed=0, fold=-1), taken)


@pytest.mark.parametrize(("part", "names"), checks.FIXED.items())
def test_a_checkpoint_to_go_on_from_has_the_shape_that_is_asked_for(
    plain: config.RunConfig, part: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    has = {"lora": read.plain(plain.train.lora), "hypernet": read.plain(plain.train.hypernet)}
    store.write_json(tmp_path / "settings.json", {**has, "more": 1})
    checks.start(str(tmp_path), "it", plain.train)
    for name in names:
        store.write_json(tmp_path / "settings.json", {**has, part: {**has[part], name: "else"}})
        with pytest.raises(
            ConfigError, match=rf"was made with {part}.{name} = else, this config has .*set train.{part}"
        ):
            checks.start(str(tmp_path), "it", plain.train)
    store.write_json(tmp_path / "settings.json", {**has, part: {**has[part], "learning": "else"}})
    checks.start(str(tmp_path), "it", plain.train)
