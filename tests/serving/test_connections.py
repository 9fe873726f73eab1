"""Who closes a connection: the server only one that is idle, and bench/serve.py's clients only their own."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpcore._async.http11
import httpx
import pytest
from bench import serve as bench
from httpx._config import DEFAULT_LIMITS

from rune.serving.settings import Serve
from rune.types import ModelRef
from tests.serving.world import PATIENCE, configured, running, slowly


def test_an_idle_connection_is_kept_longer_than_clients_keep_theirs() -> None:
    assert DEFAULT_LIMITS.keepalive_expiry is not None  # of the openai client too
    assert Serve().keep_alive_seconds > 90 > DEFAULT_LIMITS.keepalive_expiry  # 90 s: Go's http.Transport


def test_no_answer_waits_for_a_client_to_acknowledge_its_beginning(tiny_model: ModelRef, tmp_path: Path) -> None:
    """With Nagle's algorithm the body of each answer came 40 ms after its head."""
    with running(configured(tiny_model, tmp_path, None)) as served:
        assert served.http.get("/healthz").text == "ok"
        (connection,) = served.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_an_idle_connection_is_closed_and_one_with_a_request_under_way_is_not(
    tiny_model: ModelRef, tmp_path: Path
) -> None:
    with running(configured(tiny_model, tmp_path, None, keep_alive_seconds=0.2)) as served:
        where = urlsplit(served.url)
        with socket.create_connection((where.hostname, where.port), timeout=PATIENCE) as idle:
            idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with idle.makefile("rb") as lines:
                assert lines.read().endswith(b"ok")  # until the server ends it; a reset would raise
        served.service.engine.decoder.ends = frozenset()  # type: ignore[attr-defined]
        slowly(served, seconds=0.02)
        ask = {"model": "tiny", "prompt": "x", "max_tokens": 30}
        with httpx.Client(base_url=served.url, timeout=PATIENCE) as http:
            for stream in (False, True):  # each longer than the connection would be kept if it were idle
                http.get("/healthz")
                started = time.monotonic()
                answer = http.post("/v1/completions", json={**ask, "stream": stream})
                assert answer.status_code == 200 and time.monotonic() - started > 0.2
                assert answer.text.endswith("data: [DONE]\n\n" if stream else "}")


def test_a_client_of_the_bench_that_stands_still_for_long_closes_no_connection_with_a_request_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A busy machine holds the clients up while their connections grow too old to be kept (encode/httpcore#1110)."""
    rng, late = random.Random(1), [0.0]

    def clock() -> float:
        late[0] += 6.0 * (rng.random() < 0.02)
        return time.monotonic() + late[0]

    monkeypatch.setattr(httpcore._async.http11, "time", SimpleNamespace(monotonic=clock))
    hung_up, served = [0], [0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                try:
                    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
                    await asyncio.sleep(rng.uniform(0, 0.01))
                    body = json.dumps({"choices": [{"text": "right"}]}).encode()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                    await writer.drain()
                    served[0] += 1
                except (asyncio.IncompleteReadError, ConnectionError):
                    hung_up[0] += 1
                    raise
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def both() -> bench.Found:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            args = argparse.Namespace(clients=40, seconds=1.5)
            expected = {(name, prompt): "right" for name in ("", "a") for prompt in bench.PROMPTS}
            found, _ = await bench.crowd(args, f"http://127.0.0.1:{port}", os.getpid(), ["a"], expected)
            return found

    found = asyncio.run(both())
    assert served[0] > 40 and late[0] > 6  # else nothing was shown
    assert dict(found.errors) == {} and hung_up == [0]
