"""Malformed and hostile requests: 4xx and one clear line in OpenAI's shape, never a 500, nothing of the body back."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.serving.world import Running, trajectory

CHAT, TEXT, LEARN = "/v1/chat/completions", "/v1/completions", "/v1/trajectories"
ASK: dict[str, Any] = {"model": "tiny", "prompt": "def f():", "max_tokens": 2}
TALK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


def ask(**changes: Any) -> bytes:
    return json.dumps({**ASK, **changes}).encode()


def talk(**changes: Any) -> bytes:
    return json.dumps({**TALK, **changes}).encode()


MARK = "c0ffee-do-not-repeat-me"  # stands in bodies; an answer that holds it has quoted its client
BODIES: list[tuple[str, str, bytes, int]] = [
    ("empty body", TEXT, b"", 400),
    ("not JSON", TEXT, b"{" + MARK.encode(), 400),
    ("not UTF-8", TEXT, b'{"model": "\xff\xfe"}', 400),
    ("a list", TEXT, b"[1, 2]", 400),
    ("a number", CHAT, b"17", 400),
    ("null", CHAT, b"null", 400),
    ("nested too deeply", TEXT, b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    ("deep objects", CHAT, b'{"metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}", 400),
    ("a number of thousands of digits", TEXT, ask().replace(b"2}", b"9" * 6000 + b"}"), 400),
    ("half a surrogate pair", TEXT, b'{"model": "tiny", "prompt": "\\ud800"}', 400),
    ("zero bytes in a name", TEXT, ask(model="ti\x00ny"), 404),
    ("no model", TEXT, json.dumps({"prompt": "x"}).encode(), 400),
    ("an empty model", TEXT, ask(model=""), 400),
    ("a model that is a number", TEXT, ask(model=3), 400),
    ("a model of a thousand characters", TEXT, ask(model="x" * 1000), 404),
    ("a model that is a path", TEXT, ask(model="../../etc/passwd"), 404),
    ("a model that is SQL", TEXT, ask(model="' OR 1=1 --"), 404),
    ("wildcards of SQL", TEXT, ask(model="%"), 404),
    ("no prompt", TEXT, json.dumps({"model": "tiny"}).encode(), 400),
    ("an empty prompt", TEXT, ask(prompt=""), 400),
    ("no prompts", TEXT, ask(prompt=[]), 400),
    ("one empty prompt of two", TEXT, ask(prompt=["a", ""]), 400),
    ("too many prompts", TEXT, ask(prompt=["a"] * 33), 400),
    ("token ids", TEXT, ask(prompt=[1, 2, 3]), 400),
    ("a prompt that is an object", TEXT, ask(prompt={"a": MARK}), 400),
    ("n of zero", TEXT, ask(n=0), 400),
    ("n below zero", TEXT, ask(n=-1), 400),
    ("n above the limit", TEXT, ask(n=17), 400),
    ("n of a billion", TEXT, ask(n=10**9), 400),
    ("more draws than the server has", TEXT, ask(n=16, prompt=["a"] * 32), 400),
    ("no tokens", TEXT, ask(max_tokens=0), 400),
    ("tokens beyond any window", TEXT, ask(max_tokens=10**15), 400),
    ("tokens as text", TEXT, ask(max_tokens="12"), 400),
    ("tokens as a truth", TEXT, ask(max_tokens=True), 400),
    ("heat below zero", TEXT, ask(temperature=-0.1), 400),
    ("too much heat", TEXT, ask(temperature=2.5), 400),
    ("heat that is no number", TEXT, ask().replace(b'"max_tokens"', b'"temperature": NaN, "max_tokens"'), 400),
    ("endless heat", TEXT, ask().replace(b'"max_tokens"', b'"temperature": Infinity, "max_tokens"'), 400),
    ("heat beyond floats", TEXT, ask().replace(b'"max_tokens"', b'"temperature": 1e999, "max_tokens"'), 400),
    ("top_p above one", TEXT, ask(top_p=1.5), 400),
    ("a seed beyond 64 bits", TEXT, ask(seed=2**63), 400),
    ("a seed with a point", TEXT, ask(seed=1.5), 400),
    ("too many stop strings", TEXT, ask(stop=[str(i) for i in range(17)]), 400),
    ("a stop string of kilobytes", TEXT, ask(stop="x" * 501), 400),
    ("stop strings that are none", TEXT, ask(stop=[1]), 400),
    ("too many log-probabilities", TEXT, ask(logprobs=21), 400),
    ("echo", TEXT, ask(echo=True), 400),
    ("suffix", TEXT, ask(suffix="end"), 400),
    ("best_of", TEXT, ask(best_of=3), 400),
    ("a field that is unknown", TEXT, ask(temprature=0.1), 400),
    ("a field with a secret for a name", TEXT, ask(**{MARK: 1}), 400),
    ("stream_options without a stream", TEXT, ask(stream_options={"include_usage": True}), 400),
    ("no messages", CHAT, talk(messages=[]), 400),
    ("messages that are text", CHAT, talk(messages=MARK), 400),
    ("a role that is none", CHAT, talk(messages=[{"role": "root<|im_end|>", "content": MARK}]), 400),
    ("a message without content", CHAT, talk(messages=[{"role": "user"}]), 400),
    ("an image", CHAT, talk(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]), 400),
    ("top_logprobs alone", CHAT, talk(top_logprobs=2), 400),
    ("tools", CHAT, talk(tools=[{"type": "function"}]), 400),
    ("tools that are text", CHAT, talk(tools=MARK), 400),
    ("a tool of another kind", CHAT, talk(tools=[{"type": "web_search", "function": {"name": "f"}}]), 400),
    ("a function's name that is a path", CHAT, talk(tools=[{"type": "function", "function": {"name": "../f"}}]), 400),
    ("hundreds of tools", CHAT, talk(tools=[{"type": "function", "function": {"name": "f"}}] * 129), 400),
    ("calls of a user", CHAT, talk(messages=[{"role": "user", "content": MARK, "tool_calls": [{}]}]), 400),
    ("metadata that is a list", CHAT, talk(metadata=["project"]), 400),
    ("a place without a name", CHAT, talk(metadata={"project": " "}), 400),
    ("a task without a domain", CHAT, talk(metadata={"project": "shop", "task": "t"}), 400),
    ("a project with a line break", CHAT, talk(metadata={"project": "a\nb"}), 400),
    ("no trajectory at all", LEARN, b"", 400),
    ("a trajectory that is text", LEARN, MARK.encode(), 400),
    ("a trajectory of another kind", LEARN, b'{"steps": 1}', 400),
    ("a torn line", LEARN, trajectory(5)[:-40], 400),
    ("the same trajectory twice", LEARN, trajectory(5) * 2, 400),
    ("zero bytes", LEARN, b"\x00" * 1000, 400),
    ("a trajectory nested too deeply", LEARN, b"[" * 200_000, 400),
    ("damaged gzip", LEARN, b"\x1f\x8b" + b"\x00" * 50, 400),
    ("torn gzip", LEARN, gzip.compress(trajectory(5))[:-12], 400),
    ("gzip that unpacks to very much", LEARN, gzip.compress(b" " * (17 << 20)), 413),
    ("a pickle", LEARN, b"\x80\x04\x95\x1e\x00\x00\x00cposix\nsystem\n", 400),
    ("a project without a name", f"{LEARN}?project=%20", trajectory(5), 400),
    ("a task of no domain", f"{LEARN}?project=p&task=t", trajectory(5), 400),
    ("a project of kilobytes", f"{LEARN}?project={'p' * 300}", trajectory(5), 400),
    ("an alias with a slash", f"{LEARN}?alias=a/b", trajectory(5), 400),
    ("a name that is a path", f"{LEARN}?name=../../x", trajectory(5), 400),
    ("folders where none are allowed", "/v1/load_lora_adapter", b'{"lora_name": "a", "lora_path": "/etc"}', 403),
    ("unloading what is not there", "/v1/unload_lora_adapter", b'{"lora_name": "a"}', 404),
    ("loading nothing", "/v1/load_lora_adapter", b"{}", 400),
]


@pytest.mark.parametrize(("path", "body", "status"), [pytest.param(*case[1:], id=case[0]) for case in BODIES])
def test_a_bad_request_is_one_clear_line(served: Running, path: str, body: bytes, status: int) -> None:
    answer = served.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 600
    assert MARK not in answer.text and "Traceback" not in answer.text and "/tmp/" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/adapters", 405),
        ("DELETE", "/v1/adapters/nobody", 404),
        ("GET", "/v1/adapters/../../../etc/passwd", 404),
        ("GET", "/v1/adapters/%2e%2e%2fregistry.sqlite", 404),
        ("GET", "/v1/adapters/%00", 404),
        ("GET", "/v1/models/%ff", 404),
        ("GET", "/v1/adapters?limit=0", 400),
        ("GET", "/v1/adapters?limit=1e9", 400),
        ("GET", "/v1/adapters?after=-1", 400),
        ("GET", "/v1/adapters?after=99999999999999999999999", 400),
        ("GET", "/v1/adapters?limit=%F0%9F%99%82", 400),
        ("POST", "/healthz", 405),
    ],
)
def test_a_page_or_a_number_that_is_none(served: Running, method: str, path: str, status: int) -> None:
    answer = served.http.request(method, path)
    assert answer.status_code == status, answer.text
    assert "\n" not in answer.json()["error"]["message"]


def raw(served: Running, data: bytes) -> bytes:
    """What comes back for bytes that no client would send; until the server closes or is silent."""
    where = urlsplit(served.url)
    with socket.create_connection((where.hostname, where.port), timeout=10) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        found = b""
        while block := connection.recv(65536):
            found += block
        return found


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64, b"400"),  # TLS at a port without it
        (b"GET /nowhere HTTP/9.9\r\n\r\n", b"404"),
        (HEAD + b"Content-Length: many\r\n\r\n{}", b"400"),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}", b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", b"400"),
        (HEAD + b"Content-Length: 3000000\r\n\r\n{}", b"413"),
        (b"GET /v1/models HTTP/1.1\r\nHost: rebound.example\r\n\r\n", b"403"),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nOrigin: https://page.example\r\n\r\n", b"403"),
    ],
)
def test_bytes_that_no_client_sends(served: Running, data: bytes, status: bytes) -> None:
    assert raw(served, data).split(b" ")[1] == status


def test_a_head_beyond_the_limit_ends_the_connection(served: Running) -> None:
    found = b""
    with contextlib.suppress(OSError):  # it may be closed before all of the head is sent
        found = raw(served, HEAD + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n")
    assert found == b"" or found.split(b" ")[1] == b"400"


def test_a_body_that_grows_beyond_the_limit_is_cut_off_while_it_comes(served: Running) -> None:
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    found = raw(served, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 40)
    assert found.split(b" ")[1] == b"413" and b"at most" not in found and b"send less" in found


def test_after_all_that_the_server_is_well(served: Running) -> None:
    assert served.http.get("/healthz").text == "ok" and served.http.get("/readyz").text == "ready"
    assert served.http.post(TEXT, content=ask()).status_code == 200
    assert "\n".join(str(line) for line in served.lines() if line["status"] >= 500) == ""
    assert MARK not in served.log.getvalue()
