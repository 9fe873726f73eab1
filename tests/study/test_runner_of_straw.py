"""Who does which stage of which cell, told by what is called: no model, no engine, no folder."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rune.errors import ConfigError, ModelError
from rune.study import executor
from rune.study.cells import Cell

STAGES = executor.IN_CELLS


class Place:
    """A cell whose stages are a set of names."""

    def __init__(self, name: str, log: list[str], done: set[str], alike: dict[str, str], **settings: Any) -> None:
        self.cell = Cell(name, 0, -1)
        self.done, self.alike, self.log = set(done), alike, log
        self.settings = types.SimpleNamespace(**settings)
        self.folder: Any = types.SimpleNamespace(stage_done=lambda stage: stage in self.done, lock=self._lock)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.log.append(f"lock {self.cell.variant}")
        yield


class Machines:
    def __init__(self, log: list[str]) -> None:
        self.log, self.name = log, ""

    def close_session(self) -> None:
        self.log.append("session closed")

    def make_room(self) -> None:
        self.log.append("room")

    def close(self) -> None:
        self.log.append("machines closed")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []

    def stage(experiment: Any, name: str, place: Any = None, runner: Any = None) -> None:
        said.append(f"{name} {place.cell.variant if place else 'all'}")
        if place:
            place.done.add(name)

    def adopt(twin: Any, place: Any, name: str) -> None:
        said.append(f"{name} {place.cell.variant} as {twin.cell.variant}")
        place.done.add(name)

    monkeypatch.setattr(executor, "run_stage", stage)
    monkeypatch.setattr(executor, "adopt", adopt)
    monkeypatch.setattr(
        executor,
        "key",
        lambda settings, cell, name: settings.by_name[cell.variant].alike.get(name, f"{cell.variant} {name}"),
    )
    monkeypatch.setattr(executor.console, "note", lambda text: said.append(f"# {text.partition('.seed')[0]}"))
    return said


def straw(log: list[str], single: bool = False, **cells: dict[str, Any]) -> tuple[Any, list[Any]]:
    """A runner over such cells: name → done (stages), alike (stage → key)."""
    by_name: dict[str, Place] = {}
    for name, how in cells.items():
        by_name[name] = Place(name, log, how.get("done", set()), how.get("alike", {}), by_name=by_name)
    places = list(by_name.values())
    runner = executor.Runner.__new__(executor.Runner)
    runner._experiment = types.SimpleNamespace(single=single, places=lambda: places)  # type: ignore[assignment]
    runner._machines, runner._stores, runner._keys, runner._checked = Machines(log), {}, {}, set()  # type: ignore[assignment]
    runner._together, runner._folders = 1, None  # type: ignore[assignment]
    return runner, places


def test_a_cell_goes_through_its_stages_and_what_is_done_is_kept(log: list[str]) -> None:
    runner, places = straw(log, single=True, a={"done": {"collect"}})
    runner.run(places)
    assert log == [
        "# collect: done before, kept", "train a", "adapt a", "session closed", "sample a", "score a", "room",
    ]  # fmt: skip


def test_a_stage_that_another_cell_has_done_is_taken_over(log: list[str]) -> None:
    same = {"collect": "c", "train": "t", "adapt": "x"}
    runner, places = straw(log, a={"alike": same}, b={"alike": {**same, "adapt": "y"}})
    runner.run(places)
    assert log == [
        "lock a", "# cell a", *(f"{name} a" for name in STAGES),
        "lock b", "# cell b", "collect b as a", "train b as a", "adapt b", "session closed", "sample b", "score b",
        "room",
    ]  # fmt: skip


def test_cells_of_another_training_come_after_and_adapters_go_between(log: list[str]) -> None:
    runner, places = straw(log, a={"alike": {"train": "1"}}, b={"alike": {"train": "2"}}, c={"alike": {"train": "1"}})
    assert [[p.cell.variant for p in group] for group in executor.groups(places)] == [["a", "c"], ["b"]]
    kept = types.SimpleNamespace(close=lambda: log.append("adapters closed"))
    runner._stores["a"] = kept
    runner.run(places)
    assert [line for line in log if line.split()[0] in ("lock", "room", "session", "adapters")] == [
        "lock a", "lock c", "adapters closed", "room", "lock b", "session closed", "room",
    ]  # fmt: skip
    assert runner._stores == {}


def test_attempts_are_gathered_once_for_cells_that_loop_alike(log: list[str]) -> None:
    runner, _ = straw(log, a={"alike": {"collect": "c"}}, b={"alike": {"collect": "c"}}, c={"done": {"collect"}}, d={})
    runner.gather()
    assert log == ["collect a", "collect b as a", "collect d"]


def test_no_cell_is_its_own_twin_and_none_that_has_not_done_it(log: list[str]) -> None:
    runner, (a, b, c) = straw(log, a={"alike": {"train": "t"}}, b={"alike": {"train": "t"}}, c={"done": {"train"}})
    assert runner._twin(a, "train") is None
    b.done.add("train")
    assert runner._twin(a, "train") is b and runner._twin(b, "train") is None and runner._twin(c, "train") is None
    a.done.add("train")
    assert runner._twin(b, "train") is a


def test_what_is_left_is_what_was_not_scored(log: list[str]) -> None:
    _, places = straw(log, a={"done": {"score"}}, b={"done": {"sample"}}, c={})
    experiment: Any = types.SimpleNamespace(places=lambda: places)
    assert [p.cell.variant for p in executor.pending(experiment)] == ["b", "c"]


@pytest.mark.parametrize(
    ("jobs", "ray", "single", "scored", "by_workers"),
    [
        (2, None, False, False, True),
        (1, "", False, False, True),
        (1, "ray://x", False, False, True),
        (1, None, False, False, False),
        (2, None, True, False, False),
        (1, "", True, False, False),
        (2, "", False, True, False),
    ],
)
def test_several_processes_share_the_cells_of_an_experiment_that_has_several_left(
    log: list[str], monkeypatch: pytest.MonkeyPatch, jobs: int, ray: str | None, single: bool, scored: bool,
    by_workers: bool,
) -> None:  # fmt: skip
    done = {"score"} if scored else set()
    made, _ = straw(log, single=single, a={"done": done}, b={"done": done})

    class Runner:
        def __init__(self, experiment: Any) -> None:
            pass

        def gather(self) -> None:
            log.append("gather")

        def run(self, wanted: list[Any]) -> None:
            log.append(f"run {len(wanted)}")

        def close(self) -> None:
            log.append("close")

    experiment: Any = made._experiment
    experiment.folder = types.SimpleNamespace(
        lock=contextlib.nullcontext, stage_done=lambda name: name == "gate", path=Path("/f")
    )
    experiment.settings = types.SimpleNamespace(track="t")
    monkeypatch.setattr(executor, "Runner", Runner)
    monkeypatch.setattr(
        executor.workers, "run", lambda e, groups, jobs, ray: log.append(f"workers {len(groups)} {jobs} {ray}")
    )
    monkeypatch.setattr(executor.tracking, "record", lambda path, track: "not tracked")
    monkeypatch.setattr(executor.console, "warn", lambda text: log.append(f"! {text}"))
    assert executor.go_on(experiment, jobs=jobs, ray=ray) is experiment
    cells = ["gather", "close", f"workers 2 {jobs} {ray}"] if by_workers else [f"run {0 if scored else 2}", "close"]
    assert log == [*cells, "# gate: done before, kept", "report all", "! not tracked"]


def test_of_several_processes_only_training_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    assert executor.alone_or_training("run") == executor.alone_or_training("train") == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert executor.alone_or_training("sample") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert executor.alone_or_training("train") == 1
    with pytest.raises(ConfigError, match="start `rune sample` without them"):
        executor.alone_or_training("sample")


def test_one_stage_is_of_every_cell_or_over_all(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made, places = straw(log, a={"done": {"sample"}}, b={})
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    straws: Any = types.SimpleNamespace(stage=made.stage, close=lambda: log.append("close"))
    monkeypatch.setattr(executor, "Runner", lambda experiment: straws)
    experiment: Any = types.SimpleNamespace(
        places=lambda: places, folder=types.SimpleNamespace(lock=contextlib.nullcontext)
    )
    executor.run_one(experiment, "sample")
    executor.run_one(experiment, "gate")
    assert log == ["sample a", "sample b", "close", "gate all"]
    monkeypatch.setattr(executor, "_train_along", lambda experiment: log.append("along"))
    monkeypatch.setenv("RANK", "1")
    executor.run_one(experiment, "train")
    assert log[-1] == "along"


def test_machines_serve_cells_of_the_same_model_engine_and_scorer(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, _ = straw(log, a={})
    made: list[tuple[Any, ...]] = []

    def machines(settings: Any, name: str, *, together: int, adapters: Any) -> Any:
        made.append((settings.model, together))
        return types.SimpleNamespace(
            name=name, context=lambda seed: (settings.model, seed), close=lambda: log.append("old closed")
        )

    monkeypatch.setattr(executor, "Machines", machines)
    runner._machines, runner._together = None, 3

    def settings(model: str) -> Any:
        return types.SimpleNamespace(model=model, engine="e", score="s")

    runner._stores["x"] = object()
    assert runner.context(settings("m"), Cell("a", 7, -1)) == ("m", 7) and runner._stores == {}
    runner._stores["x"] = object()
    assert runner.context(settings("m"), Cell("b", 8, -1)) == ("m", 8)
    assert made == [("m", 3)] and log == [] and "x" in runner._stores
    assert runner.context(settings("n"), Cell("b", 8, -1)) == ("n", 8)
    assert len(made) == 2 and log == ["old closed"] and runner._stores == {}
    runner.close()
    assert log == ["old closed", "old closed"] and runner._machines is None
    runner.close()


def test_the_scorer_is_checked_once_for_the_same_tasks(log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = straw(log, a={})
    tasks = {"/a": ["T/1", "T/2"], "/b": ["T/2", "T/1"], "/c": ["T/1"]}
    monkeypatch.setattr(
        executor.store,
        "read_jsonl",
        lambda path, kind: [types.SimpleNamespace(task_id=t) for t in tasks[str(path.parent)]],
    )
    monkeypatch.setattr(
        executor.score, "self_check", lambda sandbox, problems: log.append(f"{sandbox} {len(problems)}")
    )
    context = types.SimpleNamespace(sandbox=lambda: "box")
    for folder in ("/a", "/b", "/c", "/a"):
        runner.check_scorer(Path(folder), context)
    assert log == ["box 2", "box 1"]


def test_a_run_goes_on_with_the_model_that_it_began_with() -> None:
    def folder(manifest: dict[str, Any]) -> Any:
        return types.SimpleNamespace(path=Path("/run"), manifest=lambda: manifest)

    context: Any = types.SimpleNamespace(model=lambda: types.SimpleNamespace(digest="a" * 64))
    executor._same_model(folder({}), context)
    executor._same_model(folder({"model": {"name": "m", "sha256": "a" * 64}}), context)
    with pytest.raises(ModelError, match=r"/run: begun with m \(sha256 b{12}…\), but that is now a{12}…;"):
        executor._same_model(folder({"model": {"name": "m", "sha256": "b" * 64}}), context)


def test_a_process_has_a_device_to_itself_unless_it_is_told_otherwise(log: list[str]) -> None:
    made, _ = straw(log, a={})
    made._experiment.places = list
    assert executor.Runner(made._experiment)._together == 1
    assert executor.Runner(made._experiment, together=3)._together == 3


def test_unless_it_is_told_otherwise_one_process_does_all_cells(
    log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, places = straw(log, a={}, b={})
    straws: Any = types.SimpleNamespace(run=lambda wanted: log.append(f"run {len(wanted)}"), close=lambda: None)
    monkeypatch.setattr(executor, "Runner", lambda experiment: straws)
    monkeypatch.setattr(executor.workers, "run", lambda *_, **__: log.append("workers"))
    monkeypatch.setattr(executor.tracking, "record", lambda path, track: "")
    monkeypatch.setattr(executor, "create", lambda loaded, resume: experiment)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    experiment: Any = types.SimpleNamespace(
        single=False, places=lambda: places, settings=types.SimpleNamespace(track="t"),
        folder=types.SimpleNamespace(lock=contextlib.nullcontext, stage_done=lambda name: True, path=Path("/f")),
    )  # fmt: skip
    executor.run("loaded", resume=False)  # type: ignore[arg-type]
    executor.go_on(experiment)
    assert [line for line in log if line[0] != "#"] == ["run 2", "run 2"] and made._together == 1
