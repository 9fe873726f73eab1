"""Imports as a user sees them: our own records line by line, files of the tools themselves, folders, the commands."""

from __future__ import annotations

import copy
import gzip
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rune.cli.main import main
from rune.corpus import exclusion, patches, reading
from rune.errors import DataError
from rune.runs import store
from rune.types import Attempt, Outcome, Trajectory
from tests.corpus.samples import ISSUE, PATCH, SAMPLES, UPLOADED, call, replaced, tool, user

REAL = Path(__file__).parent / "real"
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
    path.write_text("".join((r if isinstance(r, str) else store.encode(r)) + "\n" for r in records), encoding="utf-8")
    return path


def raw(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(store.encode(GOOD))
    record.update(changes)
    return {k: v for k, v in record.items() if v is not ...}


def kinds(trajectory: Trajectory) -> list[str]:
    return [a.error_kind for a in trajectory.attempts]


# --------------------------------------------------------------------------- our own records


def test_our_own_records_come_back_as_written(tmp_path: Path) -> None:
    second = json.loads(store.encode(GOOD)) | {"trajectory_id": "a2"}
    found = reading.read(write(tmp_path / "t.jsonl", GOOD, json.dumps(second)))
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
        (json.dumps(raw(trajectory_id="a2"))[:-20], r"t\.jsonl:2: not valid JSON"),
    ],
)
def test_a_malformed_line_is_named_by_file_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reading.read(write(tmp_path / "t.jsonl", GOOD, line))


def test_a_torn_last_line_of_a_users_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(store.encode(GOOD) + "\n" + store.encode(GOOD)[:50])
    with pytest.raises(DataError, match=r"t\.jsonl:2: not valid JSON"):
        reading.read(path)


# --------------------------------------------------------------------------- files that the tools wrote
# Counted by hand: every edit in the log, and one for the patch that was handed in.

EDITS = ("IndentationError", "Superseded", "Unverified")
SHARED = {
    "mini/github_issue.traj.json": ["ZeroDivisionError", "Superseded", "Unverified"],
    "sweagent/*6e44b9__sweagenttestrepo-1c2844.traj": ["Superseded", "Unverified"],
    "sweagent/*test-repo-i1.traj": ["Superseded", "Unverified"],
    "sweagent/*pydicom-1458.traj": ["AttributeError", *["SyntaxError"] * 3, "Superseded", "Unverified"],
    "sweagent/*function_calling_simple.traj": ["Superseded"],
    "sweagent/*humanevalfix-python-0.traj": ["Superseded", "Unverified"],
    "sweagent/*_install_from_source__marshmallow*1867.traj": ["Superseded", *EDITS],
    "sweagent/*1867__default_sys-env_cursors*1867.traj": ["Superseded", *EDITS],
    "sweagent/*1867__default_sys-env_window100*1867.traj": ["Superseded", *EDITS],
    "sweagent/*1867__function_calling__install-1*1867.traj": ["Superseded", *EDITS],
    "sweagent/*1867__function_calling_replace__install-1*1867.traj": ["Superseded", *EDITS],
    "sweagent/*function_calling_replace_from_source*1867.traj": ["Superseded", "Superseded", "Unverified"],
    "sweagent/*1867__xml_sys-env_cursors*1867.traj": ["Superseded", *EDITS],
    "sweagent/*1867__xml_sys-env_window100*1867.traj": ["Superseded", *EDITS],
    "swesmith/*pr_53652.traj": [*["Superseded"] * 4, "Unverified"],
    "swesmith/*pr_53856.traj": ["NoSuchModuleError", *["Superseded"] * 2, "Unverified"],
    "swesmith/*pr_8316.traj": ["ModuleNotFoundError", *["Superseded"] * 7, "Unverified"],
}


