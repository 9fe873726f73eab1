"""`rune run` on a Ray cluster of two nodes, each a process: one process's records, also when a node is killed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rune.runs import store
from rune.types import ModelRef, Sample, Trajectory, Treatment, Verdict
from tests.clusters import PATIENCE, Nodes, nodes, until
from tests.pipeline.experiment import settings, write

pytestmark = pytest.mark.slow

CELLS = 4  # two folds of two seeds


def config(root: Path, model: ModelRef) -> Path:
    root.mkdir(exist_ok=True)
    design = {"scored": 0, "tasks": 8, "folds": 2, "seeds": [3, 4]}
    return write(root, settings(root, model, design=design, adapt={"arms": ["vanilla", "lora", "hypernet"]}))


def start(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rune", "run", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], root: Path) -> Path:
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode in (0, 10), said[-3000:]
    (folder,) = (root / "runs").iterdir()
    return folder


def records(folder: Path) -> dict[str, Any]:
    """Everything that a decision rests on, without times and places."""
    found: dict[str, Any] = {}
    for cell in sorted((folder / "cells").iterdir()):
        samples = store.read_jsonl(cell / "samples.jsonl", Sample)
        verdicts = store.read_jsonl(cell / "verdicts.jsonl", Verdict)
        found[cell.name] = {
            "trajectories": store.read_jsonl(cell / "trajectories.jsonl", Trajectory),
            "treatments": store.read_jsonl(cell / "treatments.jsonl", Treatment),  # adapters by content
            "samples": sorted(samples, key=lambda s: (s.condition, s.task_id, s.draw)),
            "verdicts": sorted((v.condition, v.task_id, v.draw, v.outcome, v.error_kind) for v in verdicts),
        }
    decision = json.loads((folder / "decision.json").read_text())
    found["decision"] = {name: decision[name] for name in ("answer", "effect_points", "arms", "contrasts", "reasons")}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef) -> dict[str, Any]:
    """The same study by one process."""
    root = tmp_path_factory.mktemp("alone")
    return records(finish(start(str(config(root, tiny_model))), root))


def test_the_single_process_writes_records_worth_comparing(alone: dict[str, Any]) -> None:
    cells = [value for name, value in alone.items() if name != "decision"]
    assert len(cells) == CELLS
    for cell in cells:
        worn = {t.adapter.adapter_id for t in cell["treatments"] if t.adapter}
        assert len(worn) > 1 and len(cell["samples"]) == len(cell["verdicts"]) == 4 * 3 * 4
        assert len({verdict[3] for verdict in cell["verdicts"]}) > 1  # some pass, some fail


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """Two nodes of one processor: a cell each at a time."""
    with nodes(2) as both:
        yield both


def test_two_nodes_write_one_processs_records(
    cluster: Nodes, alone: dict[str, Any], tmp_path: Path, tiny_model: ModelRef
) -> None:
    process = start(str(config(tmp_path, tiny_model)), "--ray", cluster.address)
    busy: set[int] = set()

    def seen() -> bool:
        busy.update(number for number in (0, 1) if workers(cluster, number))
        return len(busy) == 2 or process.poll() is not None

    until(seen, "both nodes to work")
    assert busy == {0, 1}
    assert records(finish(process, tmp_path)) == alone


def test_a_worker_whose_ray_process_is_killed_leaves_nobody_behind_and_its_cells_go_on(
    cluster: Nodes, alone: dict[str, Any], tmp_path: Path, tiny_model: ModelRef
) -> None:
    """As by the kernel when memory runs out: Ray gives the cells to another process at once."""
    process = start(str(config(tmp_path, tiny_model)), "--ray", cluster.address)
    worker, cells = caught(cluster, 0, tmp_path, process)
    parent = worker.parent()
    assert parent is not None
    parent.kill()
    psutil.wait_procs([worker], timeout=PATIENCE)
    assert not worker.is_running()
    found = records(finish(process, tmp_path))
    assert found == alone and cells <= set(found)


def test_a_node_killed_in_the_middle_costs_time_only(
    cluster: Nodes, alone: dict[str, Any], tmp_path: Path, tiny_model: ModelRef
) -> None:
    """The last of this file: its cluster has one node less from here on."""
    process = start(str(config(tmp_path, tiny_model)), "--ray", cluster.address)
    worker, cells = caught(cluster, 1, tmp_path, process)
    unfinished = [cell for cell in cells if not scored(tmp_path, cell)]
    assert unfinished
    cluster.kill(1)
    assert not worker.is_running()
    found = records(finish(process, tmp_path))
    assert found == alone
    assert all(scored(tmp_path, cell) for cell in unfinished)


def workers(cluster: Nodes, node: int) -> list[psutil.Process]:
    """The processes `rune run … --worker CELL…` on a node."""
    found = []
    for process in cluster.processes(node):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if "--worker" in process.cmdline():
                found.append(process)
    return found


def caught(cluster: Nodes, node: int, root: Path, run: subprocess.Popen[str]) -> tuple[psutil.Process, set[str]]:
    """A worker of the node, held in the middle of a cell that has begun to train, and all cells that it was given."""
    held: list[tuple[psutil.Process, set[str]]] = []

    def found() -> bool:
        for process in workers(cluster, node):
            process.suspend()
            line = process.cmdline()
            cells = set(line[line.index("--worker") + 1 :])
            if any(stage(root, cell, "train") and not scored(root, cell) for cell in cells):
                held.append((process, cells))
                return True
            process.resume()
        assert run.poll() is None, "the run ended before it could be struck"
        return False

    until(found, "a worker in the middle of a cell")
    return held[0]


def stage(root: Path, cell: str, name: str) -> str:
    (folder,) = (root / "runs").iterdir()
    manifest = json.loads((folder / "cells" / cell / "manifest.json").read_text())
    return str(manifest["stages"].get(name, {}).get("status", ""))


def scored(root: Path, cell: str) -> bool:
    return stage(root, cell, "score") == "done"
