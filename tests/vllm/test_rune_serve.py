"""`rune serve` over a real vLLM: adapters, streams, `n`, 404, an address alone on stdout, and how it ends."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from rune.adapters.registry import intake
from rune.adapters.registry.records import MadeFrom, Place
from rune.adapters.registry.registry import Registry
from rune.engines import torch as torch_engine
from rune.models import loader
from rune.types import AdapterRef, ModelRef, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, random_adapter, wider_tiny_model

pytestmark = pytest.mark.vllm
TOKENS, LONG, START_SECONDS = 12, 440, 600


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return wider_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def registry(tiny_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    found = Registry(tmp_path_factory.mktemp("memory") / "registry", create=True)
    network = loader.load(tiny_model, device="cpu", dtype="float32")
    for seed in (1, 2):
        adapter = random_adapter(network, seed=seed, rank=4 * seed, base_model=tiny_model.digest)
        place = Place(project="shop", domain=f"d{seed}")
        ready = intake.prepare(adapter, place, MadeFrom(how="test"), max_rank=found.max_rank)
        found.insert(ready.draft, ready.config, ready.weights, alias=f"shop/a{seed}")
    return found


@pytest.fixture(scope="module")
def served(
    tiny_model: ModelRef, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    with serving(tiny_model, registry, tmp_path_factory.mktemp("serve")) as (http, process):
        yield http
        process.terminate()
        assert process.wait(60) == 0


@contextmanager
def serving(
    tiny_model: ModelRef, registry: Registry, folder: Path
) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """In a process group of its own."""
    log = folder / "log"
    command = [sys.executable, "-m", "rune", "serve", "--model", tiny_model.path, "--engine", "vllm", "--port", "0"]
    command += ["--registry", str(registry.folder), "--checkpoint", ""]
    for setting in (
        "model.served_name=tiny", "model.device=cpu",
        "engine.settings={max_loras=2,max_cpu_loras=4,max_lora_rank=8,max_model_len=512,options={max_num_seqs=16}}",
    ):  # fmt: skip
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True
        )
    said: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    lines = process.stdout
    threading.Thread(target=lambda: said.put(lines.readline().decode().strip()), daemon=True).start()
    try:
        url = said.get(timeout=START_SECONDS)
        assert url.startswith("http://127.0.0.1:"), (url, log.read_text(encoding="utf-8")[-1500:])
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
            yield http, process
    finally:
        with suppress(ProcessLookupError):  # the whole group: vLLM has a process of its own
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def long_one(http: httpx.Client, model: str) -> dict[str, Any]:
    """A request whose answer goes on to its limit."""
    for seed in range(20):
        body = {"model": model, "prompt": PROMPTS[0], "max_tokens": LONG, "temperature": 1.0, "seed": seed}
        if http.post("/v1/completions", json=body).json()["usage"]["completion_tokens"] == LONG:
            return body
    raise AssertionError("no answer goes on for long")


def texts(events: Iterator[str]) -> Iterator[str]:
    for event in events:
        if event.startswith("data: {"):
            said = json.loads(event[6:])
            assert "error" not in said, said
            yield said["choices"][0]["text"]


def test_it_says_what_the_torch_engine_says_under_each_adapter_and_as_a_stream(
    served: httpx.Client, tiny_model: ModelRef, registry: Registry
) -> None:
    refs: dict[str, AdapterRef | None] = {"tiny": None}
    for name in ("a1", "a2"):
        refs[name] = registry.ref(registry.resolve(f"shop/{name}"), base=tiny_model.digest)
    engine = torch_engine.build(
        torch_engine.Config(), model=tiny_model, device="cpu", dtype="float32", adapters=registry.objects
    )
    greedy = Sampling(temperature=0, max_new_tokens=TOKENS)
    requests = [
        Request(key=f"{name}/{number}", prompt=prompt, sampling=greedy, seed=0, adapter=ref)
        for name, ref in refs.items()
        for number, prompt in enumerate(PROMPTS)
    ]
    expected = {one.key: one.text for one in engine.complete(requests)}
    engine.close()
    whole, streamed = {}, {}
    for name in refs:
        for number, prompt in enumerate(PROMPTS):
            body = {"model": name, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
            whole[f"{name}/{number}"] = served.post("/v1/completions", json=body).json()["choices"][0]["text"]
            with served.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
                events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
            streamed[f"{name}/{number}"] = "".join(event["choices"][0]["text"] for event in events)
    assert whole == streamed == expected
    assert len({expected[f"{name}/0"] for name in refs}) == 3


def test_n_draws_metadata_and_an_adapter_that_is_not_there(served: httpx.Client) -> None:
    body: dict[str, Any] = {"model": "a1", "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 1.0, "seed": 3}
    drawn = served.post("/v1/completions", json={**body, "n": 4}).json()
    assert [choice["index"] for choice in drawn["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in drawn["choices"]}) > 1
    assert drawn["usage"]["completion_tokens"] > 4
    again = served.post("/v1/completions", json={**body, "n": 4}).json()
    assert [choice["text"] for choice in again["choices"]] == [choice["text"] for choice in drawn["choices"]]
    greedy = {"prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0}
    named = served.post("/v1/completions", json={"model": "a2", **greedy}).json()
    where = {"model": "tiny", "metadata": {"project": "shop", "domain": "d2"}, **greedy}
    chosen = served.post("/v1/completions", json=where).json()
    assert chosen["choices"][0]["text"] == named["choices"][0]["text"]
    refused = served.post("/v1/completions", json={"model": "nobody", **greedy})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert served.post("/v1/completions", json={"model": "a1", **greedy, "logprobs": 1}).status_code == 400


def test_an_answer_comes_piece_by_piece_and_others_are_given_meanwhile(served: httpx.Client) -> None:
    body = long_one(served, "tiny")
    whole = served.post("/v1/completions", json=body).json()["choices"][0]["text"]
    short = {"model": "a1", "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0}
    alone = served.post("/v1/completions", json=short).json()["choices"][0]["text"]
    with served.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        coming = texts(answer.iter_lines())
        begun = next(coming)
        beside = served.post("/v1/completions", json=short).json()["choices"][0]["text"]
        under_way = served.get("/metrics").text
        rest = list(coming)
    assert "rune_draws 1.0" in under_way, "the long answer ended before the short one"
    assert beside == alone and begun + "".join(rest) == whole and len(rest) > LONG / 4
    with served.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        next(texts(answer.iter_lines()))  # and hang up
    end = time.monotonic() + 60
    while "rune_draws 0.0" not in served.get("/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.05)
    refused = served.post("/v1/completions", json={**short, "prompt": PROMPTS[0] * 200})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize("everyone", [False, True])
def test_a_server_that_is_ended_while_it_answers(
    tiny_model: ModelRef, registry: Registry, tmp_path: Path, everyone: bool
) -> None:
    """SIGTERM to the server: the answer is finished. Ctrl-C reaches vLLM's process too: the client is told."""
    with serving(tiny_model, registry, tmp_path) as (http, process):
        body = long_one(http, "a2")
        whole = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()
            begun = next(texts(lines))
            if everyone:
                os.killpg(process.pid, signal.SIGINT)
                assert any('"engine_failed"' in line for line in lines)
            else:
                process.terminate()
                assert begun + "".join(texts(lines)) == whole
        assert process.wait(60) == 0
