"""Requests that agents from PyPI sent to this server, as recorded (`test_real_agents.py` runs the agents), answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.serving.settings import Engine
from rune.types import ModelRef
from tests.serving.world import Running, configured, running

RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("agent_requests.json").read_text(encoding="utf-8"))
SUBMIT = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
WRITE = "echo hello > hello.txt; cat hello.txt"


def call(command: str) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'bash', 'arguments': {'command': command}})}\n</tool_call>"


# A piece of what the model is shown, the first that is found → what it says: it plays a model that can do it.
ANSWERS = {
    "commit message": ["feat: add hello"],
    "file listing": ["Here it is.\n\nhello.txt\n```\nhello\n```\n"],
    "<tool_response>": [f"Done.\n{call(SUBMIT)}"],
    "# Tools": [f"I write the file.\n{call(WRITE)}"],
    "<returncode>": [f"THOUGHT: done\n\n```mswea_bash_command\n{SUBMIT}\n```"],
    "ONE bash code block": [f"THOUGHT: I write the file.\n\n```mswea_bash_command\n{WRITE}\n```"],
}
EXPECTED = {
    "aider 0.86.2, asking for a commit message": ("feat: add hello", ""),
    "aider 0.86.2, asking for an edit": ("Here it is.\n\nhello.txt\n```\nhello\n```\n", ""),
    "mini-swe-agent 2.4.6, in text": (ANSWERS["ONE bash code block"][0], ""),
    "mini-swe-agent 2.4.6, in text, after a command": (ANSWERS["<returncode>"][0], ""),
    "mini-swe-agent 2.4.6, with tools": ("I write the file.", WRITE),
    "mini-swe-agent 2.4.6, with tools, after a command": ("Done.", SUBMIT),
}


def playing(model: ModelRef, root: Path, hypernet: Path | None = None) -> Any:
    """The config of a server whose model says what is written above, and can wear what is learned there."""
    config = configured(model, root, hypernet, max_tokens=600, window=32768)
    return replace(config, engine=Engine(name="scripted", settings={"answers": ANSWERS, "read_adapters": True}))


@pytest.fixture(scope="module")
def scripted(tool_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(playing(tool_model, tmp_path_factory.mktemp("agents"))) as served:
        yield served


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["sent_by"])
def test_what_an_agent_sends_is_answered_as_it_expects(scripted: Running, recorded: dict[str, Any]) -> None:
    answer = scripted.http.post(recorded["path"], headers=recorded["headers"], content=json.dumps(recorded["body"]))
    assert answer.status_code == 200, answer.text
    text, command = EXPECTED[recorded["sent_by"]]
    if recorded["body"].get("stream"):
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line and line != "data: [DONE]"]
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == text
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        return
    (choice,) = answer.json()["choices"]
    assert choice["message"]["content"] == text
    called = [json.loads(one["function"]["arguments"]) for one in choice["message"].get("tool_calls", ())]
    assert called == ([{"command": command}] if command else [])
    assert choice["finish_reason"] == ("tool_calls" if command else "stop")


def test_every_recorded_request_has_its_expected_answer() -> None:
    assert {recorded["sent_by"] for recorded in RECORDED} == set(EXPECTED)
