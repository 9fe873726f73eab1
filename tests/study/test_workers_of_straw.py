"""How cells are dealt out and taken over: processes, Ray and the parent's end are straw, folders are real."""

from __future__ import annotations

import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from rune import console
from rune.errors import EngineError, RuneError
from rune.runs import integrity, store
from rune.runs.store import RunDir
from rune.study import takeover, workers
from rune.study.cells import Cell


def place(name: str, done: bool = False) -> Any:
    return types.SimpleNamespace(
        cell=types.SimpleNamespace(name=name), folder=types.SimpleNamespace(stage_done=lambda stage: done)
    )


class Experiment:
    def __init__(self, path: Path, names: str = "abcd") -> None:
        self.folder = RunDir(path)
        self.settings = "[settings]"
        self.cells = [place(n) for n in names]

    def places(self) -> list[Any]:
        return self.cells


# --------------------------------------------------------------------------- who is asked


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("ray", [None, "", "ray://there"])
def test_cells_go_to_plain_processes_or_to_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, ray: str | None
) -> None:
    heard: list[Any] = []
    made = Experiment(tmp_path)
    monkeypatch.setattr(workers.checks, "device", lambda settings: device if settings == "[settings]" else "?")
    monkeypatch.setattr(workers, "gpus", lambda: ["4", "7"])
    monkeypatch.setattr(workers, "_local", lambda *given: heard.append(("local", *given[:-1])))
    monkeypatch.setattr(workers, "_on_ray", lambda *given: heard.append(("ray", *given[:-1])))
    a, b, c, _ = made.cells
    workers.run(made, [[a, c], [b]], 3, ray=ray)  # type: ignore[arg-type]
    parts = [["a", "c"], ["b"]]
    if ray is None:
        assert heard == [("local", made, parts, 3, ["4", "7"] if device == "cuda" else [])]
    else:
        assert heard == [("ray", made, parts, 3, ray, device == "cuda")]


def test_the_bar_begins_with_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Bar:
        def __init__(self, *given: Any, **more: Any) -> None:
            asked.append((given, more))

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(console, "Progress", Bar)
    made = Experiment(tmp_path)
    with workers._progress(made, made.cells[1:]):  # type: ignore[arg-type]
        pass
    assert asked == [(("cells", 4), {"unit": "cell", "initial": 1})]


def test_a_worker_is_told_its_folder_its_cells_and_who_started_it(tmp_path: Path) -> None:
    assert workers.command(tmp_path, ["a", "b"], 3) == [
        sys.executable, "-m", "rune", "run", str(tmp_path), "--together", "3", "--parent", str(os.getpid()), "--worker",
        "a", "b",
    ]  # fmt: skip


# --------------------------------------------------------------------------- plain processes