@pytest.mark.parametrize("pattern", list(SHARED))
def test_files_of_swe_agent_and_mini_swe_agent(pattern: str, data_dir: Path) -> None:
    (path,) = (data_dir / "sweagent_trajectories").glob(pattern)
    (found,) = reading.read(path)
    assert kinds(found) == SHARED[pattern]
    assert found.solution == ""  # no file says that its tests passed
    assert len(found.prompt) > 50
    assert not any(word in found.prompt for word in ("INSTRUCTIONS", "Recommended Workflow", "end_of_edit", "<pr_"))


def test_all_files_of_the_shared_folder_are_covered_above(data_dir: Path) -> None:
    folder = data_dir / "sweagent_trajectories"
    covered = Counter(path for pattern in SHARED for path in folder.glob(pattern))
    assert set(covered.values()) == {1}
    others = {p.name for p in folder.glob("*/*")} - {p.name for p in covered}
    assert others == {"ft_xml_example.jsonl", "local.traj.json"}


def test_the_chat_file_of_swe_smith(data_dir: Path) -> None:
    found = reading.read(data_dir / "sweagent_trajectories" / "swesmith" / "ft_xml_example.jsonl")
    assert [len(t.attempts) for t in found] == [4, 16, 8]
    assert [t.task_id.partition(".")[0] for t in found] == ["pandas-dev__pandas", "getmoto__moto", "pydantic__pydantic"]
    assert found[1].attempts[0].error_kind == "ImportError"
    assert not any(t.solution for t in found)


def test_of_swe_agents_tries_the_one_that_was_handed_in_is_the_solved_one(tmp_path: Path) -> None:
    def tried(patch: str) -> dict[str, Any]:
        call = "str_replace_editor str_replace /r/calc.py --old_str 'x // 2' --new_str 'x / 2'"
        return {"trajectory": [{"action": call, "observation": "ok"}], "history": [], "info": {"submission": patch}}

    other = PATCH.replace("x / 2", "x / 3")
    # The retrying agent writes every try, and beside them the one that it chose.
    asked = {"replay_config": json.dumps({"problem_statement": {"text": ISSUE, "id": "demo__calc-1"}})}
    record = {"instance_id": "demo__calc-1", "attempts": [tried(other), tried(PATCH)], **tried(PATCH), **asked}
    for resolved, solutions in ((True, ["", "return x / 2"]), (False, ["", ""]), (None, ["", ""])):
        said = {} if resolved is None else {"resolved": resolved}
        path = tmp_path / f"{resolved}.traj"
        path.write_text(json.dumps({**record, **said}))
        found = reading.read(path)
        assert [bool(t.solution) for t in found] == [bool(s) for s in solutions]
        assert all(s in t.solution for t, s in zip(found, solutions, strict=True))


def test_the_benchmarks_own_patch_is_never_the_agents(tmp_path: Path) -> None:
    """A row of OpenHands' output holds the instance, and in it the answer."""
    gold = PATCH.replace("calc.py", "gold.py")
    rows = [s.record for s in SAMPLES["openhands"] if isinstance(s.record, dict)]
    assert rows
    for number, row in enumerate(rows):
        instance = {**row.get("instance", {}), "patch": gold}
        paths = [write(tmp_path / f"{number}.jsonl", json.dumps(row))]
        paths.append(write(tmp_path / f"{number}-with.jsonl", json.dumps({**row, "instance": instance})))
        without, with_answer = (reading.read(path) for path in paths)
        assert [t.attempts for t in without] == [t.attempts for t in with_answer]
        assert "gold.py" not in json.dumps([store.encode(t) for t in with_answer])


def test_every_text_of_a_finished_trajectory_is_redacted(tmp_path: Path) -> None:
    key = "sk-proj-" + "a1B2c3D4e5" * 3
    failed = Attempt(
        code=f"# {key} in code", outcome=Outcome.FAILED, error_kind="E", error=f"{key} in error",
        reflection=f"{key} in reflection",
    )  # fmt: skip
    passed = Attempt(code=f"# {key} solves it", outcome=Outcome.PASSED)
    leaky = Trajectory(
        trajectory_id="a1", task_id="mine/1", benchmark="mine", prompt=f"Use {key}.", attempts=(failed, passed),
        solution=passed.code, source=f"from {key}",
    )  # fmt: skip
    (found,) = reading.read(write(tmp_path / "t.jsonl", leaky))
    assert key not in store.encode(found) and store.encode(found).count("[redacted") == 7
    assert found.solution == found.attempts[-1].code


