"""`rune serve` over a real vLLM: adapters of the registry, streams, `n`, 404, and an address alone on stdout."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
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
TOKENS, START_SECONDS = 12, 600


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
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "rune", "serve", "--model", tiny_model.path, "--engine", "vllm", "--port", "0"]
    command += ["--registry", str(registry.folder), "--checkpoint", ""]
    for setting in (
        "model.served_name=tiny", "model.device=cpu",
        "engine.settings={max_loras=2,max_cpu_loras=4,max_lora_rank=8,max_model_len=512,options={max_num_seqs=16}}",
    ):  # fmt: skip
        command += ["--set", setting]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
    said: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    lines = process.stdout
    threading.Thread(target=lambda: said.put(lines.readline().decode().strip()), daemon=True).start()
    try:
        url = said.get(timeout=START_SECONDS)
        assert url.startswith("http://127.0.0.1:"), (url, log.read_text(encoding="utf-8")[-1500:])
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as http:
            yield http
    finally:
        process.terminate()
        assert process.wait(60) == 0


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
