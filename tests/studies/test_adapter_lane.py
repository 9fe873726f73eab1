"""What studies of written adapters share: memory given back, marks, trainings that go on, the lane's shell."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import time
import weakref
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from rune.hypernet import side_by_side
from rune.hypernet.loop import Rate, Step
from rune.runs import store

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module("adapter_lane")


def bare_lane(lanes: ModuleType, out: Path, **args: Any) -> Any:
    """A lane without a model: marks and clock alone."""
    lane = object.__new__(lanes.Lane)
    lane.args = Namespace(**{"worker": 0, "seconds": 1e9, "planned": 0.0, "smoke": False, **args})
    lane.recipe, lane.shared, lane.own = lanes.Recipe(seed=1), out, out
    lane.began = lane._mark = time.monotonic()
    lane.seconds, lane.device = {}, "cpu"
    return lane


def test_a_batch_that_did_not_fit_is_gone_before_a_smaller_one_begins(
    lanes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Any]] = []
    asked: list[int] = []

    def train(base: Any, lessons: Any, *rest: Any, **more: Any) -> Any:
        assert not any(ref() is not None for ref in held), "the batch that did not fit is still there"
        asked.append(len(lessons))
        batch = torch.zeros(len(lessons))
        held.append(weakref.ref(batch))
        if len(lessons) > 1:
            raise torch.OutOfMemoryError
        return {"m": lanes.Factors(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))}, [[0.0], [0.0]]

    monkeypatch.setattr(side_by_side, "train", train)
    lane = bare_lane(lanes, tmp_path)
    lane.base, lane.dtype, lane.rest = None, torch.float32, lambda: None
    jobs = [lanes.Job(Namespace(task_id=str(n)), None, ()) for n in range(3)]
    assert set(lane.tune(jobs, 4, "real")) == {"0", "1", "2"} and asked == [3, 2, 1, 1, 1]


def test_what_is_done_is_not_claimed_and_a_failure_says_what_it_was(lanes: ModuleType, tmp_path: Path) -> None:
    lane = bare_lane(lanes, tmp_path)
    names = [lanes.Variant(n, (), 1) for n in ("a b", "c", "d")]

    def part(variant: Any) -> None:
        if variant.name == "c":
            raise RuntimeError("too large")
        if variant.name == "d":
            raise lanes.Unfinished("3 of 9 steps")

    lane.rest = lambda: None
    lanes.in_turn(lane, names, part)
    marks = {p.name: p.read_text() for p in (tmp_path / "done").iterdir()}
    assert marks == {"a-b": "", "c": "c failed: too large"}
    assert not lane.claim("a b") and not lane.claim("c") and not lane.claim("d")  # d is taken up, by this worker
    (tmp_path / "claims" / "d").unlink()
    assert lane.claim("d")


def test_a_training_that_time_cuts_off_goes_on_from_what_is_carried(
    lanes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after a slice, carried with lighter moments, gone on with: the same steps, nearly the same weights."""

    def fresh(*_: Any) -> nn.Module:
        torch.manual_seed(3)
        return nn.Linear(4, 4)

    def step_of(lane: Any, variant: Any, model: nn.Module, *rest: Any) -> Any:
        def take(step: int) -> Step:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            loss = (model(x) - x.flip(-1)).square().mean()
            return Step(loss, {"one": loss}, 8)

        return take

    monkeypatch.setattr(lanes, "fresh", fresh)
    monkeypatch.setattr(lanes, "step_of", step_of)
    monkeypatch.setattr(lanes, "rates", lambda model: [Rate(list(model.parameters()), 1.0)])
    variant = lanes.Variant("one", (), 1)

    def run(out: Path, **args: Any) -> Any:
        lane = bare_lane(lanes, out, **args)
        lane.recipe = lanes.Recipe(seed=1, slice=4)
        lane.base = Namespace(device=torch.device("cpu"))
        store.write_json(out / "pace.json", {"steps": 10, "seconds_a_step": [0.01]})
        return lanes.trained(lane, variant, None, {})

    whole = run(tmp_path / "whole")
    late = lanes.ENDING + 0.06  # more than a slice wants at its beginning, less after one
    left = iter([late, 0.0])
    monkeypatch.setattr(lanes.Lane, "left", lambda self: next(left))
    with pytest.raises(lanes.Unfinished, match="4 of 10"):
        run(tmp_path / "cut", seconds=30.0, planned=60.0)
    monkeypatch.undo()
    carried = tmp_path / "cut" / "one" / "carry.safetensors"
    light, heavy = carried.stat().st_size, (tmp_path / "cut" / "one" / "state.safetensors").stat().st_size
    assert light < heavy and lanes.steps_of(carried) == 4
    (tmp_path / "cut" / "one" / "state.safetensors").unlink()  # another machine has what was carried
    monkeypatch.setattr(lanes, "fresh", fresh)
    monkeypatch.setattr(lanes, "step_of", step_of)
    monkeypatch.setattr(lanes, "rates", lambda model: [Rate(list(model.parameters()), 1.0)])
    again = run(tmp_path / "cut", seconds=30.0, planned=60.0)
    assert [row["step"] for row in lanes.lines(tmp_path / "cut" / "one" / "metrics.jsonl")] == list(range(10))
    assert torch.allclose(whole.weight, again.weight, atol=2e-3) and not torch.equal(fresh().weight, again.weight)
    assert not carried.exists() and (tmp_path / "cut" / "one" / "model.int8.safetensors").exists()


