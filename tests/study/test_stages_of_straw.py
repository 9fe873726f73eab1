"""What each stage of a cell is given and what is recorded of it: the stages are straw, folders and records are real."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rune.errors import DataError
from rune.runs import store
from rune.runs.store import RunDir
from rune.stages import collect
from rune.stages.context import Context
from rune.study import executor
from rune.study.cells import Cell
from rune.study.folders import CellFolder
from rune.types import Attempt, ModelRef, Outcome, Problem, Split, Trajectory

MODEL = ModelRef(name="m", path="/m", digest="a" * 64, source="local")
OTHER = ModelRef(name="m", path="/m", digest="b" * 64, source="local", quantize="nf4", unquantised="a" * 64)


def problem(task: str, split: Split = Split.TRAIN) -> Problem:
    return Problem(task_id=task, benchmark="t", prompt=f"Do {task}.", entry_point="f", test="", split=split)


def trajectory(name: str, task: str) -> Trajectory:
    return Trajectory(
        trajectory_id=name, task_id=task, benchmark="t", prompt=f"Do {task}.", solution="s",
        attempts=(Attempt(code="s", outcome=Outcome.PASSED),),
    )  # fmt: skip


def folder(path: Path, **manifest: Any) -> RunDir:
    made = RunDir(path)
    path.mkdir(parents=True)
    store.write_json(made.manifest_path, {"stages": {}, **manifest})
    return made


def context(**changes: Any) -> Context:
    given: dict[str, Any] = {
        "seed": 11, "model": lambda: MODEL, "device": "cpu", "dtype": "float32", "engine": lambda: "engine",
        "sandbox": lambda: "box", "cache": Path("/cache"),
    }  # fmt: skip
    return Context(**{**given, **changes})


class Straw:
    """A runner that notes what it is asked for."""

    def __init__(self, said: list[Any], drawn: ModelRef | None = None) -> None:
        self.said, self.drawn = said, drawn

    def context(self, settings: Any, cell: Cell) -> Context:
        self.given = context(seed=cell.seed)
        return self.given

    def check_scorer(self, folder: RunDir, context: Context) -> None:
        self.said.append("scorer checked")

    def adapters(self, place: Any, context: Context) -> Any:
        return types.SimpleNamespace(put="put here")

    def bring_adapters(self, place: Any, settings: Any, context: Context) -> None:
        self.said.append("adapters brought")

    def sampling(self, settings: Any, given: Context) -> Context:
        return given if self.drawn is None else context(model=lambda: self.drawn)

    def stage(self, place: Any, name: str) -> None:
        self.said.append(f"stage {name}")

    def close(self) -> None:
        self.said.append("closed")


SETTINGS: Any = types.SimpleNamespace(
    run=types.SimpleNamespace(seed=3), collect="[collect]", train="[train]", adapt="[adapt]", sample="[sample]",
    score="[score]", retrieve="[retrieve]", benchmark="[benchmark]",
)  # fmt: skip


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the stages were called with, and who was sealed."""
    heard: list[Any] = []

    def hear(name: str) -> Any:
        def run(folder: RunDir, settings: Any, context: Context, **more: Any) -> None:
            heard.append((name, folder.path.name, settings, context.seed, more))

        return run

    for name in ("collect", "train", "adapt", "sample", "score"):
        monkeypatch.setattr(getattr(executor, name), "run", hear(name))
    monkeypatch.setattr(executor.score, "again", hear("score again"))
    monkeypatch.setattr(executor, "asked", lambda section: {"a task": [f"what {section} asks"]})
    monkeypatch.setattr(executor, "device_name", lambda device: f"a {device}")
    monkeypatch.setattr(executor, "arm_inputs", lambda folder, settings, context, keep: ("inputs", settings, keep))
    monkeypatch.setattr(executor.integrity, "seal", lambda folder, name: heard.append(f"sealed {name}"))
    monkeypatch.setattr(executor.provenance, "worker", lambda: {"rune": "this"})
    return heard


