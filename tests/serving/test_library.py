"""The memory from Python and from the shell: a session in, an adapter out, an answer under it; no server."""

from __future__ import annotations

from pathlib import Path

import pytest

import rune
from rune.adapters.registry.registry import Registry
from rune.cli.main import main
from rune.corpus import reading
from rune.errors import AdapterError, DataError
from rune.serving.settings import Config
from rune.types import ModelRef
from tests.serving.world import configured, running, trajectory

QUESTION = "Write f(x), which adds 1 in the served style."


@pytest.fixture
def config(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> Config:
    return configured(tiny_model, tmp_path, hypernet)


def session(tmp_path: Path, number: int) -> Path:
    path = tmp_path / f"session{number}.jsonl"
    path.write_bytes(trajectory(number))
    return path


def test_what_is_remembered_changes_the_answer_and_a_server_gives_the_same(config: Config, tmp_path: Path) -> None:
    path = session(tmp_path, 1)
    ref = rune.remember(path, project="shop", alias="lesson", config=config)
    (same,) = reading.read(path)
    assert rune.remember(same, project="shop", config=config) == ref
    bare = rune.chat(QUESTION, max_tokens=40, config=config)
    worn = rune.chat(QUESTION, memory=ref, max_tokens=40, config=config)
    assert worn != bare
    assert rune.chat([("user", QUESTION)], memory="lesson", max_tokens=40, config=config) == worn
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 40, "temperature": 0}
    with running(config) as served:
        answer = served.http.post("/v1/chat/completions", json={"model": "lesson", **body}).json()
    assert answer["choices"][0]["message"]["content"] == worn


def test_an_adapter_that_is_not_there_is_an_error_and_never_the_base(config: Config) -> None:
    with pytest.raises(AdapterError, match="does not exist"):
        rune.chat("hi", memory="nobody", config=config)
    with pytest.raises(DataError, match="nothing to remember"):
        rune.remember([], config=config)
    with pytest.raises(AttributeError, match="no attribute 'remeber'"):
        rune.remeber  # noqa: B018


def test_remembering_by_the_command_line(
    config: Config, tiny_model: ModelRef, hypernet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["remember", str(session(tmp_path, 2)), str(session(tmp_path, 3)), "--project", "shop", "--domain", "d"]
    command += ["--model", tiny_model.path, "--checkpoint", str(hypernet), "--registry", str(config.registry)]
    assert main(command) == 0
    digest = capsys.readouterr().out.strip()
    registry = Registry(config.registry)
    assert str(registry.get(digest).place) == "shop/d"
    assert [source.trajectory_id for source in registry.sources(digest)] == ["t2", "t3"]
    assert main([*command[:1], str(tmp_path / "none.jsonl"), *command[3:]]) == 2
    assert capsys.readouterr().err.count("\n") == 1
