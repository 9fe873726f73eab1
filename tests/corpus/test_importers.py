"""Imports: our own records line by line, agents' files as attempts; nothing unproved becomes a solution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rune import store
from rune.agent import importers
from rune.benchmarks import _exclusion
from rune.cli.main import main
from rune.errors import DataError
from rune.types import Attempt, Outcome, Trajectory

GOOD = Trajectory(
    trajectory_id="a1",
    task_id="mine/1",
    benchmark="mine",
    prompt="Write f.",
    attempts=(
        Attempt(code="def f(): 1/0", outcome=Outcome.FAILED, error_kind="ZeroDivisionError", error="division by zero"),
        Attempt(code="def f(): return 1", outcome=Outcome.PASSED),
    ),
    solution="def f(): return 1",
    source="elsewhere",
)


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join((r if isinstance(r, str) else store.encode(r)) + "\n" for r in records))
    return path


def raw(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(store.encode(GOOD))
    record.update(changes)
    return {k: v for k, v in record.items() if v is not ...}


def test_our_own_records_come_back_as_written(tmp_path: Path) -> None:
    second = json.loads(store.encode(GOOD)) | {"trajectory_id": "a2"}
    found = importers.read(write(tmp_path / "t.jsonl", GOOD, json.dumps(second)))
    assert found[0] == GOOD
    assert found[1].trajectory_id == "a2"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"t\.jsonl:2: not valid JSON"),
        (json.dumps([1]), r"t\.jsonl:2: expected an object"),
        (json.dumps(raw(prompt=...)), r"t\.jsonl:2: field 'prompt' is missing"),
        (json.dumps(raw(prompt=3)), r"t\.jsonl:2: field 'prompt': expected str"),
        (json.dumps(raw(colour="red")), r"t\.jsonl:2: unknown field 'colour'"),
        (json.dumps(raw(attempts=[])), r"t\.jsonl:2: field 'attempts' is empty"),
        (json.dumps(raw(task_id=" ")), r"t\.jsonl:2: field 'task_id' is empty"),
        (json.dumps(raw(attempts=[{"code": "x", "outcome": "won"}])), r"t\.jsonl:2: field 'attempts'\[0\].*outcome"),
        (json.dumps(raw(attempts=[{"code": "x", "outcome": "failed"}])), r"'attempts\[0\]\.error' is empty"),
        (json.dumps(raw(solution="def g(): ...")), r"field 'solution' is not the code of a passing last attempt"),
        (json.dumps(raw(solution="")), r"field 'solution' is empty though the last attempt passed"),
        (json.dumps(raw(trajectory_id="a1")), r"t\.jsonl:2: field 'trajectory_id' repeats line 1"),
    ],
)
def test_a_malformed_line_is_named_by_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        importers.read(write(tmp_path / "t.jsonl", GOOD, line))


def test_the_command_ends_with_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "t.jsonl", GOOD, json.dumps(raw(prompt=...)))
    assert main(["collect", "--import", str(path), "-o", str(tmp_path / "out.jsonl")]) == 2
    err = capsys.readouterr().err
    assert f"{path}:2: field 'prompt' is missing" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command_writes_what_it_checked(tmp_path: Path) -> None:
    path, out = write(tmp_path / "t.jsonl", GOOD), tmp_path / "out.jsonl"
    assert main(["collect", "--import", str(path), "-o", str(out)]) == 0
    assert store.read_jsonl(out, Trajectory) == [GOOD]


def test_every_agents_file_becomes_a_trajectory(data_dir: Path) -> None:
    read = 0
    for path in sorted((data_dir / "sweagent_trajectories").glob("*/*")):
        if path.name == "local.traj.json":  # its agent printed "hello world" and stopped
            with pytest.raises(DataError, match="no code edit and no submission"):
                importers.read(path)
            continue
        for trajectory in importers.read(path):
            read += 1
            assert trajectory.attempts
            assert len(trajectory.prompt) > 50
            assert all(a.outcome is Outcome.FAILED and a.error for a in trajectory.attempts)
            assert trajectory.solution == ""  # no file says that its tests passed
    assert read == 20


def test_edits_are_attempts_and_what_followed_is_their_error(data_dir: Path) -> None:
    folder = data_dir / "sweagent_trajectories"
    (mini,) = importers.read(folder / "mini" / "github_issue.traj.json")
    assert mini.attempts[0].code.startswith("sed -i 's/def division")
    assert mini.attempts[0].error_kind == "ZeroDivisionError"
    (path,) = (folder / "sweagent").glob("*pydicom-1458.traj")
    (pydicom,) = importers.read(path)
    assert pydicom.task_id == "pydicom__pydicom-1458"
    assert pydicom.attempts[0].code.startswith("edit 1:1\nimport numpy as np")
    assert pydicom.attempts[0].error_kind == "AttributeError"
    assert pydicom.attempts[-1].code.startswith("diff --git")
    assert pydicom.attempts[-1].error_kind == "Unverified"
    assert pydicom.prompt.startswith("Pixel Representation attribute")


def test_a_file_that_says_resolved_gives_a_solution(data_dir: Path, tmp_path: Path) -> None:
    (path,) = (data_dir / "sweagent_trajectories" / "sweagent").glob("*pydicom-1458.traj")
    record = json.loads(path.read_text())
    record["info"]["resolved"] = True
    (tmp_path / "x.traj").write_text(json.dumps(record))
    (trajectory,) = importers.read(tmp_path / "x.traj")
    assert trajectory.solution == trajectory.attempts[-1].code
    assert trajectory.attempts[-1].outcome is Outcome.PASSED


def test_a_humanevalfix_session_is_recognised_and_refused(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (data_dir / "sweagent_trajectories" / "sweagent").glob("*HumanEvalFix*")
    (trajectory,) = importers.read(path)
    assert trajectory.task_id == "HumanEvalFix/0"
    assert "evaluation only" in _exclusion.Exclusion([]).why(trajectory)
    assert main(["collect", "--import", str(path), "-o", str(tmp_path / "out.jsonl")]) == 2
    assert "evaluation only" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_swebench_instances_carry_their_verified_patch(data_dir: Path) -> None:
    found = importers.read(data_dir / "swebench_lite" / "swebench_lite.jsonl")
    assert len(found) == len({t.task_id for t in found}) == 300
    assert all(t.solution.startswith("diff --git") and t.solved for t in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no code edit"),
        ("{}", "neither field 'trajectory'"),
        ('{"trajectory": [{"observation": ""}], "history": []}', r"trajectory\[0\]: field 'action' is missing"),
        ('{"trajectory": 3}', "field 'trajectory' is missing or no list"),
        ("{", "not valid JSON"),
    ],
)
def test_a_broken_agents_file_is_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.traj").write_text(content)
    with pytest.raises(DataError, match=message):
        importers.read(tmp_path / "x.traj")
