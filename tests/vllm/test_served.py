"""A served vLLM behind the openai engine: adapters loaded over its admin route, at run time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.engines import openai
from rune.engines import torch as torch_engine
from rune.errors import AdapterError
from rune.models import loader
from rune.types import AdapterRef, ModelRef, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, random_adapter, wider_tiny_model

pytestmark = pytest.mark.vllm
GREEDY = Sampling(temperature=0.0, max_new_tokens=12)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return wider_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def url(tiny_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("vllm") / "server.log").open("w+")
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", tiny_model.path,
        "--served-model-name", tiny_model.name, "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--enable-lora", "--max-loras", "2", "--max-cpu-loras", "4", "--max-lora-rank", "8", "--max-model-len", "512",
    ]  # fmt: skip
    server = subprocess.Popen(
        command, stdout=log, stderr=log, env=os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    )
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if server.poll() is not None:
                log.seek(0)
                pytest.fail(f"vLLM did not start: {log.read()[-1500:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        else:
            pytest.fail("vLLM did not answer within 300 s")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def adapters(tiny_model: ModelRef, root: Path) -> list[AdapterRef]:
    loaded = loader.load(tiny_model, device="cpu", dtype="float32")
    return [
        peft.write_peft(root / str(s), random_adapter(loaded, seed=s, rank=4 * s, base_model=tiny_model.digest))
        for s in (1, 2)
    ]


def test_a_served_vllm_says_what_the_torch_engine_says(
    url: str, tiny_model: ModelRef, adapters: list[AdapterRef], root: Path
) -> None:
    """Another implementation of the same mathematics: greedy texts agree, adapter by adapter."""
    here: dict[str, Any] = {"model": tiny_model, "device": "cpu", "dtype": "float32", "adapters": Folders(root)}
    engine = openai.build(openai.Config(url=url, dialect="vllm"), **here)
    requests = [
        Request(key=f"{i}/{j}", prompt=prompt, sampling=GREEDY, seed=0, adapter=adapter)
        for i, prompt in enumerate(PROMPTS)
        for j, adapter in enumerate([None, *adapters])
    ]
    served = {completion.key: completion.text for completion in engine.complete(requests)}
    ours = torch_engine.build(torch_engine.Config(), **here)
    direct = {completion.key: completion.text for completion in ours.complete(requests)}
    assert served == direct
    assert len(set(served.values())) > 3
    with pytest.raises(AdapterError):
        list(engine.complete([replace(requests[1], adapter=replace(adapters[0], adapter_id="9" * 64))]))
    engine.close()
