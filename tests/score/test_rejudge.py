"""`tools/rejudge.py` over a run, an archive of folds and a zipped study: each change with before and after."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from rune.runs import store
from rune.types import FailureKind, Outcome, Problem, Sample, Verdict

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork backend is Linux's")
TOOL = Path(__file__).parents[2] / "tools" / "rejudge.py"
PROBLEM = Problem(
    task_id="T/1",
    benchmark="t",
    prompt="def double(x):\n",
    entry_point="double",
    test="def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    reference="def double(x):\n    return 2 * x\n",
)
PROGRAMS = (
    "def double(x):\n    return 2 * x\n",
    "def double(x):\n    return x + x\n",
    "def double(x):\n    return x\n",
)


def fill(folder: Path, *, forged: int | None = None, zipped: bool = False) -> None:
    """Three samples and their true verdicts; draw `forged` says the opposite of the truth."""
    folder.mkdir(parents=True)
    samples, verdicts = [], []
    for draw, code in enumerate(PROGRAMS):
        passed = (draw < 2) is not (draw == forged)
        samples.append(
            Sample(
                task_id="T/1",
                condition="vanilla",
                draw=draw,
                seed=0,
                completion="",
                program=code,
                num_tokens=1,
                finish_reason="stop",
            )
        )
        verdicts.append(
            Verdict(
                task_id="T/1",
                condition="vanilla",
                draw=draw,
                outcome=Outcome.PASSED if passed else Outcome.FAILED,
                error_kind="" if passed else FailureKind.WRONG_ANSWER,
            )
        )
    for name, records in (("problems", [PROBLEM]), ("samples", samples), ("verdicts", verdicts)):
        store.write_jsonl(folder / f"{name}.jsonl", records)
        if zipped:
            path = folder / f"{name}.jsonl"
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()


@pytest.fixture
def results(tmp_path: Path) -> list[str]:
    """A plain run with a true record, a study whose draw 0 passed then and "failed", an archive with a false pass."""
    fill(tmp_path / "plain")
    fill(tmp_path / "study", forged=0, zipped=True)
    fill(tmp_path / "scratch" / "run-1" / "seed-0" / "fold-1" / "t0.8", forged=2)
    fill(tmp_path / "scratch" / "run-1" / "seed-0" / "fold-2" / "t0.8")
    (tmp_path / "cross").mkdir()
    with tarfile.open(tmp_path / "cross" / "run.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "scratch" / "run-1", "run-1")
    return [str(tmp_path / name) for name in ("plain", "study", "cross")]


def call(out: Path, *args: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, TOOL, *args, "--out", out, "--workers", "1"], capture_output=True, text=True, check=False
    )
    assert out.exists(), done.stderr
    return done.returncode, json.loads(out.read_text(encoding="utf-8"))


def test_every_changed_verdict_is_listed_and_programs_are_judged_once(results: list[str], tmp_path: Path) -> None:
    code, found = call(tmp_path / "out.json", *results)
    assert code == 1
    assert (found["samples"], found["programs"], found["changed"]) == (12, 3, 2)
    assert found["changes"] == {"failed → passed": 1, "passed → failed": 1}
    named = [
        (c["run"], c["place"], c["arm"], c["task"], c["draw"], c["before"], c["now"]) for c in found["changed_samples"]
    ]
    assert sorted(named) == [
        ("cross", "seed-0/fold-1/t0.8", "vanilla", "T/1", 2, "passed", "failed"),
        ("study", "", "vanilla", "T/1", 0, "failed", "passed"),
    ]
    assert found["runs"]["plain"] == {"samples": 3, "passed_before": 2, "passed_now": 2, "changed": 0}
    assert found["runs"]["cross"] == {"samples": 6, "passed_before": 5, "passed_now": 4, "changed": 1}
    code, found = call(tmp_path / "out.json", results[0], "--cache", str(tmp_path / "cache"))
    assert (code, found["changed"]) == (0, 0)
    assert (tmp_path / "cache" / "verdicts" / "verdicts.jsonl").exists()


def test_the_audit_of_all_names_the_false_pass_and_its_fold(results: list[str], tmp_path: Path) -> None:
    code, found = call(tmp_path / "out.json", *results, "--audit", "all")
    assert code == 1
    assert found["passes_by_run"] == {"plain": 2, "study": 1, "cross": 5}
    assert (found["audited"], found["programs"], found["agree"], found["unexplained"]) == (8, 3, 7, 1)
    (doubted,) = found["disagreements"]
    assert doubted["samples"] == ["cross seed-0/fold-1/t0.8 vanilla draw 2"]


def test_a_folder_without_samples_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, TOOL, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no samples.jsonl, samples.jsonl.gz or run.tar.xz" in done.stderr