def test_a_session_without_an_edit_is_one_clear_line(data_dir: Path) -> None:
    with pytest.raises(DataError, match=r"local\.traj\.json:\d+: no code edit and no submission"):
        reading.read(data_dir / "sweagent_trajectories" / "mini" / "local.traj.json")  # it printed hello world


@pytest.mark.parametrize("kind", ["v1", "v2_tool", "v2_response", "v2_text"])
def test_files_that_mini_swe_agent_writes(kind: str) -> None:
    for name, edits in {
        "sed_twice": ["AssertionError", "Superseded"],
        "heredoc": ["Superseded"],
        "python_and_scratch": ["Superseded", "Superseded"],
    }.items():
        (found,) = reading.read(REAL / "mini" / f"{kind}_{name}.traj.json")
        assert kinds(found) == [*edits, "Unverified"]
        assert found.prompt == ISSUE
        assert found.attempts[-1].code.endswith("-    return x // 2\n+    return x / 2")


def test_event_logs_that_openhands_writes(tmp_path: Path) -> None:
    expected = {
        "replace_twice": ["AssertionError", "Superseded"],
        "sed_and_scratch": ["Superseded", "Superseded"],
        "apply_patch": ["Superseded"],
    }
    for name, edits in expected.items():
        path = REAL / "openhands" / f"{name}.events.json.gz"
        (found,) = reading.read(path)
        assert (kinds(found), found.prompt) == (edits, ISSUE)
        # The same log as OpenHands keeps it on disk: a folder of one file an event, more than ten of them.
        folder = tmp_path / name / "events"
        folder.mkdir(parents=True)
        for number, event in enumerate(json.loads(gzip.decompress(path.read_bytes()))):
            (folder / f"{number}.json").write_text(json.dumps(event))
        (again,) = reading.read(tmp_path / name)
        assert (again.attempts, again.task_id) == (found.attempts, name)


def test_logs_of_requests_that_openhands_writes_are_one_session_a_folder() -> None:
    found = {t.task_id: kinds(t) for t in reading.read(REAL / "openhands" / "llm_completions")}
    assert found == {
        "apply_patch": ["Superseded"],
        "replace_twice": ["AssertionError", "Superseded"],
        "sed_and_scratch": ["Superseded", "Superseded"],
    }


def test_sessions_that_claude_code_writes() -> None:
    expected = {
        "edit_twice": ["AssertionError", "Superseded", "Superseded"],  # the second was refused: no such text
        "write_and_scratch": ["Superseded", "Superseded"],
        "sed_only": ["Superseded"],
    }
    for name, edits in expected.items():
        (found,) = reading.read(REAL / "claude_code" / f"{name}.jsonl.gz")
        assert (kinds(found), found.prompt, found.solution) == (edits, ISSUE, "")
        assert re.fullmatch(r"[0-9a-f-]{36}", found.task_id)
        (calls,) = re.findall(r"old_string (.*) --new_string", found.attempts[0].code) or [""]
        assert calls == ("x // 2" if name == "edit_twice" else "")


def test_what_claude_code_prints_as_a_stream_does_not_hold_what_was_asked() -> None:
    with pytest.raises(DataError, match=r"stream\.jsonl\.gz:1: what the person asked for is not in it.*SESSION\.jsonl"):
        reading.read(REAL.parent / "refused" / "claude_code.stream.jsonl.gz")


