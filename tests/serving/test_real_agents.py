"""Agents from PyPI, each in an environment of its own, unchanged, against `rune serve` on loopback.

The model's part is played by the scripted engine; the agents, their HTTP clients and what they do on the disk are real.
What they sent when this was written stands in `agent_requests.json`, and is asked again by the fast tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune.types import ModelRef
from tests.serving.test_agents import playing
from tests.serving.world import Running, running

pytestmark = pytest.mark.slow
MINUTES = 60  # seconds in one


def installed(folder: Path, package: str) -> Path:
    """The programs of a package in a fresh environment. Skips where the index has it not, or is not reached."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True, timeout=5 * MINUTES)
    pip = [str(folder / "env" / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    asked = [*pip, "download", "--no-deps", "--dest", str(folder / "wheels"), package]
    there = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=10 * MINUTES)
    if there.returncode:
        pytest.skip(f"the package index gives no {package}: {(there.stderr.strip() or 'no reason').splitlines()[-1]}")
    subprocess.run([*pip, "install", package], check=True, timeout=30 * MINUTES)
    return folder / "env" / "bin"


@pytest.fixture(scope="module")
def scripted(tool_model: ModelRef, hypernet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(playing(tool_model, tmp_path_factory.mktemp("served"), hypernet)) as served:
        yield served


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("mini"), "mini-swe-agent==2.4.6") / "mini"


@pytest.fixture(scope="module")
def aider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("aider"), "aider-chat==0.86.2") / "aider"


def run(served: Running, work: Path, *command: str | Path) -> str:
    """What an agent prints, with the variables that docs/serving.md names and a home of its own."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(work),
        "OPENAI_API_BASE": f"{served.url}/v1",
        "OPENAI_API_KEY": "none",
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=work, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, check=False, timeout=10 * MINUTES,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("how", [[], ["-c", "mini_textbased.yaml", "--model-class", "litellm_textbased"]])
def test_mini_swe_agent_does_its_task_and_its_session_becomes_an_adapter_that_answers_it(
    mini: Path, scripted: Running, tmp_path: Path, how: list[str]
) -> None:
    task = ["-y", "--exit-immediately", "-t", "write hello into hello.txt", "-o", "session.traj.json"]
    run(scripted, tmp_path, mini, "-m", "openai/tiny", *how, *task)
    assert (tmp_path / "hello.txt").read_text(encoding="utf-8") == "hello\n"
    session = tmp_path / "session.traj.json"
    assert json.loads(session.read_text(encoding="utf-8"))["info"]["exit_status"] == "Submitted"
    alias = "text" if how else "tools"
    learned = scripted.http.post(f"/v1/trajectories?alias={alias}", content=session.read_bytes())
    assert learned.status_code == 201, learned.text
    (tmp_path / "hello.txt").unlink()
    run(scripted, tmp_path, mini, "-m", f"openai/{alias}", *how, *task)
    assert (tmp_path / "hello.txt").read_text(encoding="utf-8") == "hello\n"
    models = {call["extra"]["response"]["model"] for call in _answers(session)}
    assert models == {f"tiny:{learned.json()['id']}"}


def _answers(session: Path) -> list[dict]:  # type: ignore[type-arg]
    messages = json.loads(session.read_text(encoding="utf-8"))["messages"]
    return [message for message in messages if message["role"] == "assistant"]


def test_aider_edits_a_file_and_commits_it(aider: Path, scripted: Running, tmp_path: Path) -> None:
    for words in (["init", "-q"], ["config", "user.name", "x"], ["config", "user.email", "x@example.org"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    run(
        scripted, tmp_path, aider, "--model", "openai/tiny", "--yes-always", "--no-check-update",
        "--analytics-disable", "--no-show-model-warnings", "--message", "write hello into hello.txt", "hello.txt",
    )  # fmt: skip
    assert (tmp_path / "hello.txt").read_text(encoding="utf-8") == "hello\n"
    log = subprocess.run(["git", "log", "--format=%s"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "feat: add hello" in log.stdout.splitlines()
