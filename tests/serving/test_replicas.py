"""The server over two replicas on this machine: streams, adapters, and replicas that die."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.serving.settings import Engine
from rune.types import ModelRef
from tests.serving.world import Running, configured, running, trajectory, until

pytestmark = pytest.mark.check

LONG = {"prompt": "def f(x):\n", "max_tokens": 300, "temperature": 0}


@pytest.fixture(scope="module")
def two(tiny_model: ModelRef, hypernet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    pytest.importorskip("ray")
    config = configured(tiny_model, tmp_path_factory.mktemp("replicas"), hypernet)
    settings = {"actors": 2, "cpus_per_actor": 0.5, "settings": {"max_rows": 8, "window": 512}}
    with running(replace(config, engine=Engine(name="ray", settings=settings))) as served:
        for number in range(2):
            made = served.http.post(f"/v1/trajectories?alias=a{number}", content=trajectory(number))
            assert made.status_code == 201, made.text
        yield served


def kill(served: Running, *numbers: int) -> None:
    """And wait until it is known."""
    import ray

    fleet = served.service.engine.fleet  # type: ignore[attr-defined]
    killed = [(fleet.replicas[number], fleet.replicas[number].actor) for number in numbers]
    for _, actor in killed:
        ray.kill(actor)
    until(lambda: all(replica.actor is not actor for replica, actor in killed))


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def text(served: Running, name: str) -> str:
    return str(served.http.post("/v1/completions", json={"model": name, **LONG}).json()["choices"][0]["text"])


def test_answers_come_token_by_token_and_each_is_its_adapters(two: Running) -> None:
    whole = {name: text(two, name) for name in ("tiny", "a0", "a1")}
    assert len(set(whole.values())) == 3
    for name, expected in whole.items():
        with two.http.stream("POST", "/v1/completions", json={"model": name, "stream": True, **LONG}) as answer:
            parts = [event["choices"][0]["text"] for event in events(answer.iter_lines())]
        assert len(parts) > 3 and "".join(parts) == expected


def test_log_probabilities_come_through(two: Running) -> None:
    answer = two.http.post("/v1/completions", json={"model": "a0", "prompt": "x", "max_tokens": 3, "logprobs": 1})
    assert answer.status_code == 200 and answer.json()["choices"][0]["logprobs"]["token_logprobs"]


def test_metrics_and_adapters_show_what_all_replicas_hold(two: Running) -> None:
    text(two, "a0"), text(two, "a1")
    assert two.metric("rune_replicas") == 2 and two.metric("rune_adapters_resident") == 2
    assert {entry["resident"] for entry in two.http.get("/v1/adapters").json()["data"]} == {True}


def test_a_stream_whose_replica_dies_goes_on_and_nothing_registered_is_lost(two: Running) -> None:
    expected = text(two, "a0")
    with two.http.stream("POST", "/v1/completions", json={"model": "a0", "stream": True, **LONG}) as answer:
        coming = events(answer.iter_lines())
        parts = [next(coming)["choices"][0]["text"]]
        kill(two, 0, 1)
        parts += [event["choices"][0]["text"] for event in coming]
    assert "".join(parts) == expected
    until(lambda: two.metric("rune_replicas") == 2)
    assert text(two, "a0") == expected and text(two, "a1") != expected
    assert two.http.get("/v1/adapters").json()["total"] == 2


def test_where_it_may_not_be_drawn_again_the_client_hears_it_in_openais_words(
    two: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: two.metric("rune_replicas") == 2)
    monkeypatch.setattr(two.service.engine.fleet, "_restarts", 0)  # type: ignore[attr-defined]
    with two.http.stream("POST", "/v1/completions", json={"model": "a0", "stream": True, **LONG}) as answer:
        coming = events(answer.iter_lines())
        assert next(coming)["choices"]
        kill(two, 0, 1)
        *_, last = coming
    assert last["error"]["code"] == "engine_failed" and "ask again" in last["error"]["message"]
    until(lambda: two.metric("rune_replicas") == 2)
    assert text(two, "a0")


def test_log_probabilities_that_were_streaming_end_with_an_error(two: Running) -> None:
    until(lambda: two.metric("rune_replicas") == 2)
    body = {"model": "a0", "stream": True, "logprobs": 1, **LONG}
    with two.http.stream("POST", "/v1/completions", json=body) as answer:
        coming = events(answer.iter_lines())
        assert next(coming)["choices"]
        kill(two, 0, 1)
        *_, last = coming
    assert last["error"]["code"] == "engine_failed"
    until(lambda: two.metric("rune_replicas") == 2)
