"""The server over engines that draw lists, and over another server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rune.serving.settings import Engine
from rune.types import ModelRef
from tests.serving.world import Running, configured, running, trajectory

ANSWERS = {"answers": {"add": ["one two", "three four"]}, "default": ["anything else"], "read_adapters": True}


@pytest.fixture(scope="module")
def scripted(tiny_model: ModelRef, hypernet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    config = configured(tiny_model, tmp_path_factory.mktemp("scripted"), hypernet)
    with running(replace(config, engine=Engine(name="scripted", settings=ANSWERS))) as served:
        yield served


def test_a_list_engine_answers_whole_and_streamed(scripted: Running) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "add"}], "n": 2, "seed": 0}
    whole = scripted.http.post("/v1/chat/completions", json=body).json()
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["one two", "three four"]
    streamed = scripted.http.post("/v1/chat/completions", json={**body, "stream": True}).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert events.pop() == "[DONE]"
    texts = ["", ""]
    for event in map(json.loads, events):
        texts[event["choices"][0]["index"]] += event["choices"][0]["delta"].get("content", "")
    assert texts == ["one two", "three four"]


def test_an_adapter_learned_here_is_worn_there(scripted: Running) -> None:
    made = scripted.http.post("/v1/trajectories?alias=a", content=trajectory(1)).json()
    assert made["resident"] is None  # this engine does not say
    answer = scripted.http.post("/v1/completions", json={"model": "a", "prompt": "x"}).json()
    assert answer["choices"][0]["text"] == "anything else" and answer["model"] == f"tiny:{made['id']}"


def test_log_probabilities_are_refused_where_the_engine_reports_none(scripted: Running) -> None:
    answer = scripted.http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "logprobs": 1})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "logprobs"


def test_a_server_over_a_server_gives_the_first_ones_answers(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    first_config = configured(tiny_model, tmp_path / "first", None, folders=(str(tmp_path),))
    with running(first_config) as first:
        settings = {"url": first.url, "served_name": "tiny", "dialect": "vllm", "tries": 1}
        second_config = configured(tiny_model, tmp_path / "second", hypernet)
        with running(replace(second_config, engine=Engine(name="openai", settings=settings))) as second:
            second.http.post("/v1/trajectories?alias=a", content=trajectory(2))
            body = {"prompt": "def f(x):\n", "max_tokens": 12, "temperature": 0}
            worn = second.http.post("/v1/completions", json={"model": "a", **body})
            assert worn.status_code == 200, worn.text
            base = second.http.post("/v1/completions", json={"model": "tiny", **body}).json()
            direct = first.http.post("/v1/completions", json={"model": "tiny", **body}).json()
            assert base["choices"][0]["text"] == direct["choices"][0]["text"] != worn.json()["choices"][0]["text"]
            assert first.http.get("/v1/adapters").json()["total"] == 1
