"""Two replicas on two nodes of a Ray cluster, each node a process; one is killed under load."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable
from pathlib import Path

import httpx
import psutil
import pytest

from rune.adapters.registry.registry import Registry
from rune.types import ModelRef
from tests.clusters import PATIENCE, nodes, until
from tests.serving.processes import ServerProcess
from tests.serving.world import trajectory

pytestmark = pytest.mark.slow

NAMES = ("tiny", *(f"a{number}" for number in range(6)))
CLIENTS, ANSWERS = 8, 40  # answers wanted before the node is killed, and again after it


class Crowd:
    """Clients that ask one request after another, half of them as streams, and note what comes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.expected: dict[str, str] = {}
        self.right = 0
        self.other: list[str] = []
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CLIENTS)]

    def learn(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as http:
            self.expected = {name: _whole(http, name) for name in NAMES}
        assert len(set(self.expected.values())) == len(NAMES)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as http:
            turn = number
            while not self._over.is_set():
                turn += 1
                name = NAMES[turn % len(NAMES)]
                try:
                    found = (_streamed if turn % 2 else _whole)(http, name)
                except Exception as error:
                    found = repr(error)
                with self._lock:
                    if found == self.expected[name]:
                        self.right += 1
                    else:
                        self.other.append(f"{name}: {found}")


def _body(name: str) -> dict[str, object]:
    return {"model": name, "prompt": "def f(x):\n", "max_tokens": 120, "temperature": 0}


def _whole(http: httpx.Client, name: str) -> str:
    answer = http.post("/v1/completions", json=_body(name))
    return (
        str(answer.json()["choices"][0]["text"]) if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
    )


def _streamed(http: httpx.Client, name: str) -> str:
    found = ""
    with http.stream("POST", "/v1/completions", json={**_body(name), "stream": True}) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line.removeprefix("data: "))
                found += event["choices"][0]["text"] if "choices" in event else json.dumps(event)
    return found


def test_a_node_killed_under_load_costs_no_answer_and_no_adapter(
    tiny_model: ModelRef, hypernet: Path, tmp_path: Path
) -> None:
    with nodes(2) as cluster:
        inner = "{window=512, max_rows=8}"
        server = ServerProcess(
            tiny_model,
            hypernet,
            tmp_path,
            "engine.name=ray",
            f"engine.settings={{actors=2, address='{cluster.address}', settings={inner}}}",
        )
        crowd = Crowd(server.url)
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:

            def metric(name: str) -> float:
                lines = http.get("/metrics").text.splitlines()
                return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

            for number in range(6):
                made = http.post(f"/v1/trajectories?alias=a{number}", content=trajectory(number))
                assert made.status_code == 201, made.text
            until(lambda: metric("rune_replicas") == 2, "two replicas")
            crowd.learn()
            crowd.start()
            try:
                until(lambda: crowd.right >= ANSWERS, "answers of two replicas")
                assert [len(_actors(cluster.processes(node))) for node in (0, 1)] == [1, 1]
                cluster.kill(1)
                answered = crowd.right
                until(lambda: metric("rune_replicas") == 1, "the loss to be seen")
                until(lambda: crowd.right >= answered + ANSWERS, "answers of one replica")
                cluster.add()
                until(lambda: metric("rune_replicas") == 2, "the lost replica on a new node")
            finally:
                crowd.end()
            assert crowd.other == []
            assert http.get("/v1/adapters").json()["total"] == 6
            assert {name: _whole(http, name) for name in NAMES} == crowd.expected
        registry = Registry(tmp_path / "registry")
        assert registry.verify() == [] and not registry.objects.unfinished()
        assert server.end(15) == 0  # SIGTERM


def _actors(processes: Iterable[psutil.Process]) -> list[str]:
    """Ray calls the process of an actor by its class."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += [line for line in process.cmdline()[:1] if line.startswith("ray::Worker")]
    return found
