"""Interrupt every stage for real, with SIGINT and SIGKILL, resume, and get the same decision."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rune.runs import store
from rune.types import ModelRef, Sample, Verdict
from tests.pipeline.experiment import settings, write

STAGES = ("collect", "train", "adapt", "sample", "score", "gate", "report")
DEADLINE = 240  # seconds after which a hung run is a failure of ours, not a measurement


def start(config: Path, *extra: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "rune", "run", str(config), *extra]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=heed)


def heed() -> None:
    """A shell starts what stands before an `&` with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(config: Path, *extra: str) -> Path:
    process = start(config, *extra)
    _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode in (0, 10), err.decode()[-2000:]
    (folder,) = (config.parent / "runs").iterdir()
    return folder


def interrupt(config: Path, stage: str, how: signal.Signals, *extra: str) -> int:
    """Start, wait until `stage` is running, strike. Returns the exit code."""
    process = start(config, *extra)
    begin = time.monotonic()
    while process.poll() is None and time.monotonic() - begin < DEADLINE:
        if status(config.parent, stage) in ("running", "done"):
            process.send_signal(how)
            break
        time.sleep(0.01)
    process.communicate(timeout=DEADLINE)
    return process.returncode


def status(root: Path, stage: str) -> str:
    for manifest in root.glob("runs/*/manifest.json"):
        return str(json.loads(manifest.read_text())["stages"].get(stage, {}).get("status", ""))
    return ""


def outcome(folder: Path) -> tuple[object, ...]:
    decision = json.loads((folder / "decision.json").read_text())
    verdicts = store.read_jsonl(folder / "verdicts.jsonl", Verdict)
    samples = store.read_jsonl(folder / "samples.jsonl", Sample)
    return (
        decision["answer"],
        decision["effect_points"],
        sorted((v.condition, v.task_id, v.draw, v.outcome) for v in verdicts),
        sorted((s.condition, s.task_id, s.draw, s.completion) for s in samples),
        (folder / "trajectories.jsonl").read_bytes(),
    )


@pytest.mark.check
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, id="SIGINT"),
        pytest.param(signal.SIGKILL, id="SIGKILL"),
    ],
)
def test_a_run_struck_in_every_stage_decides_the_same(
    how: signal.Signals, tmp_path: Path, tiny_model: ModelRef
) -> None:
    config = write(tmp_path, settings(tmp_path, tiny_model))
    for stage in STAGES:
        code = interrupt(config, stage, how, *(["--resume"] if stage != STAGES[0] else []))
        # The last two take a second: on a busy machine they may end first. Any other must show the signal, no verdict.
        assert code in ((130, 0, 10) if how is signal.SIGINT else (-signal.SIGKILL, 0, 10))
        if stage not in STAGES[-2:]:
            assert code not in (0, 10), f"struck in {stage}, it went on to its end"
    struck = outcome(finish(config, "--resume"))

    clean_root = tmp_path / "clean"
    clean_root.mkdir()
    raw = settings(clean_root, tiny_model)
    assert struck == outcome(finish(write(clean_root, raw)))
