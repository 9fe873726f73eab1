"""A server that is killed (SIGKILL) in the middle: what it said is there is there, and nothing is there by halves."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from rune.adapters.registry.registry import Registry
from rune.types import ModelRef
from tests.serving.processes import ServerProcess
from tests.serving.world import PATIENCE, trajectory, until

pytestmark = pytest.mark.check
ASK: dict[str, Any] = {"prompt": "def f(x):\n", "max_tokens": 12, "temperature": 0}
SECRET = "only-in-the-half-that-was-sent"


def client(server: ServerProcess) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=PATIENCE)


def text(http: httpx.Client, model: str) -> str:
    answer = http.post("/v1/completions", json={"model": model, **ASK})
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["text"]
    return found


def learning(http: httpx.Client) -> bool:
    return "rune_learning 1.0" in http.get("/metrics").text


def test_killed_in_a_stream_in_an_upload_and_in_a_registration(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    kept = f"serve.trajectories={str(tmp_path / 'kept')!r}"

    server = ServerProcess(tiny_model, hypernet, tmp_path, kept)
    with client(server) as http:
        said = {}
        for number in range(3):
            answer = http.post(f"/v1/trajectories?project=shop&alias=lesson{number}", content=trajectory(number))
            assert answer.status_code == 201
            said[answer.json()["id"]] = text(http, f"shop/lesson{number}")
        long = {"model": "shop/lesson0", "prompt": "x", "n": 16, "max_tokens": 480, "temperature": 1, "stream": True}
        with (
            pytest.raises(httpx.TransportError),  # it breaks off; nobody takes it for a whole answer
            http.stream("POST", "/v1/completions", json=long) as answer,
        ):
            for number, line in enumerate(answer.iter_lines()):
                assert line != "data: [DONE]"
                if number == 4:
                    assert server.end(signal.SIGKILL) == -signal.SIGKILL

    server = ServerProcess(tiny_model, hypernet, tmp_path, kept)
    with client(server) as http:
        assert {name: text(http, name) for name in said} == said
        where = urlsplit(server.url)
        half = trajectory(7, secret=SECRET)[:-60]
        head = f"POST /v1/trajectories HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(half) + 60}\r\n\r\n"
        with socket.create_connection((where.hostname, where.port), timeout=PATIENCE) as upload:
            upload.sendall(head.encode() + half)
            until(lambda: learning(http))
            assert server.end(signal.SIGKILL) == -signal.SIGKILL
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET.encode() not in everything

    server = ServerProcess(tiny_model, hypernet, tmp_path, kept)
    with client(server) as http:
        assert http.get("/v1/adapters").json()["total"] == len(said)

        def post() -> None:
            with client(server) as own, contextlib.suppress(httpx.TransportError):
                for number in range(100, 1000):
                    answer = own.post("/v1/trajectories", content=trajectory(number))
                    said[answer.json()["id"]] = text(own, answer.json()["id"])

        posting = threading.Thread(target=post)
        posting.start()
        until(lambda: len(said) >= 5 and learning(http))
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        posting.join(PATIENCE)

    registry = Registry(tmp_path / "registry")
    assert registry.verify() == []
    server = ServerProcess(tiny_model, hypernet, tmp_path, kept)
    with client(server) as http:
        assert {name: text(http, name) for name in said} == said
        every = [adapter["id"] for adapter in http.get("/v1/adapters?limit=1000").json()["data"]]
        assert set(said) <= set(every) and all(text(http, name) for name in every)
        again = http.post("/v1/trajectories?project=shop&alias=lesson0", content=trajectory(0))
        assert again.status_code == 200 and again.json()["id"] in said
    assert server.end(signal.SIGTERM) == 0
    registry.gc()
    assert registry.verify() == [] and not registry.objects.unfinished()
    assert set(every) <= {path.stem for path in (tmp_path / "kept").glob("*.jsonl")}
    # A link is to what a killed server held in memory.
    left = (path for path in (tmp_path / "tmp").rglob("*") if not path.is_symlink())
    assert [path for path in left if path.is_file()] == []