class Process:
    """One that runs for some looks and ends with a code."""

    log: list[Any]
    plan: dict[str, tuple[int, int, str]]  # first cell → looks, code, what it says

    def __init__(self, command: list[str], *, env: dict[str, str], stdout: Any, stderr: Any, stdin: Any) -> None:
        self.cells = command[command.index("--worker") + 1 :]
        self.looks, self.code, words = Process.plan.get(self.cells[0], (1, 0, ""))
        stdout.write(words.encode())
        stdout.flush()
        self.pid, self.returncode = 1000 + len(Process.log), None
        together = int(command[command.index("--together") + 1])
        Process.log.append((self.cells, env.get("CUDA_VISIBLE_DEVICES"), together, stdout is stderr))
        self.ends: list[str] = []

    def poll(self) -> int | None:
        self.looks -= 1
        if self.looks < 0:
            self.returncode = self.code
        return self.returncode

    def terminate(self) -> None:
        Process.log.append(f"{self.cells[0]} terminated")

    def wait(self) -> None:
        Process.log.append(f"{self.cells[0]} awaited")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    Process.log, Process.plan = [], {}
    monkeypatch.setattr(workers.subprocess, "Popen", Process)
    monkeypatch.setattr(workers, "time", types.SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {5, 3, 9, 7})
    monkeypatch.setattr(
        workers.os, "sched_setaffinity", lambda pid, cores: Process.log.append((pid - 1000, list(cores)))
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Process.log


class Bar:
    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def look(self) -> None:
        self.log.append("look")


PARTS = [["a", "b"], ["c"], ["d"]]


@pytest.mark.parametrize(
    ("jobs", "gpus", "dealt"),
    [
        (2, [], [(["a", "b", "d"], None, 2), (["c"], None, 2)]),
        (9, [], [(["a", "b"], None, 3), (["c"], None, 3), (["d"], None, 3)]),
        (1, ["6"], [(["a", "b", "c", "d"], "6", 1)]),
        (3, ["6", "8"], [(["a", "b"], "6", 2), (["c"], "8", 2), (["d"], "6", 2)]),
        (2, ["6", "8"], [(["a", "b", "d"], "6", 1), (["c"], "8", 1)]),
    ],
)
def test_parts_take_turns_over_jobs_and_jobs_over_gpus(
    tmp_path: Path, log: list[Any], jobs: int, gpus: list[str], dealt: list[Any]
) -> None:
    workers._local(Experiment(tmp_path), PARTS, jobs, gpus, Bar(log))  # type: ignore[arg-type]
    assert [one[:3] for one in log if isinstance(one, tuple) and len(one) == 4] == dealt
    cores = [3, 5, 7, 9]
    assert [one[1] for one in log if isinstance(one, tuple) and len(one) == 2] == [
        cores[i :: len(dealt)] for i in range(len(dealt))
    ]
    assert {p.name for p in tmp_path.iterdir()} == {f"worker-{i}.log" for i in range(len(dealt))}
    assert log[-2:] == ["look", "look"] and not any("terminated" in str(one) for one in log)


def test_where_processors_are_fewer_than_jobs_none_is_dealt_out(
    tmp_path: Path, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda pid: {0, 1})
    workers._local(Experiment(tmp_path), PARTS, 3, [], Bar(log))  # type: ignore[arg-type]
    assert not [one for one in log if isinstance(one, tuple) and len(one) == 2]


def test_one_that_fails_ends_those_that_still_run_and_says_its_last_line(tmp_path: Path, log: list[Any]) -> None:
    Process.plan = {"a": (9, 0, ""), "c": (1, 3, "before\nlast words\n"), "d": (0, 0, "")}
    (tmp_path / "worker-1.log").write_text("of an earlier try\n")
    with pytest.raises(RuneError, match=r"a worker ended with 3 \(last words\); see .*worker-1\.log"):
        workers._local(Experiment(tmp_path), PARTS, 3, [], Bar(log))  # type: ignore[arg-type]
    assert log[-2:] == ["a terminated", "a awaited"]
    assert (tmp_path / "worker-1.log").read_text() == "of an earlier try\nbefore\nlast words\n"
    assert not any("d terminated" in str(one) for one in log)


# --------------------------------------------------------------------------- a cluster


class Ray:
    """A cluster whose tasks end in turn with these words."""

    class exceptions:
        class RayError(Exception): ...

    def __init__(self, log: list[Any], says: dict[str, str], has: dict[str, float]) -> None:
        self.log, self.says, self.has = log, says, has

    def cluster_resources(self) -> dict[str, float]:
        return self.has

    def remote(self, **needs: Any) -> Any:
        self.log.append(needs)

        def declare(function: Any) -> Any:
            assert function is workers._in_ray
            return types.SimpleNamespace(remote=lambda folder, names, here: (folder, tuple(names), here))

        return declare

    def wait(self, waiting: list[Any], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        assert num_returns == 1 and timeout > 0
        return waiting[:1], waiting[1:]

    def get(self, one: Any) -> str:
        self.log.append(one)
        if (said := self.says.get(one[1][0], "")) == "lost":
            raise Ray.exceptions.RayError("node gone\nand more")
        return said

    def shutdown(self) -> None:
        self.log.append("shut down")


def cluster(monkeypatch: pytest.MonkeyPatch, log: list[Any], ours: bool = True, **how: Any) -> None:
    given = {"says": {}, "has": {"CPU": 4.0, "GPU": 2.0}, **how}
    monkeypatch.setitem(sys.modules, "ray", Ray(log, **given))  # type: ignore[arg-type]
    monkeypatch.setattr(workers, "gpus", lambda: ["0", "1", "2"])
    monkeypatch.setattr(workers.console, "warn", lambda text: log.append(f"! {text}"))

    def join(address: str, *, cpus: int, gpus: int) -> bool:
        log.append((address, cpus, gpus))
        return ours

    monkeypatch.setattr(workers.cluster, "join", join)


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("ours", [True, False])
def test_each_group_of_cells_is_a_task_with_a_gpu_if_it_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, ours: bool
) -> None:
    log: list[Any] = []
    cluster(monkeypatch, log, ours=ours)
    workers._on_ray(Experiment(tmp_path), PARTS, 0, "there", on_gpu, Bar(log))  # type: ignore[arg-type]
    asked = [(str(tmp_path.resolve()), tuple(names), str(Path.cwd())) for names in PARTS]
    assert log == [
        ("there", 1, 3 if on_gpu else 0),
        {"num_cpus": 1, "num_gpus": 1 if on_gpu else 0, "max_retries": workers.RETRIES},
        *(one for task in asked for one in ("look", task)), "look",
        *(["shut down"] if ours else []),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("has", "on_gpu", "lacks"),
    [({"CPU": 1.0}, True, "GPU"), ({"GPU": 1.0}, True, "CPU"), ({"CPU": 1.0}, False, ""), ({"CPU": 0.0}, False, "CPU")],
)
def test_what_no_node_has_is_said_before_it_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: dict[str, float], on_gpu: bool, lacks: str
) -> None:
    log: list[Any] = []
    cluster(monkeypatch, log, has=has)
    workers._on_ray(Experiment(tmp_path), [], 2, "", on_gpu, Bar(log))  # type: ignore[arg-type]
    said = [one for one in log if isinstance(one, str) and one.startswith("!")]
    assert said == ([f"! no node of the Ray cluster has a {lacks}; the run waits until one joins"] if lacks else [])