def test_sessions_that_codex_writes() -> None:
    expected = {
        "patch_twice": ["AssertionError", "Superseded", "Superseded"],  # the second was refused: no such line
        "scratch_by_patch": ["Superseded", "Superseded"],  # the patch that deletes the scratch file is no edit
        "shell_only": ["Superseded", "Superseded"],
    }
    for name, edits in expected.items():
        (found,) = reading.read(REAL / "codex" / f"{name}.jsonl.gz")
        assert (kinds(found), found.prompt, found.solution) == (edits, ISSUE, "")
        assert not any("Chunk ID" in a.error or "Wall time" in a.error for a in found.attempts)
    (found,) = reading.read(REAL / "codex" / "patch_twice.jsonl.gz")
    first, second, third = found.attempts
    assert first.error.endswith("AssertionError: 1.0") and "exit code 1\nTraceback" in first.error
    assert second.error.startswith("apply_patch verification failed")
    assert third.error.endswith("\nok")


# Lists of messages, each as its tool keeps it; NameError is what the first program raises.
CHATS = {
    "shell_gpt_1.4": ["NameError", "Superseded"],
    "shell_gpt_1.5": ["NameError", "Superseded"],
    "qwen_agent_twice": ["NameError", "Superseded"],
    "qwen_agent_scratch": ["Superseded", "Superseded"],
    "langchain_twice": ["NameError", "Superseded"],
    "langchain_scratch": ["Superseded", "Superseded"],
    "openai_agents_functions": ["NameError", "Superseded"],
    "openai_agents_patches": ["NameError", "Superseded", "Superseded"],  # the second was refused: no such line
    "openai_agents_scratch": ["Superseded", "Superseded"],  # the patch that deletes the scratch file is no edit
    "inspect_ai": ["Superseded", "NameError", "Superseded"],  # the first named an argument that the tool has not
    "ag2_twice": ["NameError", "Superseded"],
    "ag2_scratch": ["Superseded", "Superseded"],
    "ag2_chat_history": ["NameError", "Superseded"],
}


@pytest.mark.parametrize("name", list(CHATS))
def test_lists_of_messages_that_tools_keep(name: str) -> None:
    (found,) = reading.read(REAL / "chat" / f"{name}.json")
    assert (kinds(found), found.prompt, found.solution) == (CHATS[name], ISSUE, "")
    first, last = found.attempts[0], found.attempts[-1]
    assert last.error.endswith("ok")  # what `t.py` prints when it passes; nothing that was said later
    if "NameError" in kinds(found):
        (failed,) = (a for a in found.attempts if a.error_kind == "NameError")
        assert "return x / y" in failed.code and "name 'y' is not defined" in failed.error
        assert "return x / 2" in last.code
    if name.endswith("scratch"):
        assert "repro.py" in first.code and "sed -i 's#x // 2#x / 2#' calc.py" in last.code


@pytest.mark.parametrize("name", list(CHATS))
def test_said_to_be_solved_such_a_list_gives_the_edits_that_stand(name: str, tmp_path: Path) -> None:
    """Neither what was refused nor the scratch file is of the solution."""
    messages = json.loads((REAL / "chat" / f"{name}.json").read_text(encoding="utf-8"))
    (found,) = reading.read(write(tmp_path / "t.jsonl", json.dumps({"messages": messages, "resolved": True})))
    assert found.solved and kinds(found) == [*CHATS[name][:-1], ""]
    if name == "openai_agents_patches":  # two patches, one upon the other
        assert re.findall(r"^[-+]    (.*)$", found.solution, re.MULTILINE) == [
            "return x // 2", "return x / y", "return x / y", "return x / 2",
        ]  # fmt: skip
    elif name.endswith("scratch"):
        assert found.solution.startswith("sed -i")
    else:
        assert "return x / 2" in found.solution and "x / y" not in found.solution


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"payload": None}, r"field 'payload' of line 4 of the session is missing or no object"),
        (
            {"payload": {"type": ["message"], "role": "user"}},
            r"line 4 of the session: 'type': expected text, found list",
        ),
        ({"payload": {"type": "message", "content": "x"}}, r"line 4 of the session: 'role' is missing"),
    ],
)
def test_a_damaged_codex_session_is_named_by_its_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    lines = copy.deepcopy(SAMPLES["codex"][0].record)
    lines[3] |= change
    with pytest.raises(DataError, match=words):
        reading.read(write(tmp_path / "rollout.jsonl", *map(json.dumps, lines)))