def straw_experiment(places: list[CellFolder], where: RunDir, single: bool = True) -> Any:
    return types.SimpleNamespace(places=lambda: places, folder=where, single=single, located=lambda place: SETTINGS)


def one(tmp_path: Path, **manifest: Any) -> tuple[Any, CellFolder]:
    where = folder(tmp_path / "run", **manifest)
    place = CellFolder(Cell("main", 7, -1), where, SETTINGS)
    return straw_experiment([place], where), place


@pytest.mark.parametrize(
    ("name", "before", "given"),
    [
        ("train", [], {}),
        ("sample", ["adapters brought"], {}),
        ("score", [], {}),
        ("collect", ["scorer checked"], {"attempts": "attempts.jsonl"}),
    ],
)
def test_a_stage_gets_its_own_section_and_the_cells_seed_and_is_sealed(
    tmp_path: Path, said: list[Any], name: str, before: list[str], given: dict[str, Any]
) -> None:
    experiment, place = one(tmp_path)
    runner: Any = Straw(said)
    executor.run_stage(experiment, name, place, runner)
    seed = 3 if name == "collect" else 7  # the loop's attempts are made once for all seeds
    if given:
        asked = {"a task": ["what [benchmark] asks"]}
        given = {"attempts": place.folder / given["attempts"], "asked": asked}
    assert said == [*before, (name, "run", f"[{name}]", seed, given), f"sealed {name}"]
    entry = place.folder.manifest()["stages"][name]
    assert entry["status"] == "done" and entry["by"] == {"rune": "this"}
    told = {k: place.folder.manifest().get(k) for k in ("model", "device", "dtype", "drawn_from")}
    model = {"name": "m", "sha256": "a" * 64, "source": "local", "weights": MODEL.weights}
    expected = {"model": model, "device": "a cpu", "dtype": "float32"} if name == "collect" else {}
    assert {k: v for k, v in told.items() if v is not None} == expected


def test_what_adapters_are_made_from_and_where_they_go_is_given_to_the_stage(tmp_path: Path, said: list[Any]) -> None:
    experiment, place = one(tmp_path)
    runner: Any = Straw(said)
    executor.run_stage(experiment, "adapt", place, runner)
    ((name, _, settings, seed, more), sealed) = said
    assert (name, settings, seed, sealed) == ("adapt", "[adapt]", 7, "sealed adapt")
    assert more["arm_inputs"] == ("inputs", SETTINGS, "put here") and more["adapters"].put == "put here"


def test_answers_that_come_from_another_form_of_the_model_say_so(tmp_path: Path, said: list[Any]) -> None:
    experiment, place = one(tmp_path)
    runner: Any = Straw(said, drawn=OTHER)
    executor.run_stage(experiment, "sample", place, runner)
    drawn = place.folder.manifest()["drawn_from"]
    assert (drawn["sha256"], drawn["quantize"], drawn["files_sha256"]) == ("b" * 64, "nf4", "a" * 64)
    assert said[1][:4] == ("sample", "run", "[sample]", 11)  # by that model's context