def test_a_task_that_fails_ends_it_and_a_cluster_that_is_lost_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[Any] = []
    cluster(monkeypatch, log, says={"c": "a worker of cells c ended with 3"})
    with pytest.raises(RuneError, match=r"^a worker of cells c ended with 3$"):
        workers._on_ray(Experiment(tmp_path), PARTS, 2, "", False, Bar(log))  # type: ignore[arg-type]
    asked = [one[1] for one in log if isinstance(one, tuple) and one[0] == str(tmp_path.resolve())]
    assert asked == [("a", "b"), ("c",)] and log[-1] == "shut down"
    log.clear()
    cluster(monkeypatch, log, says={"a": "lost"})
    with pytest.raises(EngineError, match=rf"lost a worker {workers.RETRIES + 1} times.*rune run .* --resume"):
        workers._on_ray(Experiment(tmp_path), PARTS, 2, "", False, Bar(log))  # type: ignore[arg-type]
    assert log[-1] == "shut down"


def test_a_worker_dies_with_its_parent_and_at_once_if_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(workers.seccomp, "die_with_parent", lambda: heard.append("with parent"))
    monkeypatch.setattr(workers.os, "kill", lambda pid, number: heard.append((pid, number)))
    monkeypatch.setattr(workers.os, "getppid", lambda: 77)
    monkeypatch.setattr(workers.sys, "platform", "linux")
    workers.end_with(77)
    assert heard == ["with parent"]
    workers.end_with(78)
    assert heard == ["with parent", "with parent", (os.getpid(), signal.SIGKILL)]
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    workers.end_with(78)
    assert len(heard) == 3


