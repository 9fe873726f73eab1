"""SIGKILL of the scorer at any moment: no process of a sample outlives it, and the next run goes on where it was."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rune.runs import store
from rune.types import Outcome, Problem, Sample, Split, Verdict

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork backend is Linux's")

# `rune score RUN` without a configuration: the stage, its sandbox, its cache and the folder's lock.
SCORER = """
import json, sys
from pathlib import Path
from rune.runs import store
from rune.stages import score
from rune.stages.context import Context
print("imported", flush=True)
folder, config = store.RunDir(Path(sys.argv[1])), score.Config(backend=sys.argv[2], settings=json.loads(sys.argv[3]))
with folder.lock():
    box = score.build_sandbox(config, cache=Path(sys.argv[4]))
    print("ready", flush=True)
    context = Context(
        seed=0, model=None, device="cpu", dtype="float32", engine=None, sandbox=lambda: box, cache=Path(sys.argv[4])
    )
    score.run(folder, config, context)
    box.close()
"""
PROBLEM = Problem(
    task_id="T/1",
    benchmark="t",
    prompt="def double(x):\n",
    entry_point="double",
    test="def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    reference="def double(x):\n    return 2 * x\n",
    split=Split.HELD_OUT,
)
BODIES = {
    "right": ("    return 2 * x\n", Outcome.PASSED),
    "slow": ("    import time\n    time.sleep(0.1)\n    return 2 * x\n", Outcome.PASSED),
    "wrong": ("    return x\n", Outcome.FAILED),
    "endless": ("    while True: pass\n", Outcome.TIMED_OUT),
}
# Leaves the process group, the session and its parent; where the sandbox lets it, it is still there after a minute.
DAEMON = (
    "    import os, time\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0: time.sleep(60)\n"
    "        os._exit(0)\n    time.sleep(0.2)\n    return x\n"
)


def samples() -> list[Sample]:
    bodies = {**BODIES, "daemon": (DAEMON, Outcome.FAILED)}
    kinds = ["right", "slow", "wrong", "slow", "daemon", "slow"] * 10 + ["endless"] * 2
    return [
        Sample(
            task_id="T/1",
            condition=kind,
            draw=draw,
            seed=draw,
            completion="",
            program=f"def double(x):\n{bodies[kind][0]}# {draw}\n",
            num_tokens=1,
            finish_reason="stop",
        )
        for draw, kind in enumerate(kinds)
    ]


def alive(marker: str) -> list[str]:
    """Command lines with the marker: of a judge, of what it started and of every fork of that."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text(errors="replace")
            state = (path.parent / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if marker in line and state not in "ZX":
            found.append(f"{path.parent.name} {line[:80]!r}")
    return found


@pytest.mark.parametrize(
    ("backend", "settings", "kills"),
    [
        pytest.param("fork", {}, 10, id="fork"),
        pytest.param("fork", {"without": ["namespaces"]}, 4, id="without-namespaces", marks=pytest.mark.check),
        pytest.param("bubblewrap", {}, 4, id="bubblewrap", marks=pytest.mark.check),
        pytest.param("subprocess", {"allow_weak": True}, 6, id="subprocess", marks=pytest.mark.check),
    ],
)
def test_a_killed_scorer_leaves_nothing_running_and_a_file_that_resumes(
    tmp_path: Path, backend: str, settings: dict[str, object], kills: int
) -> None:
    if backend == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    store.write_jsonl(tmp_path / "problems.jsonl", [PROBLEM])
    store.write_jsonl(tmp_path / "samples.jsonl", samples())
    verdicts = tmp_path / "verdicts.jsonl"
    rng = random.Random(7)
    marker = str(random.SystemRandom().randrange(10**6, 10**7))  # a memory limit that no other process was told
    limits = {"workers": 2, "cpu_seconds": 0.5, "wall_seconds": 1.0, "memory_mb": int(marker), **settings}
    command = [sys.executable, "-c", SCORER, str(tmp_path), backend, json.dumps(limits), str(tmp_path / "cache")]
    counts = [0]
    started = 0

    def known() -> int:
        return verdicts.read_bytes().count(b"\n") if verdicts.exists() else 0

    for kill in range(kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as scorer:
            assert scorer.stdout is not None and scorer.stderr is not None
            # In turn: while the sandbox starts, while the scorer proves itself, while it judges.
            wanted = "imported" if kill % 3 == 0 else "ready"
            line = ""
            while line.strip() != wanted:
                line = scorer.stdout.readline()
                assert line, scorer.stderr.read()[-2000:]
            while kill % 3 == 2 and known() == counts[-1]:
                assert scorer.poll() is None, scorer.stderr.read()[-2000:]
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.15))
            started += bool(alive(marker))
            scorer.kill()
        deadline = time.monotonic() + 15
        while left := alive(marker):
            assert time.monotonic() < deadline, left
            time.sleep(0.02)
        counts.append(known())
    assert counts == sorted(counts), "a verdict was lost"
    assert 0 < counts[-1] < len(samples()), "killed before or after the work: no test of what happens within"
    assert started >= kills // 2
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = store.read_jsonl(verdicts, Verdict)
    assert sorted((v.condition, v.draw) for v in found) == sorted((s.condition, s.draw) for s in samples())
    for verdict in found:
        expected = BODIES.get(verdict.condition, ("", Outcome.FAILED))[1]
        assert verdict.outcome is expected, verdict
    assert not alive(marker)


def test_a_killed_drop_in_run_is_free_to_repeat(tmp_path: Path) -> None:
    """`rune score --benchmark NAME FILE`: its results are whole or absent, and known verdicts are not judged anew."""
    tasks = tmp_path / "tasks.jsonl"
    row = {"task_id": "T/0", "prompt": PROBLEM.prompt, "entry_point": "double", "test": PROBLEM.test}
    tasks.write_text(json.dumps({**row, "canonical_solution": "    return 2 * x\n"}) + "\n")
    file = tmp_path / "samples.jsonl"
    slow = "    import time\n    time.sleep(0.1)\n    return 2 * x\n"
    file.write_text("".join(json.dumps({"task_id": "T/0", "completion": f"{slow}# {i}\n"}) + "\n" for i in range(40)))
    command = [sys.executable, "-m", "rune", "score", "--benchmark", "humaneval", str(file), "--problems", str(tasks)]
    environment = {"RUNE_CACHE": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    cache = tmp_path / "cache" / "verdicts" / "verdicts.jsonl"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as scorer:
        deadline = time.monotonic() + 60
        while not (cache.exists() and cache.read_bytes().count(b"\n") >= 5):
            assert time.monotonic() < deadline and scorer.poll() is None
            time.sleep(0.02)
        scorer.kill()
    known = cache.read_bytes().count(b"\n")
    assert not list(tmp_path.glob("*_results.jsonl"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    (said,) = re.findall(r"(\d+) of 40 verdicts known from the cache", done.stderr)
    assert known - 1 <= int(said) <= known < 40
    assert done.stdout.startswith("pass@1: 1.0000")
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert "40 of 40 verdicts known from the cache" in again.stderr