# Rows of public data sets, as `real/SOURCES.md` tells: edits, and the patch at the end; "" is one that passed.
ROWS = {
    "swe_gym/dask__dask-9212": ("dask__dask-9212", [*["Superseded"] * 3, ""]),
    "swe_gym/Project-MONAI__MONAI-5686": ("Project-MONAI__MONAI-5686_4", [*["Superseded"] * 2, ""]),
    "swe_gym/python__mypy-15976": ("python__mypy-15976_0", [*["Superseded"] * 3, ""]),
    "nebius/apispec-382-a": (
        "marshmallow-code__apispec-382",
        ["Superseded", "ImportError", "Superseded", "Unverified"],
    ),
    "nebius/apispec-382-b": ("marshmallow-code__apispec-382", [*["Superseded"] * 2, "Unverified"]),
    "nebius/apispec-382-c": (
        "marshmallow-code__apispec-382",
        ["Superseded", "IndentationError", *["Superseded"] * 2, ""],
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_swe_gym_and_nebius(row: str) -> None:
    (found,) = reading.read(REAL / f"{row}.jsonl")
    assert (found.task_id, kinds(found)) == ROWS[row]
    assert found.solved == (kinds(found)[-1] == "")
    assert not any(word in found.prompt for word in ("INSTRUCTIONS", "uploaded", "Follow these steps", "bash-$"))
    assert "\r" not in found.prompt + found.attempts[-1].code
    if not found.solved:  # `target` is false
        assert (
            found.attempts[-1].error == "The agent submitted this patch; the file says that it did not solve the task."
        )


@pytest.mark.parametrize("row", [row for row in ROWS if row.startswith("swe_gym")])
def test_the_script_that_an_agent_left_behind_is_no_part_of_the_solution(row: str) -> None:
    """Each of these patches of OpenHands ends with the script that reproduced the error."""
    path = REAL / f"{row}.jsonl"
    whole = json.loads(path.read_text(encoding="utf-8"))["test_result"]["git_patch"].replace("\r\n", "\n")
    (found,) = reading.read(path)
    assert patches.files(whole) == [*patches.files(found.solution), patches.added(whole)[0]]
    assert whole.startswith(found.solution)
    assert patches.fault(found.solution) == ""


# --------------------------------------------------------------------------- SWE-agent's retrying agent
# No file of it is published; this is what its source writes (`RetryAgent.get_trajectory_data`), of real tries.


def tries(data_dir: Path, count: int) -> list[dict[str, Any]]:
    """Real trajectories of one instance."""
    paths = sorted((data_dir / "sweagent_trajectories" / "sweagent").glob("*marshmallow*1867.traj"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths[:count]]


def retried(given: list[dict[str, Any]], best: int | None, **more: Any) -> dict[str, Any]:
    """The file of a run; `best` is the try that was handed in, None before it has chosen."""
    if best is None:
        return {"attempts": given}
    chosen = copy.deepcopy(given[best])
    chosen["info"] |= {"best_attempt_idx": best, "rloop_model_stats": {}, "model_stats": {"api_calls": 99}}
    return {"attempts": given, **chosen, **more}


def test_every_try_of_the_retrying_agent_is_a_session(data_dir: Path, tmp_path: Path) -> None:
    given = tries(data_dir, 3)
    alone = [reading.read(write(tmp_path / f"{n}.traj", json.dumps(one)))[0] for n, one in enumerate(given)]
    found = reading.read(write(tmp_path / "whole.traj", json.dumps(retried(given, 1))))
    assert [t.attempts for t in found] == [t.attempts for t in alone]
    assert not any(t.solved for t in found)
    assert [kinds(t) for t in found] == [["Superseded", *EDITS]] * 3


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_verdict_of_a_retried_run_is_that_of_the_try_which_was_handed_in(
    best: int, data_dir: Path, tmp_path: Path
) -> None:
    given = tries(data_dir, 3)
    path = write(tmp_path / "t.traj", json.dumps(retried(given, best, resolved=True)))
    assert [t.solved for t in reading.read(path)] == [number == best for number in range(3)]


def test_a_retried_run_that_was_stopped_holds_tries_alone(data_dir: Path, tmp_path: Path) -> None:
    given = tries(data_dir, 2)
    found = reading.read(write(tmp_path / "stopped.traj", json.dumps(retried(given, None), indent=2)))
    assert len(found) == 2
    assert not any(t.solved for t in found)


def test_two_equal_tries_are_one_session(data_dir: Path, tmp_path: Path) -> None:
    (one,) = tries(data_dir, 1)
    assert len(reading.read(write(tmp_path / "t.traj", json.dumps(retried([one, one], 0))))) == 1


def test_a_whole_folder_of_real_files_at_once() -> None:
    found = reading.read_all([REAL])
    assert len(found.trajectories) == 12 + 3 + 3 + 3 + 3 + 3 + 3 + len(CHATS)
    assert not found.left_out and not found.strangers


def test_swebench_instances_carry_their_verified_patch(data_dir: Path) -> None:
    found = reading.read(data_dir / "swebench_lite" / "swebench_lite.jsonl")
    assert len(found) == len({t.task_id for t in found}) == 300
    assert all(t.solution.startswith("diff --git") and t.solved for t in found)


def test_a_real_file_that_says_resolved_gives_its_patch_as_solution(data_dir: Path, tmp_path: Path) -> None:
    (path,) = (data_dir / "sweagent_trajectories" / "sweagent").glob("*pydicom-1458.traj")
    record = json.loads(path.read_text())
    record["info"]["resolved"] = True
    (tmp_path / "x.traj").write_text(json.dumps(record))
    (found,) = reading.read(tmp_path / "x.traj")
    assert found.solution == found.attempts[-1].code
    assert found.solution.startswith("diff --git a/pydicom/pixel_data_handlers/numpy_handler.py")
    assert found.attempts[-1].outcome is Outcome.PASSED


def test_without_its_patch_the_solution_is_the_edit_that_stands(data_dir: Path, tmp_path: Path) -> None:
    """Three edits of the handler were rejected, the reproduction script was removed: one edit is left."""
    (path,) = (data_dir / "sweagent_trajectories" / "sweagent").glob("*pydicom-1458.traj")
    record = json.loads(path.read_text())
    record["info"] = {"resolved": True}
    (tmp_path / "x.traj").write_text(json.dumps(record))
    (found,) = reading.read(tmp_path / "x.traj")
    assert found.solution.startswith("edit 287:296\n")
    assert kinds(found) == ["AttributeError", *["SyntaxError"] * 3, ""]


# --------------------------------------------------------------------------- folders


def test_a_folder_leaves_out_with_a_word_what_is_no_trajectory(tmp_path: Path) -> None:
    write(tmp_path / "a.traj", json.dumps(SAMPLES["swe_agent"][0].record))
    write(tmp_path / "preds.json", json.dumps({"demo__calc-1": {"model_patch": PATCH}}))
    (tmp_path / "run.log").write_text("{")
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper" / "b.jsonl", json.dumps(raw()), json.dumps(raw(trajectory_id="a2")))
    found = reading.read_all([tmp_path])
    assert len(found.trajectories) == 3
    assert [Path(s).name for s in found.strangers] == ["preds.json"]
    assert any("1 files of no known format" in line and "preds.json" in line for line in found.words())


def test_a_damaged_file_in_a_folder_is_an_error_not_a_stranger(tmp_path: Path) -> None:
    write(tmp_path / "a.traj", json.dumps(SAMPLES["swe_agent"][0].record))
    (tmp_path / "b.traj").write_text('{"trajectory": [')
    with pytest.raises(DataError, match=r"b\.traj:1: not valid JSON"):
        reading.read(tmp_path)


@pytest.mark.parametrize("made", ["empty", "only logs", "only strangers", "missing"])
def test_a_folder_without_trajectories_is_one_line(made: str, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    if made != "missing":
        folder.mkdir()
    if made == "only logs":
        (folder / "x.log").write_text("x")
    if made == "only strangers":
        (folder / "x.json").write_text("{}")
    with pytest.raises(DataError, match=r"/f: (?:no file in this folder|holds no trajectory|no such file)"):
        reading.read(folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x1f\x8b\x08\x00", "a damaged gzip file"),
        (gzip.compress(b"{}", mtime=0)[:-6], "a damaged gzip file"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (b'{"a": 1}\n{"b": \xe9}', r":2: not UTF-8 text"),
        (b"[" * 100000, "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
        (b"PK\x03\x04", "not valid JSON|not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        reading.read(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "an empty object is no trajectory of a known format"),
        ('{"trajectory": [{"observation": ""}], "history": []}', r"trajectory\[0\]: field 'action' is missing"),
        ('{"trajectory": [{"action": 1, "observation": ""}]}', r"trajectory\[0\]: field 'action': expected text"),
        ('{"trajectory": 3}', "field 'trajectory' is missing or no list"),
        ('{"messages": 3}', "field 'messages' is missing or no list"),
        ('{"messages": "no json"}', "field 'messages'.*this text is no JSON"),
        ('{"messages": [3]}', r"field 'messages\[0\]'"),
        ('{"messages": [{"content": "x"}]}', r"field 'messages\[0\]\.role' is missing"),
        ('{"messages": [], "instance_id": 3}', "field 'instance_id' is missing or no text"),
        ('{"messages": [], "instance_id": "x"}', "no code edit and no submission"),
        ('{"messages": [], "info": {"submission": 3}}', r"field 'info\.submission': expected text, found int"),
        ('{"messages": [], "instance_id": "x", "patch": ["p"]}', "field 'patch': expected text, found list"),
        ("{", "not valid JSON"),
    ],
)
def test_a_broken_agents_file_is_one_clear_error(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.traj").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        reading.read(tmp_path / "x.traj")
    assert str(error.value).startswith(f"{tmp_path / 'x.traj'}:1: ")


# --------------------------------------------------------------------------- the same thing twice


def chat(identity: str, new: str) -> dict[str, Any]:
    messages = [user(UPLOADED), call("c", "str_replace_editor", **replaced(new=new)), tool("c", "edited")]
    return {"instance_id": identity, "messages": messages}


def test_a_trajectory_that_comes_twice_is_refused_within_one_file_and_over_several(tmp_path: Path) -> None:
    one, other = json.dumps(chat("demo__calc-1", "x / 3")), json.dumps(chat("demo__calc-1", "x / 2"))
    twice = write(tmp_path / "twice.jsonl", one, other, one)
    with pytest.raises(DataError, match=r"twice\.jsonl:3: field 'trajectory_id' repeats line 1"):
        reading.read(twice)
    a, b = write(tmp_path / "a.jsonl", one), write(tmp_path / "b.jsonl", other, one)
    with pytest.raises(DataError, match=r"b\.jsonl:2: field 'trajectory_id' repeats .*a\.jsonl:1"):
        reading.read_all([a, b])
    with pytest.raises(DataError, match=r"a\.jsonl:1: field 'trajectory_id' repeats .*a\.jsonl:1"):
        reading.read_all([a, a])
    shutil.copy(a, tmp_path / "copy.jsonl.gz")  # not packed, whatever its name says
    with pytest.raises(DataError, match="repeats"):
        reading.read_all([a, tmp_path / "copy.jsonl.gz"])
    with pytest.raises(DataError, match="repeats"):
        reading.read_all([tmp_path])
    assert len(reading.read_all([a, write(tmp_path / "c.jsonl", other)]).trajectories) == 2


# --------------------------------------------------------------------------- the commands


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*command: Any) -> str:
        capsys.readouterr()
        assert main([str(c) for c in command]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1, said
        return said.err

    return run


def test_the_command_ends_with_one_line_and_code_2(tmp_path: Path, refuses: Any) -> None:
    path = write(tmp_path / "t.jsonl", GOOD, json.dumps(raw(prompt=...)))
    assert f"{path}:2: field 'prompt' is missing" in refuses("collect", "--import", path, "-o", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_the_command_writes_what_it_checked(tmp_path: Path) -> None:
    path, out = write(tmp_path / "t.jsonl", GOOD), tmp_path / "out.jsonl"
    assert main(["collect", "--import", str(path), "-o", str(out)]) == 0
    assert store.read_jsonl(out, Trajectory) == [GOOD]


def test_what_an_import_writes_can_be_imported_again_unchanged(tmp_path: Path) -> None:
    for name, samples in SAMPLES.items():
        for number, sample in enumerate(samples):
            values = sample.record if sample.lines else [sample.record]
            path, out = tmp_path / f"{name}-{number}.jsonl", tmp_path / "out.jsonl"
            write(path, *(json.dumps(value) for value in values))
            assert main(["collect", "--import", str(path), "-o", str(out)]) == 0
            assert reading.read(out) == store.read_jsonl(out, Trajectory) == reading.read(path)


def test_a_humanevalfix_session_is_recognised_and_refused(data_dir: Path, tmp_path: Path, refuses: Any) -> None:
    (path,) = (data_dir / "sweagent_trajectories" / "sweagent").glob("*HumanEvalFix*")
    (found,) = reading.read(path)
    assert found.task_id == "HumanEvalFix/0"
    assert "evaluation only" in exclusion.Exclusion([]).why(found)
    for command in (
        ["collect", "--import", path, "-o", tmp_path / "o"],
        ["adapt", "--trajectory", path, "-o", tmp_path / "o"],
    ):
        assert "evaluation only" in refuses(*command)
        assert not (tmp_path / "o").exists()


REFUSED = {
    "empty prompt": json.dumps(raw(prompt="", attempts=[], solution="")),
    "no attempts": json.dumps(raw(attempts=[], solution="")),
    "evaluation task": json.dumps(raw(task_id="Mbpp/11", benchmark="mbpp")),
    "odd verdict": json.dumps(chat("demo__calc-1", "x") | {"resolved": "True"}),
    "unknown format": json.dumps({"task_id": "t/0", "completion": "x"}),
    "torn": store.encode(GOOD)[:100],
    "nothing to learn": json.dumps({"instance_id": "x", "messages": [user(ISSUE)]}),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_adapt_refuses_what_collect_refuses_with_the_same_line(what: str, tmp_path: Path, refuses: Any) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(REFUSED[what] + "\n")
    by_collect = refuses("collect", "--import", path, "-o", tmp_path / "out.jsonl")
    assert refuses("adapt", "--trajectory", path, "-o", tmp_path / "adapter") == by_collect
    assert list(tmp_path.iterdir()) == [path]


def test_adapt_refuses_the_same_trajectory_in_two_files(tmp_path: Path, refuses: Any) -> None:
    a, b = write(tmp_path / "a.jsonl", GOOD), write(tmp_path / "b.jsonl", GOOD)
    said = refuses("adapt", "--trajectory", a, b, "-o", tmp_path / "adapter")
    assert "b.jsonl:1: field 'trajectory_id' repeats" in said
    assert said == refuses("adapt", "--trajectory", a, "--trajectory", b, "-o", tmp_path / "adapter")
