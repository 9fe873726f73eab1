"""How much, how long, how many; clients that hang up; and a server that is told to stop."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from rune.cli.main import main
from rune.errors import ConfigError
from rune.serving import keys, server, settings
from rune.serving.drawing import Admission
from rune.serving.keys import OWNER, Client
from rune.serving.refusals import Refusal
from rune.types import ModelRef
from tests.serving.world import PATIENCE, Running, configured, running, slowly, trajectory, until

LONG: dict[str, Any] = {"model": "tiny", "prompt": "def f(x):\n", "max_tokens": 480, "temperature": 1}

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(tiny_model: ModelRef, tmp_path: Path) -> Iterator[Running]:
    """Two draws at once, and a model that never ends by itself."""
    with running(configured(tiny_model, tmp_path, None, max_draws=2)) as served:
        served.service.engine.decoder.ends = frozenset()  # type: ignore[attr-defined]
        yield served


def test_beyond_the_limit_a_client_is_told_when_to_come_again(small: Running) -> None:
    slowly(small)
    with small.http.stream("POST", "/v1/completions", json={**LONG, "n": 2, "stream": True}) as first:
        lines = first.iter_lines()  # held: one that is dropped closes the connection
        next(lines)
        refused = small.http.post("/v1/completions", json={**LONG, "max_tokens": 1})
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        error = refused.json()["error"]
        assert error["type"] == "rate_limit_error" and error["code"] == "rate_limit_exceeded"
        assert small.metric("rune_draws") == 1  # requests
    until(lambda: small.http.post("/v1/completions", json={**LONG, "max_tokens": 1}).status_code == 200)


def test_the_openai_client_waits_as_it_is_told_and_gets_through(small: Running) -> None:
    import openai

    slowly(small)
    with (
        openai.OpenAI(base_url=f"{small.url}/v1", api_key="x", max_retries=20, timeout=PATIENCE) as client,
        small.http.stream("POST", "/v1/completions", json={**LONG, "n": 2, "max_tokens": 60, "stream": True}) as first,
    ):
        lines = first.iter_lines()  # held: one that is dropped closes the connection
        next(lines)
        found = client.completions.create(model="tiny", prompt="x", max_tokens=1)
    assert found.choices
    until(lambda: 429 in [line["status"] for line in small.lines()])


def test_a_client_that_hangs_up_in_a_stream_frees_its_place(small: Running) -> None:
    slowly(small)
    with small.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert small.service.engine.stats.rows_alive == 1  # type: ignore[attr-defined]
    until(lambda: small.service.engine.stats.rows_alive == 0)  # type: ignore[attr-defined]
    assert small.service.engine.stats.steps < 400  # type: ignore[attr-defined]
    until(lambda: any(line.get("hung_up") for line in small.lines()))
    assert small.metric("rune_cancelled_requests_total") == 1 and small.metric("rune_draws") == 0


def test_a_client_that_hangs_up_before_its_answer_frees_its_place(small: Running) -> None:
    slowly(small)
    with pytest.raises(httpx.ReadTimeout):
        small.http.post("/v1/completions", json=LONG, timeout=0.3)
    until(lambda: any(line.get("hung_up") and line["status"] == 499 for line in small.lines()))
    until(lambda: small.service.engine.stats.rows_alive == 0)  # type: ignore[attr-defined]
    assert small.service.engine.stats.steps < 400  # type: ignore[attr-defined]


def test_an_answer_that_takes_too_long_ends_with_408_and_a_stream_with_an_error(
    tiny_model: ModelRef, tmp_path: Path
) -> None:
    with running(configured(tiny_model, tmp_path, None, request_seconds=0.2)) as served:
        served.service.engine.decoder.ends = frozenset()  # type: ignore[attr-defined]
        slowly(served)
        answer = served.http.post("/v1/completions", json=LONG)
        assert answer.status_code == 408 and answer.json()["error"]["code"] == "timeout"
        with served.http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as streamed:
            assert streamed.status_code == 200
            *_, last = [line for line in streamed.iter_lines() if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        until(lambda: served.service.engine.stats.rows_alive == 0)  # type: ignore[attr-defined]


def test_a_body_that_does_not_come_is_not_waited_for(tiny_model: ModelRef, tmp_path: Path) -> None:
    with running(configured(tiny_model, tmp_path, None, upload_seconds=0.2)) as served:
        where = urlsplit(served.url)
        with socket.create_connection((where.hostname, where.port), timeout=PATIENCE) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
            assert connection.recv(1000).split(b" ")[1] == b"408"
        assert served.http.post("/v1/completions", json={**LONG, "max_tokens": 1}).status_code == 200


def test_trajectories_have_a_queue_of_their_own(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> None:
    with running(configured(tiny_model, tmp_path, hypernet, max_learning=1)) as served:
        memory = served.service.memory
        with memory._making:  # somebody's pass takes long
            slow = threading.Thread(target=lambda: served.http.post("/v1/trajectories", content=trajectory(1)))
            slow.start()
            until(lambda: served.metric("rune_learning") == 1)
            answer = served.http.post("/v1/trajectories", content=trajectory(2))
            assert answer.status_code == 429 and "retry-after" in answer.headers
            assert served.http.post("/v1/completions", json={**LONG, "max_tokens": 1}).status_code == 200
        slow.join(PATIENCE)
        assert served.http.post("/v1/trajectories", content=trajectory(2)).status_code == 201
        assert served.http.get("/v1/adapters").json()["total"] == 2


def test_a_trajectory_beyond_the_limit_is_refused(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> None:
    with running(configured(tiny_model, tmp_path, hypernet, trajectory_bytes=2000)) as served:
        assert served.http.post("/v1/trajectories", content=trajectory(1)).status_code == 201
        answer = served.http.post("/v1/trajectories", content=trajectory(1) * 10)
        assert answer.status_code == 413 and answer.json()["error"]["message"].startswith("the body has more than 2000")


def test_a_server_that_stops_finishes_what_is_under_way_and_takes_nothing_new(small: Running) -> None:
    slowly(small)
    ask = {**LONG, "max_tokens": 60, "stream": True}
    with small.http.stream("POST", "/v1/completions", json=ask) as answer:
        lines = answer.iter_lines()
        next(lines)
        late = httpx.Client(base_url=small.url)
        late.get("/healthz")  # a connection that is kept open
        small.server.service.edge.draining = True
        refused = late.post("/v1/completions", json=LONG)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert late.get("/readyz").status_code == 503 and late.get("/healthz").status_code == 200
        late.close()
        small.server.drain()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]" and json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"]
    small._thread.join(PATIENCE)
    assert not small._thread.is_alive()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{small.url}/healthz")


def test_a_broken_engine_is_503_and_not_ready(small: Running) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("device-side assert with a prompt in it")

    small.service.engine.decoder.device._forward = broken  # type: ignore[attr-defined]
    answer = small.http.post("/v1/completions", json=LONG)
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "server_error"
    assert small.http.get("/readyz").status_code == 503 and small.http.get("/healthz").status_code == 200
    assert small.http.post("/v1/completions", json=LONG).status_code == 503


def test_a_fault_of_ours_is_500_with_a_number_that_the_log_has_and_no_words_of_the_client(small: Running) -> None:
    def fault(*_: object, **__: object) -> None:
        raise KeyError("what the client wrote")

    small.service.memory.listed = fault  # type: ignore[assignment]
    answer = small.http.get("/v1/adapters")
    number = answer.headers["x-request-id"]
    assert answer.status_code == 500 and number in answer.json()["error"]["message"]
    until(lambda: any(line["id"] == number for line in small.lines()))  # it is written when the answer has gone
    (line,) = [line for line in small.lines() if line["id"] == number]
    assert line["error"] == "KeyError" and "test_limits.py" in line["at"] and "client wrote" not in str(line)


def test_admission_counts_all_and_each() -> None:
    gate, anna, ben = Admission(4, 3, "draws"), Client(name="anna", projects=("p",)), Client(name="ben", projects=())
    with gate.enter(anna, 2):
        with pytest.raises(Refusal) as caught, gate.enter(anna, 2):
            pass
        assert caught.value.status == 429 and "your key" in str(caught.value)
        with gate.enter(ben, 2), pytest.raises(Refusal) as caught, gate.enter(ben, 1):
            pass
        assert caught.value.status == 429 and "the server" in str(caught.value)
    with pytest.raises(Refusal) as caught, gate.enter(anna, 4):
        pass
    assert caught.value.status == 400
    assert gate.under_way == 0
    with pytest.raises(ZeroDivisionError), gate.enter(OWNER, 3):
        raise ZeroDivisionError
    with gate.enter(anna, 3):
        assert gate.under_way == 3


# --------------------------------------------------------------------------- settings and the command line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["serve.port=70000"], "port must be in 0 … 65535, found 70000"),
        (["serve.max_draws=0"], "max_draws must be at least 1, found 0"),
        (["serve.request_seconds=0"], "request_seconds must be above 0, found 0"),
        (["serve.max_draw=1"], "unknown key 'max_draw'; did you mean 'max_draws'?"),
        (["engin.name=torch"], "unknown key 'engin'; did you mean 'engine'?"),
        (["model.device=tpu"], "'tpu' is not one of auto, cpu, cuda"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line_before_anything_is_loaded(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        settings.load(None, changes)


def test_a_config_file_is_read_and_overridden(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text('[model]\nname = "m"\n[serve]\nport = 9\npins = ["a"]\n', encoding="utf-8")
    found = settings.load(path, ["serve.port=10"])
    assert (found.model.name, found.serve.port, found.serve.pins) == ("m", 10, ("a",))
    with pytest.raises(ConfigError, match="cannot read the config"):
        settings.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "x"], "invalid int value"),
        (["--set", "serve.port"], "expected section.key=value"),
        (["--model", "no-such-model"], "no model"),
        (["--set", "engine.name=vlm"], "no engine named 'vlm'; did you mean 'vllm'?"),
        (["--set", "engine.settings.max_row=1"], "unknown key 'max_row'; did you mean 'max_rows'?"),
        (["--host", "0.0.0.0"], "can be reached from other machines"),
    ],
)
def test_a_bad_start_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["serve", "--registry", str(tmp_path / "r"), *arguments])
    except SystemExit as stop:
        code = int(str(stop.code))
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1


def test_a_hypernetwork_of_another_model_is_told_with_what_to_type(
    tiny_model: ModelRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["serve", "--model", tiny_model.path, "--registry", str(tmp_path / "r")]
    given = ["--checkpoint", str(ROOT / "results" / "hypernet-0.5b")]
    for more, found in (([], "no hypernetwork ships for base model"), (given, "made for base model")):
        assert main([*command, *more]) == 2
        said = capsys.readouterr().err
        assert found in said and "--checkpoint ''" in said and said.count("\n") == 1


def test_an_address_that_is_taken_is_one_line() -> None:
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"127.0.0.1:{port} cannot be had: .*; choose another --port"):
            server.listen("127.0.0.1", port)
        assert server.address(taken) == f"http://127.0.0.1:{port}"


def test_a_damaged_file_of_keys_is_one_line(
    tiny_model: ModelRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "keys.json"
    path.write_text("{}", encoding="utf-8")
    command = ["serve", "--model", tiny_model.path, "--registry", str(tmp_path / "r"), "--checkpoint", ""]
    assert main([*command, "--set", f"serve.keys={path}"]) == 2
    said = capsys.readouterr().err
    assert "not a file of API keys" in said and said.count("\n") == 1
    assert keys.read(tmp_path / "none.json") == []


_HEAPS = """
import ctypes, sys, threading
from rune.serving import server
if sys.argv[1] == "one":
    server.one_heap()
libc, gate = ctypes.CDLL(None), threading.Barrier(7)
libc.malloc.restype = ctypes.c_void_p
def thread():
    libc.malloc(1000)  # ctypes lets go of the interpreter's lock, and no thread ends before the others allocate
    gate.wait(60)
    gate.wait(60)
for _ in range(6):
    threading.Thread(target=thread, daemon=True).start()
gate.wait(60)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
gate.wait(60)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no heap for each thread")
def test_the_servers_threads_allocate_from_one_heap() -> None:
    heaps = {}
    for how in ("one", "each"):
        done = subprocess.run(
            [sys.executable, "-c", _HEAPS, how], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
        heaps[how] = done.stdout.count("<heap ")
    assert heaps["one"] == 1 < heaps["each"]
