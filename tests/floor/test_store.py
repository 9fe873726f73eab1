"""Files: a kill loses at most the line being written, a full disk loses nothing, and two runs never mix."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rune.cli.main import main
from rune.errors import DataError, StoreError
from rune.runs import store
from rune.types import Attempt, Outcome, Sample, Trajectory

SAMPLE = Sample(
    task_id="T/1",
    condition="vanilla",
    draw=0,
    seed=7,
    completion="x\ud800\0\u2028é",
    program="p",
    num_tokens=3,
    finish_reason="stop",
)


def _trajectory(**changes: Any) -> Trajectory:
    attempts = (
        Attempt(code="a", outcome=Outcome.FAILED, error_kind="WrongAnswer", error="no", reflection="hm"),
        Attempt(code="b", outcome=Outcome.PASSED),
    )
    base: dict[str, Any] = {"trajectory_id": "i", "task_id": "T/1", "benchmark": "b", "prompt": "p"}
    return Trajectory(**{**base, "attempts": attempts, "solution": "b", **changes})


def test_a_record_survives_the_disk_unchanged_whatever_its_characters(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    store.write_jsonl(path, [SAMPLE, SAMPLE])
    assert store.read_jsonl(path, Sample) == [SAMPLE, SAMPLE]
    assert path.read_bytes().isascii() and path.read_bytes().count(b"\n") == 2


def test_every_attempt_of_a_trajectory_survives_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    store.write_jsonl(path, [_trajectory()])
    assert store.read_jsonl(path, Trajectory) == [_trajectory()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attempts": None}, r"field 'attempts': expected a list, found null"),
        ({"attempts": [{"code": "a"}]}, r"field 'attempts'\[0\]: field 'outcome' is missing"),
        ({"attempts": [{"code": 1, "outcome": "failed"}]}, r"field 'attempts'\[0\]: field 'code': expected str, found 1"),  # noqa: E501
        ({"attempts": [{"code": "", "outcome": "ok"}]}, r".*\"ok\" is not one of passed, failed, timed_out"),
        ({"atempts": []}, r"unknown field 'atempts' for Trajectory; known: trajectory_id"),
    ],
)  # fmt: skip
def test_a_malformed_line_is_named_by_file_line_and_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "t.jsonl"
    good = json.loads(store.encode(_trajectory()))
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, **change}) + "\n")
    with pytest.raises(DataError, match=rf"t\.jsonl:2: {message}"):
        store.read_jsonl(path, Trajectory)


def test_a_missing_field_is_an_error_and_never_a_default(tmp_path: Path) -> None:
    good = json.loads(store.encode(_trajectory()))
    del good["attempts"]
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(good) + "\n")
    with pytest.raises(DataError, match=r"t\.jsonl:1: field 'attempts' is missing \(Trajectory needs it\)"):
        store.read_jsonl(path, Trajectory)


# --------------------------------------------------------------------------- torn lines


def test_readers_ignore_a_torn_last_line_and_refuse_a_broken_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    line = store.encode(SAMPLE)
    path.write_text(f"{line}\n{line[:-5]}")
    assert store.read_jsonl(path, Sample) == [SAMPLE]
    path.write_text(f"{line}\n{line[:-5]}\n{line}\n")
    with pytest.raises(DataError, match=r"samples\.jsonl:2: not valid JSON"):
        store.read_jsonl(path, Sample)


@pytest.mark.parametrize("torn", ["", "{", '{"a": "' + "x" * 10_000])
def test_appending_after_a_kill_cuts_the_torn_line_first(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text(store.encode(SAMPLE) + "\n" + torn)
    with store.Appender(path) as log:
        log.write(SAMPLE)
    assert store.read_jsonl(path, Sample) == [SAMPLE, SAMPLE]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("x" * 9000)
    assert store.repair(path) == 9000
    assert path.read_bytes() == b""


def test_every_line_is_on_its_way_to_the_disk_before_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    script = (
        "import os, signal, sys; from pathlib import Path; from rune.runs import store\n"
        "log = store.Appender(Path(sys.argv[1]))\n"
        "for i in range(50): log.write({'i': i})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == -9
    assert [raw["i"] for _, raw in store.read_lines(path)] == list(range(50))


# --------------------------------------------------------------------------- a full disk


def test_a_full_disk_is_one_line_that_says_what_to_do() -> None:
    log = store.Appender.__new__(store.Appender)
    log.path = Path("/dev/full")
    log._file = log.path.open("ab", buffering=0)
    with log, pytest.raises(StoreError, match="the disk is full; free some space and run again with --resume"):
        log.write(SAMPLE)


def test_a_file_that_may_not_grow_keeps_what_it_had(tmp_path: Path) -> None:
    """A file-size limit stands in for the full disk: the kernel refuses in the middle of a line."""
    path = tmp_path / "log.jsonl"
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from rune.runs import store; from rune.errors import StoreError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "log = store.Appender(Path(sys.argv[1]))\n"
        "try:\n"
        "    for i in range(1000): log.write({'i': i, 'text': 'x' * 30})\n"
        "except StoreError as error:\n"
        "    print(error); sys.exit(2)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("\n") == 1
    whole = [raw["i"] for _, raw in store.read_lines(path)]
    assert whole and whole == list(range(len(whole)))
    with store.Appender(path) as log:
        log.write({"i": len(whole), "text": ""})
    assert [raw["i"] for _, raw in store.read_lines(path)] == list(range(len(whole) + 1))


def test_a_failed_replacement_leaves_the_old_content_and_no_scratch_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    store.write_json(path, {"a": 1})
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from rune.runs import store; from rune.errors import StoreError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try: store.write_json(Path(sys.argv[1]), {'a': 'x' * 1000})\n"
        "except StoreError as error: sys.exit(2)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 2
    assert store.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["manifest.json"]  # noqa: PTH208 (hidden files too)


# --------------------------------------------------------------------------- the run folder


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = 1


def test_a_run_is_made_once_resumed_on_request_and_never_by_another_config(tmp_path: Path) -> None:
    run = store.RunDir.create(tmp_path, "a", Settings(), extra={"seed": 3}, resume=False)
    assert run.manifest()["seed"] == 3 and (run / "config.toml").read_text() == "steps = 1\n"
    with pytest.raises(StoreError, match="exists already; add --resume"):
        store.RunDir.create(tmp_path, "a", Settings(), extra={}, resume=False)
    assert store.RunDir.create(tmp_path, "a", Settings(), extra={}, resume=True).path == run.path
    assert store.RunDir.create(tmp_path, "a", Settings(steps=2), extra={}, resume=True).path != run.path


def test_a_folder_that_another_config_made_is_refused(tmp_path: Path) -> None:
    run = store.RunDir.create(tmp_path, "a", Settings(), extra={}, resume=False)
    run.update(config_digest="0" * 64)
    with pytest.raises(StoreError, match=r"made by another config \(digest 00000000, this one [0-9a-f]{8}\)"):
        store.RunDir.create(tmp_path, "a", Settings(), extra={}, resume=True)


def test_a_folder_without_a_manifest_or_of_another_schema_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no run folder"):
        store.RunDir.open(tmp_path)
    run = store.RunDir.create(tmp_path, "a", Settings(), extra={}, resume=False)
    run.update(schema_version=99)
    with pytest.raises(StoreError, match="schema version 99"):
        store.RunDir.open(run.path)


@pytest.mark.parametrize("manifest", ["{}", '{"made_by": "a study"}', None])
@pytest.mark.parametrize(
    ("files", "words"),
    [
        ((), "`rune run CONFIG` makes one"),
        (("result.json", "run.tar"), "`rune run CONFIG` makes one"),
        (("a.md", "b.md"), "what was found is in its .md files"),
        (("a.md", "result.md"), "what was found is in {folder}/result.md"),
        (("run.tar.xz", "result.md"), "its records are packed: mkdir -p runs && tar xf '{folder}/run.tar.xz' -C runs"),
    ],
)
@pytest.mark.parametrize("verb", ["show", "gate", "report"])
def test_a_folder_that_is_no_run_says_where_what_was_found_is(
    verb: str, files: tuple[str, ...], words: str, manifest: str | None, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "a result"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    if manifest:
        (folder / "manifest.json").write_text(manifest)
    assert main([verb, str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rune: {folder}: no run folder") and said.count("\n") == 1
    assert said.endswith(f"; {words.format(folder=folder)}\n") and "schema version None" not in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hypernet-0.5b", "result.md"),
        ("pbb-hypernet", "result.md"),
        ("memory", "result.md"),
        ("recipes-0.5b-2", "its .md files"),
    ],
)
def test_a_committed_result_that_is_no_run_is_not_to_be_made_by_a_run(name: str, words: str, capsys: Any) -> None:
    assert main(["show", str(Path(__file__).parents[2] / "results" / name)]) == 2
    said = capsys.readouterr().err
    assert "no run folder" in said and said.endswith(f"{words}\n")


def test_a_stage_is_done_only_if_its_body_ended_well(tmp_path: Path) -> None:
    run = store.RunDir.create(tmp_path, "a", Settings(), extra={}, resume=False)
    with pytest.raises(KeyboardInterrupt), run.stage("score"):
        raise KeyboardInterrupt
    assert not run.stage_done("score")
    assert run.manifest()["status"] == "score: interrupted"
    with pytest.raises(ZeroDivisionError), run.stage("score"):
        raise ZeroDivisionError
    assert run.manifest()["status"] == "score: failed"
    with run.stage("score") as entry:
        entry["passed"] = 4
    assert run.stage_done("score")
    assert run.manifest()["stages"]["score"]["passed"] == 4


def test_a_stage_done_again_keeps_what_was_recorded_of_it(tmp_path: Path) -> None:
    run = store.RunDir.create(tmp_path, "a", Settings(), extra={}, resume=False)
    for number in range(3):
        with run.stage("gate") as entry:
            entry["by"] = number
    found = run.manifest()["stages"]["gate"]
    assert (found["by"], found["status"]) == (2, "done")
    assert [(e["by"], e["status"]) for e in found["earlier"]] == [(0, "done"), (1, "done")]
    assert "earlier" not in found["earlier"][1]


def test_only_one_process_works_in_a_run_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    run = store.RunDir.create(tmp_path, "a", Settings(), extra={}, resume=False)
    script = (
        "import sys, time; from pathlib import Path; from rune.runs.store import RunDir\n"
        "with RunDir(Path(sys.argv[1])).lock(): print('held', flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=re.escape(f"{run.path}: another rune process works here")), run.lock():
            pass
        other.kill()
    with run.lock():
        pass


def test_what_a_killed_process_left_is_swept_when_the_next_one_works(tmp_path: Path) -> None:
    run = store.RunDir.create(tmp_path, "swept", {"a": 1}, extra={}, resume=False)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = run / "checkpoints" / f".state.safetensors.{dead.pid}.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")
    mine = run / f".decision.json.{os.getpid()}.tmp"
    mine.write_bytes(b"being written")
    user = run / ".notes.tmp"
    user.write_text("not ours")
    with run.lock():
        assert not left.exists() and mine.exists() and user.exists()
