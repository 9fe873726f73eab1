"""What takes minutes: a server that is killed while it registers, and everything that schemathesis thinks of."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rune.adapters.registry.registry import Registry
from rune.types import ModelRef
from tests.serving.processes import ServerProcess
from tests.serving.world import PATIENCE, Running, configured, running, trajectory

pytestmark = pytest.mark.slow


def test_killed_while_it_registers_it_loses_nothing_that_it_said_is_there(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    rng = random.Random(3)
    said: dict[str, int] = {}
    for life in range(4):
        server = ServerProcess(tiny_model, hypernet, tmp_path)
        numbers = iter(range(1000 * life, 1000 * life + 900))

        def post(numbers: Any = numbers, url: str = server.url) -> None:
            with httpx.Client(base_url=url, timeout=PATIENCE) as http:
                for number in numbers:
                    try:
                        answer = http.post("/v1/trajectories", content=trajectory(number))
                    except httpx.HTTPError:
                        return
                    if answer.status_code in (200, 201):
                        said[answer.json()["id"]] = number

        lock = threading.Lock()
        numbers = iter(_locked(numbers, lock))
        threads = [threading.Thread(target=post, args=(numbers,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        before = len(said)
        ends = time.monotonic() + PATIENCE
        while len(said) < before + 10 and time.monotonic() < ends:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        for thread in threads:
            thread.join(PATIENCE)
    assert len(said) >= 12
    registry = Registry(tmp_path / "registry")
    assert registry.verify() == []
    server = ServerProcess(tiny_model, hypernet, tmp_path)
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        for name in said:
            body = {"model": name, "prompt": "x", "max_tokens": 2, "temperature": 0}
            assert http.post("/v1/completions", json=body).status_code == 200
        assert http.get("/v1/adapters").json()["total"] >= len(said)
        with http.stream("POST", "/v1/completions", json={**body, "max_tokens": 200, "stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert server.process.wait(PATIENCE) == 0
    registry.gc()
    assert registry.verify() == [] and not registry.objects.unfinished()
    for line in (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines():
        if line.startswith("{"):
            assert json.loads(line)["status"] < 500


def _locked(numbers: Any, lock: threading.Lock) -> Any:
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        yield number


@pytest.fixture(scope="module")
def served_with_tools(
    tool_model: ModelRef, hypernet: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    with running(configured(tool_model, tmp_path_factory.mktemp("tools"), hypernet)) as served:
        for number, place in ((1, "project=shop&alias=sums"), (2, "project=shop&alias=shop-wide")):
            assert served.http.post(f"/v1/trajectories?{place}", content=trajectory(number)).status_code == 201
        yield served


@pytest.mark.parametrize("fitting", [False, True])
def test_whatever_schemathesis_thinks_of_is_answered_below_500_and_as_the_page_says(
    served_with_tools: Running, fitting: bool, tmp_path: Path
) -> None:
    """Once as the page has it, and once with what fits together, so that it comes as far as an answer."""
    served = served_with_tools
    page = served.http.get("/openapi.json").json()
    for path in ("/v1/completions", "/v1/chat/completions"):  # names that are there, so that it comes further
        fields = page["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]
        fields["model"] = {"type": "string", "enum": ["tiny", "sums", "tiny:shop-wide", "nobody"]}
        if "messages" in fields and fitting:
            plain = {"role": {"enum": ["user", "system"]}, "content": {"type": "string", "minLength": 1}}
            fields["messages"]["items"] = {
                "type": "object", "properties": plain, "required": list(plain), "additionalProperties": False,
            }  # fmt: skip
            del fields["stream_options"]  # only for a stream
    (tmp_path / "openapi.json").write_text(json.dumps(page), encoding="utf-8")
    command = [
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
        str(tmp_path / "openapi.json"), "--url", served.url, "--max-examples", "40", "--seed", "1",
        "--request-timeout", "300", "--phases", "coverage,fuzzing",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert [line for line in served.lines() if line["status"] >= 500] == []
    if not fitting:
        return
    answered = [line for line in served.lines() if line["status"] == 200 and line["route"] in LANGUAGE]
    assert {line["route"] for line in answered} == LANGUAGE


LANGUAGE = {"/v1/completions", "/v1/chat/completions"}
