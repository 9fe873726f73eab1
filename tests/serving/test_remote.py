"""`rune remember` and `rune watch` with --server: the sessions go to a running server, which has the model loaded."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import rune
from rune.cli.main import main
from rune.serving import keys
from rune.serving.remote import Away, ServedMemory
from rune.serving.watching import Watcher
from rune.types import ModelRef
from tests.serving.world import Running, configured, running, trajectory

SECRET = "sk-" + "proj" + "A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8S9t0"


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNE_REGISTRY", str(tmp_path / "home"))
    monkeypatch.delenv("RUNE_KEY", raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "sessions"
    made.mkdir()
    return made


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    long_ago = time.time() - 1000
    os.utime(path, (long_ago, long_ago))
    return path


def said(capsys: pytest.CaptureFixture[str], *command: str) -> tuple[int, list[str], str]:
    capsys.readouterr()  # what came before is not the command's
    code = main(list(command))
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def test_a_server_makes_the_adapter_that_this_process_would_make(
    served: Running, tiny_model: ModelRef, hypernet: Path, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    sessions = [str(put(folder / f"{n}.jsonl", trajectory(n, secret=SECRET))) for n in (71, 72)]
    place = ["--project", "shop", "--domain", "far", "--alias", "far"]
    code, (name,), err = said(capsys, "remember", *sessions, *place, "--server", f"{served.url}/v1/")
    assert code == 0 and "shop/far, rank " in err and "redacted: 2" in err, err
    here = rune.remember(
        [Path(one) for one in sessions], project="shop", domain="far",
        config=configured(tiny_model, tmp_path, hypernet),
    )  # fmt: skip
    assert here.adapter_id == name
    body = {"model": "far", "prompt": "def f(x):\n", "max_tokens": 8, "temperature": 0}
    assert served.http.post("/v1/completions", json=body).json()["model"] == f"tiny:{name}"
    assert not (tmp_path / "home").exists()


def test_a_watched_folder_is_learned_by_the_server_each_session_once(
    served: Running, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(folder / "s.jsonl", trajectory(81))
    put(folder / "bad.jsonl", b"{")
    command = ["watch", str(folder), "--project", "watched", "--alias", "latest", "--once", "--server", served.url]
    code, (line,), err = said(capsys, *command)
    first = line.split()[0]
    assert code == 0 and line.endswith(str(path)) and f"warning: {folder / 'bad.jsonl'}: " in err
    assert served.http.get("/v1/adapters/watched/latest").json()["id"] == first
    code, lines, err = said(capsys, *command)
    assert (code, lines) == (0, []) and "warning" not in err
    put(path, trajectory(81) + trajectory(82))
    _, (line,), _ = said(capsys, *command)
    assert line.split()[0] != first and served.http.get(f"/v1/adapters/{first}").status_code == 404
    assert served.http.get("/v1/adapters/watched/latest").json()["id"] == line.split()[0]
    assert [one.name for one in (tmp_path / "home").iterdir()] == ["watched"]


def test_the_key_is_read_from_the_environment_and_says_the_project(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    config = configured(tiny_model, tmp_path, hypernet)
    key = keys.add(config.keys, "team", ["web"])
    session = str(put(folder / "s.jsonl", trajectory(1)))
    with running(config) as served:
        for command in (["remember", session], ["watch", str(folder), "--once"]):
            code, lines, err = said(capsys, *command, "--server", served.url)
            assert (code, lines) == (2, []) and err.count("\n") == 1 and "$RUNE_KEY" in err
        monkeypatch.setenv("RUNE_KEY", key)
        code, (name,), err = said(capsys, "remember", session, "--server", served.url)
        assert code == 0 and "\nweb, rank " in err
        code, lines, err = said(capsys, "remember", session, "--project", "other", "--server", served.url)
        assert (code, lines) == (2, []) and "not for this project" in err and err.count("\n") == 1
        code, lines, _ = said(capsys, "watch", str(folder), "--once", "--server", served.url)
        assert code == 0 and lines == [f"{name}  {session}"]


def test_a_server_that_is_away_costs_no_session(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(folder / "s.jsonl", trajectory(1))
    config = configured(tiny_model, tmp_path, hypernet)
    with running(config) as served:
        memory = ServedMemory(served.url, project="shop")
    watcher = Watcher(folder, memory, still_seconds=0)
    with pytest.raises(Away, match="is `rune serve` running there"):
        list(watcher.poll())
    code, lines, err = said(capsys, "remember", str(folder / "s.jsonl"), "--server", memory.url)
    assert (code, lines) == (2, []) and err.count("\n") == 1
    port = int(memory.url.rpartition(":")[2])
    with running(configured(tiny_model, tmp_path, hypernet, port=port)) as served:
        (taken,) = watcher.poll()
        assert taken.made is not None
        assert served.http.get(f"/v1/adapters/{taken.made.id}").status_code == 200
    watcher.close()
    memory.close()


@pytest.mark.parametrize(
    "more",
    [
        ["--server", "ftp://127.0.0.1"],
        ["--server", "http://127.0.0.1:1"],
        ["--server", "{url}/elsewhere"],
        ["--server", "{url}", "--model", "x"],
        ["--server", "{url}", "--checkpoint", "x"],
        ["--server", "{url}", "--registry", "x"],
        ["--server", "{url}", "--alias", "a/b"],
        ["--server", "{url}", "--task", "t"],
    ],
)
def test_what_cannot_be_meant_is_one_line(
    served: Running, folder: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    session = str(put(folder / "s.jsonl", trajectory(1)))
    more = [word.format(url=served.url) for word in more]
    for command in (["remember", session], ["watch", str(folder), "--once"]):
        code, lines, err = said(capsys, *command, *more)
        assert (code, lines) == (2, []) and err.count("\n") == 1 and "Traceback" not in err, err


def test_a_server_that_learns_nothing_says_so_at_once(
    tiny_model: ModelRef, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(configured(tiny_model, tmp_path, None)) as served:
        code, _, err = said(capsys, "watch", str(folder), "--once", "--server", served.url)
    assert code == 2 and "no hypernetwork" in err


class _Recorder:
    """What comes over the wire to a server that answers as ours."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({"data": [{"id": "tiny", "digest": "d", "hypernet": "h"}]})

            def do_POST(self) -> None:
                outer.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                made = {"id": "i", "project": "p", "domain": None, "task": None, "rank": 1, "delta_w_norm": 1.0}
                self._answer({**made, "trajectories": [], "seconds": 0.0})

            def _answer(self, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def recorder() -> Iterator[_Recorder]:
    made = _Recorder()
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_secrets_stay_on_this_machine(recorder: _Recorder, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = str(put(folder / "s.jsonl", trajectory(1, secret=SECRET)))
    assert said(capsys, "remember", session, "--server", recorder.url)[0] == 0
    assert said(capsys, "watch", str(folder), "--once", "--server", recorder.url)[0] == 0
    assert len(recorder.bodies) == 2
    for body in recorder.bodies:
        assert SECRET.encode() not in body and b"t1" in body
    assert httpx.get(f"{recorder.url}/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("key", "url"), [("schlüssel", "http://127.0.0.1:1"), ("a\nb", "http://127.0.0.1:1"), ("", "http://h\x01")]
)
def test_a_key_or_an_address_that_cannot_be_sent_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, url: str
) -> None:
    monkeypatch.setenv("RUNE_KEY", key)
    code, lines, err = said(capsys, "watch", str(folder), "--once", "--server", url)
    assert code == 2 and not lines and err.count("\n") == 1, err
    assert ("RUNE_KEY" if key else "give an address") in err