@pytest.mark.parametrize("name", ["train", "adapt", "sample", "collect", "score"])
def test_stages_that_need_the_model_look_whether_it_is_the_same(
    tmp_path: Path, said: list[Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    experiment, place = one(tmp_path)
    looked: list[str] = []
    monkeypatch.setattr(executor, "_same_model", lambda folder, context: looked.append(folder.path.name))
    runner: Any = Straw(said)
    executor.run_stage(experiment, name, place, runner)
    assert looked == (["run"] if name in ("train", "adapt", "sample") else [])


OVERRIDE = {"overrides": [{"phase": 2, "instead_of": "no decision", "reason": "a try"}]}
SAID = ["Phase 2 began without a passed decision of phase 1 (no decision), by override: a try"]


@pytest.mark.parametrize(
    ("phase", "stage", "files", "marked"),
    [
        (OVERRIDE, "collect", ["corpus.json"], ["corpus.json"]),
        (OVERRIDE, "adapt", ["diagnostics.json", "corpus.json"], ["diagnostics.json"]),
        (OVERRIDE, "sample", ["diagnostics.json", "corpus.json"], []),
        (OVERRIDE, "gate", ["corpus.json"], []),
        (OVERRIDE, "collect", [], []),
        ({}, "collect", ["corpus.json"], []),
    ],
)
def test_a_phase_begun_by_override_is_marked_in_what_its_stages_tell(
    tmp_path: Path, phase: dict[str, Any], stage: str, files: list[str], marked: list[str]
) -> None:
    where = folder(tmp_path / "run", phase=phase)
    for file in files:
        store.write_json(where / file, {"kept": 1})
    executor._overridden(where, stage)
    for file in files:
        more = {"overrides": SAID} if file in marked else {}
        assert store.read_json(where / file) == {"kept": 1, **more}
    assert {p.name for p in where.path.iterdir()} == {"manifest.json", *files}


def test_over_all_cells_there_is_a_decision_and_a_report(
    tmp_path: Path, said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, place = one(tmp_path)
    heard: list[Any] = []
    monkeypatch.setattr(executor.combine, "of_experiment", lambda e: ("source of", e.folder.path.name))
    monkeypatch.setattr(executor.combine, "decide", lambda source: heard.append(("decide", source)))
    monkeypatch.setattr(executor.combine, "digest_of", lambda folder: f"digest of {folder.path.name}")
    monkeypatch.setattr(executor.combine, "report_on", lambda source, result: heard.append(("report", source, result)))
    monkeypatch.setattr(executor.reading, "result", lambda folder: f"result of {folder.path.name}")
    executor.run_stage(experiment, "gate")
    executor.run_stage(experiment, "report")
    source = ("source of", "run")
    assert heard == [("decide", source), ("report", source, "result of run")] and said == []
    stages = place.folder.manifest()["stages"]
    assert stages["gate"]["decision"] == "digest of run" and stages["gate"]["by"] == {"rune": "this"}
    assert "decision" not in stages["report"] and stages["report"]["by"] == {"rune": "this"}


def test_attempts_are_in_the_run_or_once_for_cells_that_loop_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "loop_key", lambda settings: f"key of {settings}")
    where = RunDir(tmp_path / "all")
    place = CellFolder(Cell("a", 0, 1), RunDir(tmp_path / "all" / "cells" / "a"), "s")  # type: ignore[arg-type]
    assert executor.attempts(straw_experiment([place], where), place) == place.folder / "attempts.jsonl"
    several = straw_experiment([place, place], where, single=False)
    assert executor.attempts(several, place) == tmp_path / "all" / "attempts" / "key of s.jsonl"


def test_verdicts_are_made_again_or_added_to_in_every_cell(
    tmp_path: Path, said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "Runner", lambda experiment: Straw(said))
    kept: list[Any] = []
    monkeypatch.setattr(
        executor.integrity, "demand_kept", lambda folder, name, grown: kept.append((folder.path.name, name, grown))
    )
    places = [CellFolder(Cell(n, s, -1), folder(tmp_path / n), SETTINGS) for s, n in enumerate("ab", start=5)]
    experiment = straw_experiment(places, folder(tmp_path / "all"))
    executor.score_again(experiment, anew=False)
    assert kept == [("a", "score", False), ("b", "score", False)] and said == ["stage score", "stage score", "closed"]
    said.clear()
    kept.clear()
    executor.score_again(experiment, anew=True)
    assert kept == [] and said == [
        ("score again", "a", "[score]", 5, {}), "stage score", ("score again", "b", "[score]", 6, {}), "stage score",
        "closed",
    ]  # fmt: skip


def test_the_other_processes_of_a_training_do_its_steps_and_record_nothing(
    tmp_path: Path, said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "Runner", lambda experiment: Straw(said))
    hushed: list[bool] = []
    monkeypatch.setattr(executor.console, "hush", lambda: hushed.append(True))
    places = [CellFolder(Cell(n, s, -1), folder(tmp_path / n), SETTINGS) for s, n in enumerate("ab", start=5)]
    executor._train_along(straw_experiment(places, folder(tmp_path / "all")))
    assert said == [("train", "a", "[train]", 5, {}), ("train", "b", "[train]", 6, {}), "closed"]
    assert hushed == [True] and all(place.folder.manifest() == {"stages": {}} for place in places)


def test_a_worker_does_the_cells_that_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [CellFolder(Cell(n, 0, -1), RunDir(Path(n)), SETTINGS) for n in "abc"]
    experiment = straw_experiment(places, RunDir(Path("all")))
    heard: list[Any] = []

    class Runner:
        def __init__(self, given: Any, *, together: int) -> None:
            heard.append((given is experiment, together))

        def run(self, wanted: list[CellFolder]) -> None:
            heard.append([p.cell.variant for p in wanted])

        def close(self) -> None:
            heard.append("closed")

    monkeypatch.setattr(executor, "Runner", Runner)
    monkeypatch.setattr(executor, "reopen", lambda path: experiment if path == Path("all") else None)
    executor.work(Path("all"), [places[2].cell.name, places[0].cell.name], together=4)
    assert heard == [(True, 4), ["a", "c"], "closed"]


# --------------------------------------------------------------------------- what every arm is given


def test_all_arms_are_given_the_same_hits_of_held_out_tasks_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = folder(tmp_path / "run")
    asked: list[Any] = []

    def hits(tasks: list[Problem], found: list[Trajectory], settings: Any) -> Any:
        asked.append(([p.task_id for p in tasks], [t.trajectory_id for t in found], settings))
        return {"T/9": ()}

    monkeypatch.setattr(executor.retrieve, "hits", hits)
    store.write_jsonl(where / "problems.jsonl", [problem("T/1"), problem("T/9", Split.HELD_OUT)])
    with pytest.raises(DataError, match=r"no trajectories; run `rune collect .*run` first"):
        executor.arm_inputs(where, SETTINGS, context(), lambda *_: None)  # type: ignore[arg-type, return-value]
    store.write_jsonl(where / "trajectories.jsonl", [trajectory("a", "T/1")])
    store.write_jsonl(where / collect.SHOWN, [trajectory("b", "T/2")])

    def keep(*_: Any) -> Any: ...

    found = executor.arm_inputs(where, SETTINGS, context(), keep)
    assert asked == [(["T/9"], ["a", "b"], "[retrieve]")]
    assert [t.trajectory_id for t in found.trajectories] == ["a"]  # what is only shown trains nothing
    assert (found.seed, found.device, found.dtype, found.model) == (11, "cpu", "float32", MODEL)
    assert found.hits == {"T/9": ()} and found.base is None and found.keep is keep
    assert (found.checkpoints, found.adapters) == (where / "checkpoints", where / "adapters")
    session = types.SimpleNamespace(base="the base in memory")
    lent = executor.arm_inputs(where, SETTINGS, context(session=lambda: session), keep)
    assert lent.base is not None and lent.base() == "the base in memory"


# --------------------------------------------------------------------------- adapters that live in an engine


class Takes:
    def put_adapter(self) -> None: ...


def runner(*places: CellFolder, alike: str = "") -> executor.Runner:
    made = executor.Runner(straw_experiment(list(places), RunDir(Path("all"))))
    for place in places:
        made._keys[place.cell, "adapt"] = "same" if place.cell.variant in alike else place.cell.variant
    return made


def cell(name: str, save: bool) -> CellFolder:
    settings: Any = types.SimpleNamespace(
        adapt=types.SimpleNamespace(save_adapters=save), sample=types.SimpleNamespace(quantize="")
    )
    return CellFolder(Cell(name, 0, -1), RunDir(Path("cells") / name), settings)


@pytest.mark.parametrize(("save", "engine", "memory"), [
    (True, Takes(), False), (False, object(), False), (True, object(), False), (False, Takes(), True),
])  # fmt: skip
def test_adapters_are_in_folders_unless_that_is_not_wanted_and_the_engine_takes_them(
    save: bool, engine: Any, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = cell("a", save)
    made = runner(place)
    given = context(engine=lambda: engine)
    kept = made.adapters(place, given)
    assert kept.in_memory is memory and list(made._stores) == ([place.cell.name] if memory else [])
    remade: list[Any] = []
    monkeypatch.setattr(
        executor.adapt, "remake", lambda folder, settings, arm_inputs: remade.append((folder.path.name, arm_inputs))
    )
    monkeypatch.setattr(executor, "arm_inputs", lambda folder, settings, context, keep: keep)
    made._stores.clear()
    made.bring_adapters(place, place.settings, given)
    assert [name for name, _ in remade] == (["a"] if memory else [])
    made.bring_adapters(place, place.settings, given)  # they are there now
    assert len(remade) == memory and made._folders._roots[0] == Path("cells/a/adapters")


def test_adapters_of_a_cell_that_made_the_same_ones_are_drawn_with(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (cell(n, False) for n in "abc")
    made = runner(a, b, c, alike="ab")
    remade: list[str] = []
    monkeypatch.setattr(executor.adapt, "remake", lambda folder, settings, arm_inputs: remade.append(folder.path.name))
    monkeypatch.setattr(executor, "arm_inputs", lambda folder, settings, context, keep: keep)
    given = context(engine=Takes)
    made.adapters(a, given)
    for place in (b, c):
        made.bring_adapters(place, place.settings, given)
    assert remade == ["c"]
    assert (made._alike(a), made._alike(c)) == ([a.cell.name, b.cell.name], [c.cell.name])


@pytest.mark.parametrize(("wanted", "same"), [("", True), ("none", True), ("nf4", False)])
def test_answers_come_from_the_models_own_form_unless_another_is_asked_for(wanted: str, same: bool) -> None:
    made = runner()
    made._machines = types.SimpleNamespace(engine=lambda q: f"engine {q}", model=lambda q: f"model {q}")  # type: ignore[assignment]
    settings: Any = types.SimpleNamespace(
        sample=types.SimpleNamespace(quantize=wanted), model=types.SimpleNamespace(quantize="none")
    )
    given = context()
    found = made.sampling(settings, given)
    assert (found is given) is same
    if not same:
        assert (found.engine(), found.model(), found.seed) == ("engine nf4", "model nf4", 11)


def test_an_experiment_is_gone_on_with_from_where_its_folder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []

    @contextlib.contextmanager
    def lock() -> Iterator[None]:
        heard.append("locked")
        yield

    experiment: Any = types.SimpleNamespace(
        folder=types.SimpleNamespace(lock=lock, stage_done=lambda name: False, path=Path("/f")), single=True,
        places=list, settings=types.SimpleNamespace(track="[track]"),
    )  # fmt: skip
    monkeypatch.setattr(executor, "create", lambda loaded, resume: heard.append((loaded, resume)) or experiment)
    monkeypatch.setattr(executor, "run_stage", lambda e, name: heard.append(name))
    monkeypatch.setattr(executor.tracking, "record", lambda path, track: heard.append((path, track)) or "")
    monkeypatch.setattr(executor.console, "warn", lambda text: heard.append(f"! {text}"))
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert executor.run("loaded", resume=True) is experiment  # type: ignore[arg-type]
    assert heard == [("loaded", True), "locked", "gate", "report", (Path("/f"), "[track]")]