STUDY = """
import argparse, os, pathlib
p = argparse.ArgumentParser()
p.add_argument("do")
for name in ("corpus", "out"):
    p.add_argument("--" + name, type=pathlib.Path)
for name in ("worker", "workers", "model", "memory", "seconds", "planned"):
    p.add_argument("--" + name)
a = p.parse_args()
(a.out / "one").mkdir(parents=True, exist_ok=True)
(a.out / "done").mkdir(exist_ok=True)
went_on = (a.out / "one" / "carry.safetensors").exists()
(a.out / "began.jsonl").open("a").write(f'{{"went_on": {str(went_on).lower()}}}\\n')
(a.out / "done" / "whole").write_text("")
(a.out / "done" / "broken").write_text("it fell")
(a.out / "done" / "teachers-0").write_text("")
(a.out / "one" / "carry.safetensors").write_bytes(os.urandom(16_000_000))
(a.out / "whole").mkdir(exist_ok=True)
(a.out / "whole" / "model.safetensors").write_bytes(b"w")
(a.out / "whole" / "model.int8.safetensors").write_bytes(b"i")
"""


@pytest.mark.check
def test_a_lane_leaves_what_another_machine_goes_on_with(tmp_path: Path) -> None:
    (tmp_path / "tree" / "studies" / "toy").mkdir(parents=True)
    (tmp_path / "tree" / "studies" / "toy" / "toy.py").write_text(STUDY)
    folder = tmp_path / "lane-toy"
    folder.mkdir()
    (tmp_path / "corpus").mkdir()
    subprocess.run(["tar", "cJf", folder / "files.tar.xz", "-C", tmp_path, "corpus"], check=True)
    shutil.copy(STUDIES / "adapter_lane.sh", folder / "start.sh")
    (folder / "lane.env").write_text("SCRIPT=toy/toy.py\nWORKERS=1\nPLANNED=100\n")
    ready = tmp_path / "ready"
    ready.touch()

    def run(name: str, **more: str) -> tuple[Path, Path]:
        places = {"L": str(tmp_path / name), "OUT": str(tmp_path / f"out-{name}"), "STATE": str(tmp_path / "state")}
        env = {**os.environ, **places, "SITE": str(tmp_path), "SITE_READY": str(ready), "READY": str(ready), **more,
               "TREE": str(tmp_path / "tree"), "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "",
               "SECONDS_LEFT": "600"}  # fmt: skip
        subprocess.run(["bash", folder / "start.sh"], env=env, check=True, timeout=60)
        work = Path(places["L"])
        for _ in range(600):
            if (work / "queue.log").exists() and "end" in (work / "queue.log").read_text().split("\n")[-2]:
                break
            time.sleep(0.1)
        pid = int((work / "pid").read_text())
        for _ in range(200):
            if not Path(f"/proc/{pid}").exists():
                break
            time.sleep(0.1)
        return work, Path(places["OUT"])

    work, out = run("first")
    assert sorted(p.name for p in out.iterdir()) == ["toy-state.0", "toy-state.1", "toy.tar.xz"]
    (tmp_path / "state").mkdir()
    for path in out.iterdir():
        path.rename(tmp_path / "state" / path.name)
    work, _ = run("second", CARRIED="3")
    assert {p.name for p in (work / "work" / "done").iterdir()} == {"whole", "broken", "teachers-0"}
    log = (work / "queue.log").read_text()
    assert "goes on, 1 parts done" in log and "states: ./one/carry.safetensors" in log  # what failed is tried again
    began = [row["went_on"] for _, row in store.read_lines(work / "work" / "began.jsonl")]
    assert began == [False, True]  # the records came along, and the state of what was not ended


def test_adapters_are_written_when_they_are_worn_few_texts_at_once_and_not_kept(
    lanes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []

    def write(base: Any, model: Any, sets: Any, *, tokens: int) -> Any:
        batches.append([len(one) for one in sets])
        marks = torch.tensor([float(one[0]) for one in sets]).reshape(1, -1, 1, 1)
        return {"m": lanes.Factors(marks, marks)}

    monkeypatch.setattr(lanes.outer_products, "write", write)
    lane = bare_lane(lanes, tmp_path)
    lane.base, lane.encode = None, lambda text: text
    sizes = {"a": 10, "b": 10, "c": 10, "d": 70, "e": 1}
    made = lanes.Written(lane, None, {name: [ord(name)] * size for name, size in sizes.items()}, 64)
    assert list(made) == list(sizes) and not batches
    made.fetch(list(sizes))
    assert batches == [[10, 10], [10], [70], [1]]  # of 24 texts each, or one set
    assert [chr(int(made[name]["m"].down_YNRI)) for name in sizes] == list(sizes) and len(batches) == 4
    made.fetch(["b", "e"])
    assert len(batches) == 4 and len(made._now) == 2
    assert chr(int(made["a"]["m"].down_YNRI)) == "a" and batches[4:] == [[10]]
