"""Two servers over one registry are one memory: what one learned, dropped or learned of keys, both know."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from rune.adapters.registry.registry import Registry
from rune.serving import keys
from rune.types import ModelRef
from tests.serving.processes import ServerProcess
from tests.serving.test_cluster import Crowd
from tests.serving.world import PATIENCE, Running, configured, running, slowly, trajectory, until

ROOT = Path(__file__).resolve().parents[2]
ASK: dict[str, Any] = {"prompt": "def f(x):\n", "max_tokens": 12, "temperature": 0}


class Pair(NamedTuple):
    one: Running
    two: Running


@pytest.fixture
def pair(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> Iterator[Pair]:
    config = configured(tiny_model, tmp_path, hypernet, folders=(str(tmp_path),))
    with running(config) as one, running(config) as two:
        yield Pair(one, two)


def text(served: Running, name: str) -> str:
    answer = served.http.post("/v1/completions", json={"model": name, **ASK})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def status(served: Running, name: str) -> int:
    return served.http.post("/v1/completions", json={"model": name, **ASK}).status_code


def listed(served: Running) -> set[str]:
    return {card["id"] for card in served.http.get("/v1/models").json()["data"]}


def learn(served: Running, number: int, alias: str, **where: str) -> httpx.Response:
    return served.http.post("/v1/trajectories", params={"alias": alias, **where}, content=trajectory(number))


def test_what_one_server_learned_the_next_request_at_the_other_may_use(pair: Pair) -> None:
    assert listed(pair.one) == listed(pair.two) == {"tiny"}  # both have looked before
    made = learn(pair.one, 1, "dates", project="shop", domain="dates")
    assert made.status_code == 201
    said = text(pair.two, "dates")
    assert said == text(pair.one, "dates") != text(pair.two, "tiny")
    assert listed(pair.two) == {"tiny", "dates"}
    asked = {"model": "tiny", "metadata": {"project": "shop", "domain": "dates"}, **ASK}
    assert pair.two.http.post("/v1/completions", json=asked).json()["choices"][0]["text"] == said

    assert learn(pair.two, 2, "dates", project="shop", domain="dates").status_code == 201  # the name moves
    assert text(pair.one, "dates") == text(pair.two, "dates") != said
    assert text(pair.one, made.json()["id"]) == said


def test_what_one_server_took_out_of_service_the_other_answers_no_more_though_it_has_it(pair: Pair) -> None:
    name = learn(pair.one, 1, "old").json()["id"]
    said = text(pair.two, "old")
    assert name in pair.two.service.engine.residency.resident  # type: ignore[attr-defined]
    pair.two.service.engine.decoder.ends = frozenset()  # type: ignore[attr-defined]
    slowly(pair.two)
    long = {"model": "old", **ASK, "max_tokens": 60, "stream": True}
    with pair.two.http.stream("POST", "/v1/completions", json=long) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert pair.one.http.delete("/v1/adapters/old").status_code == 200
        assert httpx.post(f"{pair.two.url}/v1/completions", json={"model": "old", **ASK}).status_code == 404
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"  # what was under way was finished
    assert status(pair.one, "old") == status(pair.two, name) == 404
    assert listed(pair.two) == {"tiny"}

    again = learn(pair.two, 1, "old")  # it comes back for both
    assert (again.status_code, again.json()["id"]) == (200, name)
    assert text(pair.one, "old") == said


def test_the_same_trajectory_at_both_at_once_is_one_adapter(pair: Pair) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: learn(pair[i % 2], 5 + i // 4, f"a{i // 4}"), range(8)))
    assert sorted(one.status_code for one in made) == [200] * 6 + [201] * 2
    assert len({one.json()["id"] for one in made}) == 2
    assert pair.one.http.get("/v1/adapters").json()["total"] == 2
    assert pair.one.service.memory.registry.verify() == []


def test_a_folder_loaded_at_one_is_served_by_the_other_and_unloaded_there(pair: Pair, tmp_path: Path) -> None:
    name = learn(pair.one, 1, "").json()["id"]
    registry = Registry(tmp_path / "registry")
    folder = registry.objects.folder(registry.ref(registry.get(name), base=pair.one.service.model.digest))
    shutil.copytree(folder, tmp_path / "given")
    assert pair.one.http.delete(f"/v1/adapters/{name}").status_code == 200
    body = {"lora_name": "mine", "lora_path": str(tmp_path / "given")}
    assert pair.one.http.post("/v1/load_lora_adapter?project=other", json=body).status_code == 200
    assert text(pair.two, "mine") != text(pair.two, "tiny")
    assert pair.two.http.post("/v1/unload_lora_adapter", json={"lora_name": "mine"}).status_code == 200
    assert status(pair.one, "mine") == 404


def test_a_key_made_or_revoked_counts_for_both_from_their_next_request_on(pair: Pair, tmp_path: Path) -> None:
    assert pair.one.http.get("/v1/models").status_code == pair.two.http.get("/v1/models").status_code == 200
    file = pair.one.service.config.keys
    tokens = {who: keys.add(file, who, [project]) for who, project in (("anna", "oak"), ("ben", "elm"))}
    bearer = {who: {"authorization": f"Bearer {token}"} for who, token in tokens.items()}
    assert pair.one.http.get("/v1/models").status_code == pair.two.http.get("/v1/models").status_code == 401
    made = pair.one.http.post("/v1/trajectories?alias=mine", content=trajectory(1), headers=bearer["anna"])
    assert made.status_code == 201
    found = {
        who: pair.two.http.post("/v1/completions", json={"model": "mine", **ASK}, headers=bearer[who]).status_code
        for who in tokens
    }
    assert found == {"anna": 200, "ben": 404}
    keys.revoke(file, "anna")
    assert [one.http.get("/v1/models", headers=bearer["anna"]).status_code for one in pair] == [401, 401]
    assert pair.two.http.get("/v1/models", headers=bearer["ben"]).status_code == 200


def test_limits_and_metrics_are_each_servers_own(tiny_model: ModelRef, hypernet: Path, tmp_path: Path) -> None:
    config = configured(tiny_model, tmp_path, hypernet)
    with running(replace(config, serve=replace(config.serve, max_draws=2))) as one, running(config) as two:
        many = {"model": "tiny", **ASK, "n": 3}
        assert one.http.post("/v1/completions", json=many).status_code == 400
        assert two.http.post("/v1/completions", json=many).status_code == 200
        drawn = [served.metric('rune_tokens_total{kind="completion"') for served in (one, two)]
        assert drawn[0] == 0 < drawn[1]


# ---------------------------------------------------------------------- behind docs/examples/haproxy.cfg


class Proxied:
    """Two processes of `rune serve` over one registry, and HAProxy with the configuration of docs/examples."""

    def __init__(self, model: ModelRef, hypernet: Path, root: Path) -> None:
        self.servers = [
            ServerProcess(model, hypernet, root / name, "serve.drain_seconds=20.0", registry=root / "registry")
            for name in ("a", "b")
        ]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        where = {f"RUNE_{'AB'[i]}": server.url.removeprefix("http://") for i, server in enumerate(self.servers)}
        self._log = (root / "haproxy.log").open("wb")
        program = shutil.which("haproxy")
        assert program is not None
        self.proxy = subprocess.Popen(
            [program, "-f", str(ROOT / "docs" / "examples" / "haproxy.cfg")],
            env={**os.environ, **where, "PORT": str(port)}, stderr=self._log,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{port}"
        until(self._answers)

    def _answers(self) -> bool:
        assert self.proxy.poll() is None
        try:
            return httpx.get(f"{self.url}/readyz").status_code == 200
        except httpx.HTTPError:
            return False

    def asked(self, number: int) -> set[str]:
        """Adapters that one server has answered with, of its log."""
        self.servers[number].log.flush()
        lines = Path(self.servers[number].log.name).read_text(encoding="utf-8").splitlines()
        facts = [json.loads(line) for line in lines]
        return {one["adapter"] for one in facts if one["route"] == "/v1/completions" and one.get("adapter")}

    def close(self) -> None:
        self.proxy.kill()
        self.proxy.wait()
        self._log.close()
        for server in self.servers:
            if server.process.poll() is None:
                server.end(signal.SIGKILL)


@pytest.mark.check
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_behind_a_proxy_an_adapter_has_its_server_and_a_server_that_goes_costs_no_answer(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path, how: signal.Signals
) -> None:
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    proxied = Proxied(tiny_model, hypernet, tmp_path)
    crowd = Crowd(proxied.url)
    try:
        with httpx.Client(base_url=proxied.url, timeout=PATIENCE) as http:
            for number in range(6):
                made = http.post(f"/v1/trajectories?alias=a{number}", content=trajectory(number))
                assert made.status_code == 201, made.text
            crowd.learn()
            crowd.start()
            until(lambda: crowd.right >= 80)
            here, there = proxied.asked(0), proxied.asked(1)
            assert here and there and not here & there and len(here | there) == 6
            gone = threading.Thread(target=proxied.servers[0].end, args=(how,))
            gone.start()
            answered = crowd.right
            until(lambda: crowd.right >= answered + 80 and not gone.is_alive())
            crowd.end()
            if how is signal.SIGTERM:
                assert crowd.other == []
                assert proxied.servers[0].process.returncode == 0
            else:  # a stream that had begun breaks off, and is seen to; nobody gets another's text
                assert len(crowd.other) <= 8 and not any("'text'" in one for one in crowd.other)
            assert proxied.asked(1) == here | there  # the other one has them now
            assert http.get("/v1/adapters").json()["total"] == 6
    finally:
        crowd.end()
        proxied.close()
    assert Registry(tmp_path / "registry").verify() == []