# --------------------------------------------------------------------------- taking a stage over


def cell(path: Path, name: str, **manifest: Any) -> Any:
    folder = RunDir(path / name)
    folder.path.mkdir(parents=True)
    store.write_json(folder.manifest_path, {"stages": {}, **manifest})
    return types.SimpleNamespace(cell=Cell(name, 0, -1), folder=folder)


@pytest.mark.parametrize("name", takeover.OUTPUTS)
def test_a_stage_that_is_taken_over_brings_its_files_and_says_where_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    sealed: list[Any] = []
    monkeypatch.setattr(takeover.integrity, "seal", lambda folder, stage: sealed.append((folder.path.name, stage)))
    by = {"rune": "that"}
    stages = {name: {"status": "done", "by": by}}
    source = cell(tmp_path, "a", stages=stages, model={"name": "m"}, device="a card", dtype="float32", other="no")
    target = cell(tmp_path, "b")
    for file in ("trajectories.jsonl", "corpus.json", "treatments.jsonl", "samples.jsonl", "verdicts.jsonl", "more"):
        (source.folder / file).write_text(f"of a: {file}")
    inner = source.folder / "checkpoints" / "lora"
    inner.mkdir(parents=True)
    (inner / "model.safetensors").write_bytes(b"weights")
    (inner / "settings.json").write_text("{}")
    (target.folder / "checkpoints" / "lora").mkdir(parents=True)
    (target.folder / "checkpoints" / "lora" / "model.safetensors").write_bytes(b"of a try that was stopped")
    takeover.adopt(source, target, name)
    manifest = target.folder.manifest()
    entry = manifest["stages"][name]
    assert (entry["status"], entry["by"], entry["same_as"]) == ("done", by, source.cell.name)
    assert {k: manifest.get(k) for k in ("model", "device", "dtype", "other")} == {
        "model": {"name": "m"}, "device": "a card", "dtype": "float32", "other": None,
    }  # fmt: skip
    assert sealed == [("b", name)]
    brought = {p.name for p in target.folder.path.iterdir()} - {"manifest.json", "checkpoints"}
    wanted = [f for f in takeover.OUTPUTS[name] if (source.folder / f).is_file()]
    assert brought == set(wanted)
    assert all((target.folder / f).read_text() == f"of a: {f}" for f in wanted)
    there = target.folder / "checkpoints" / "lora"
    if name == "train":
        assert (there / "model.safetensors").samefile(inner / "model.safetensors")  # never changed: a second name
        assert (there / "settings.json").read_text() == "{}"
        assert not (there / "settings.json").samefile(inner / "settings.json")
    else:
        assert (there / "model.safetensors").read_bytes() == b"of a try that was stopped"
        assert not (there / "settings.json").exists()


def test_a_stage_of_an_older_record_is_taken_over_without_a_name(tmp_path: Path) -> None:
    source = cell(tmp_path, "a", stages={"sample": {"status": "done"}})
    target = cell(tmp_path, "b", device="its own")
    (source.folder / "samples.jsonl").write_text("")
    takeover.adopt(source, target, "sample")
    manifest = target.folder.manifest()
    assert manifest["stages"]["sample"]["by"] == {} and manifest["device"] == "its own" and "model" not in manifest
    assert "samples.jsonl" in store.read_json(target.folder / integrity.SEALS)


def test_weights_are_copied_where_a_file_can_have_one_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: str, target: str) -> None:
        raise OSError("no such thing here")

    monkeypatch.setattr(takeover.os, "link", link)
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    takeover._link(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))
    assert (tmp_path / "b.safetensors").read_bytes() == b"weights"
    assert not (tmp_path / "b.safetensors").samefile(tmp_path / "a.safetensors")
