"""Folds on several GPUs: each worker sees one, the GPUs take turns, and processors are not shared."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from rune import store
from rune.errors import RuneError
from rune.stages import _crossfit_workers
from rune.stages._crossfit_folder import DONE, Place, place

# Stands in for `python -m rune crossfit FOLDER --jobs N --worker FOLD …`: notes what it was given and is done.
WORKER = """#!{python}
import json, os, sys, time
from pathlib import Path
_, folder = sys.argv[3:5]
at = sys.argv.index("--worker")
time.sleep(0.3)
for name in sys.argv[at + 1 :]:
    seed, fold = name.split("/")
    there = Path(folder) / f"seed-{{seed}}" / f"fold-{{fold}}"
    there.mkdir(parents=True)
    (there / "done.json").write_text(json.dumps(dict(
        gpu=os.environ.get("CUDA_VISIBLE_DEVICES"), cores=sorted(os.sched_getaffinity(0)), pid=os.getpid(),
        jobs=sys.argv[sys.argv.index("--jobs") + 1],
    )))
sys.exit({code})
"""


@pytest.fixture
def folder(tmp_path: Path) -> store.RunDir:
    return store.RunDir.create(tmp_path / "runs", "many", {"x": 1}, extra={}, resume=False)


def worker(path: Path, monkeypatch: pytest.MonkeyPatch, *, code: int = 0) -> None:
    file = path / "python"
    file.write_text(WORKER.format(python=sys.executable, code=code))
    file.chmod(0o755)
    monkeypatch.setattr(_crossfit_workers.sys, "executable", str(file))


def test_gpus_take_turns_and_processors_are_dealt_out(
    folder: store.RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, monkeypatch)
    wanted = [Place(s, f) for s in (0, 1) for f in range(3)]
    cores = sorted(os.sched_getaffinity(0))
    jobs = min(5, max(2, len(cores)))
    _crossfit_workers.run(folder, wanted, jobs, gpus=["4", "GPU-b"], total=6)
    found = {p: json.loads((place(folder, p.seed, p.fold) / DONE).read_text()) for p in wanted}
    for i, one in enumerate(wanted):
        assert found[one]["gpu"] == ["4", "GPU-b"][i % jobs % 2]
        assert int(found[one]["jobs"]) == -(-jobs // 2)  # so many share a GPU's memory
    by_process = {f["pid"]: set(f["cores"]) for f in found.values()}
    assert len(by_process) == jobs
    if len(cores) >= jobs:
        assert sorted(c for some in by_process.values() for c in some) == cores


def test_without_a_gpu_nothing_is_hidden_and_all_share_one_device(
    folder: store.RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    _crossfit_workers.run(folder, [Place(0, 0), Place(0, 1)], 7, gpus=[], total=2)
    found = [json.loads((place(folder, 0, f) / DONE).read_text()) for f in (0, 1)]
    assert [f["gpu"] for f in found] == [None, None] and [f["jobs"] for f in found] == ["2", "2"]


def test_a_worker_that_fails_stops_the_others_and_names_its_log(
    folder: store.RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(tmp_path, monkeypatch, code=3)
    with pytest.raises(RuneError, match=r"a worker ended with 3 .*worker-\d\.log"):
        _crossfit_workers.run(folder, [Place(0, 0), Place(0, 1)], 2, gpus=[], total=2)


def test_the_gpus_of_a_process_are_those_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    assert _crossfit_workers.gpus() == ["2", "GPU-abc"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert _crossfit_workers.gpus() == ["0", "1", "2"]
