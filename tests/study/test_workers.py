"""Cells on several GPUs: each worker sees one, the GPUs take turns, and processors are not shared."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from rune.errors import RuneError
from rune.study import config, creation, executor, folders, workers
from rune.types import ModelRef
from tests.pipeline.experiment import settings, write

# Stands in for `python -m rune run FOLDER --together N --worker CELL …`: notes what it was given and is done.
WORKER = """#!{python}
import json, os, sys, time
from pathlib import Path
folder = sys.argv[4]
time.sleep(0.3)
for name in sys.argv[sys.argv.index("--worker") + 1 :]:
    place = Path(folder) / "cells" / name / "manifest.json"
    manifest = json.loads(place.read_text())
    manifest["stages"]["score"] = dict(status="done", given=dict(
        gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), cores=sorted(os.sched_getaffinity(0)), pid=os.getpid(),
        together=sys.argv[sys.argv.index("--together") + 1],
    ))
    place.with_suffix(".new").write_text(json.dumps(manifest))
    place.with_suffix(".new").rename(place)
sys.exit({code})
"""


@pytest.fixture
def experiment(tmp_path: Path, tiny_model: ModelRef) -> folders.Experiment:
    """Six cells, made and promised."""
    raw = settings(tmp_path, tiny_model, design={"scored": 0, "tasks": 9, "folds": 3, "seeds": [0, 1]})
    return creation.create(config.load(write(tmp_path, raw)), resume=False)


def worker(path: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0) -> None:
    file = path / "python"
    file.write_text(WORKER.format(python=sys.executable, code=code))
    file.chmod(0o755)
    monkeypatch.setattr(workers.sys, "executable", str(file))


def deal(experiment: folders.Experiment, jobs: int, gpus: Sequence[str]) -> list[dict[str, Any]]:
    """What each cell's worker was given, in the order of the cells."""
    wanted = executor.pending(experiment)
    parts = [[p.cell.name for p in group] for group in executor.groups(wanted)]
    with workers._progress(experiment, wanted) as bar:
        workers._local(experiment, parts, jobs, gpus, bar)
    return [dict(p.folder.manifest()["stages"]["score"]["given"]) for p in experiment.places()]


def test_gpus_take_turns_and_processors_are_dealt_out(
    experiment: folders.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, monkeypatch)
    cores = sorted(os.sched_getaffinity(0))
    jobs = min(5, max(2, len(cores)))
    found = deal(experiment, jobs, ["4", "GPU-b"])
    for i, one in enumerate(found):
        assert one["gpu"] == ["4", "GPU-b"][i % jobs % 2]
        assert int(one["together"]) == -(-jobs // 2)  # so many share a GPU's memory
    by_process = {one["pid"]: set(one["cores"]) for one in found}
    assert len(by_process) == jobs
    if len(cores) >= jobs:
        assert sorted(c for some in by_process.values() for c in some) == cores


def test_without_a_gpu_nothing_is_hidden_and_all_share_one_device(
    experiment: folders.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = deal(experiment, 17, [])
    assert {one["gpu"] for one in found} == {None} and {one["together"] for one in found} == {"6"}


def test_cells_that_share_a_training_go_to_one_worker(tmp_path: Path, tiny_model: ModelRef) -> None:
    raw = settings(tmp_path, tiny_model, design={"scored": 0, "tasks": 8, "folds": 2, "temperatures": [0.8, 0.2]})
    experiment = creation.create(config.load(write(tmp_path, raw)), resume=False)
    found = executor.groups(experiment.places())
    assert [[(p.cell.fold, p.cell.variant) for p in group] for group in found] == [
        [(0, "temperature-0.8"), (0, "temperature-0.2")],
        [(1, "temperature-0.8"), (1, "temperature-0.2")],
    ]


def test_a_worker_that_fails_stops_the_others_and_names_its_log(
    experiment: folders.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, monkeypatch, code=3)
    with pytest.raises(RuneError, match=r"a worker ended with 3 .*worker-\d\.log"):
        deal(experiment, 2, [])


def test_the_gpus_of_a_process_are_those_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    assert workers.gpus() == ["2", "GPU-abc"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert workers.gpus() == ["0", "1", "2"]


@pytest.mark.check
def test_workers_end_with_the_run_that_started_them_which_can_then_go_on(tmp_path: Path, tiny_model: ModelRef) -> None:
    """However it ends: one that lived on would hold its cell's lock, and work against whoever goes on."""
    raw = settings(tmp_path, tiny_model, design={"scored": 0, "tasks": 8, "folds": 2})
    command = [sys.executable, "-m", "rune", "run", str(write(tmp_path, raw)), "--jobs", "2"]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parent, held = psutil.Process(run.pid), []
    ends = time.monotonic() + 240  # seconds; only a hang reaches it
    while len(held) < 2:  # one of each job, stopped as soon as it is seen
        assert run.poll() is None and time.monotonic() < ends
        time.sleep(0.01)
        for child in parent.children():
            with contextlib.suppress(psutil.Error):
                if "--worker" in child.cmdline() and child not in held and trains(child):
                    child.suspend()
                    held.append(child)
    run.kill()
    run.wait()
    gone, alive = psutil.wait_procs(held, timeout=30)
    for process in alive:
        process.kill()
    assert len(gone) == 2 and not alive
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 10), done.stderr[-2000:]


def trains(worker: psutil.Process) -> bool:
    """It has begun one of its cells."""
    line = worker.cmdline()
    cells = [Path(line[line.index("run") + 1]) / "cells" / name for name in line[line.index("--worker") + 1 :]]
    return any("train" in json.loads((cell / "manifest.json").read_text())["stages"] for cell in cells)


@pytest.mark.check
def test_a_ray_cluster_does_the_cells(tmp_path: Path, tiny_model: ModelRef) -> None:
    """In a process of its own: this one may hold the cluster of another test, which loses its machines on purpose."""
    pytest.importorskip("ray")
    raw = settings(tmp_path, tiny_model, design={"scored": 0, "tasks": 8, "folds": 2})
    command = [sys.executable, "-m", "rune", "run", str(write(tmp_path, raw)), "--ray", "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 10), done.stderr[-2000:]
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "result.json").read_text())["folds"] == 2
