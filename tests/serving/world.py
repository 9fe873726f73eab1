"""A running server over the tiny model and a random hypernetwork, on loopback, in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import torch

from rune.adapters.factors import StaticLora, layout_of
from rune.hypernet import base as bases
from rune.hypernet import checkpoint
from rune.hypernet.trainer import HypernetWithStatic, new_hypernet
from rune.serving import server
from rune.serving.settings import Config, Engine, Model, Serve
from rune.types import ModelRef
from tests.train.train_setup import settings

PATIENCE = 60  # seconds; only a hang reaches it


def random_hypernet(folder: Path, model: ModelRef) -> Path:
    """A hypernetwork that was never trained, with an output large enough that every trajectory changes the text."""
    config = settings()
    base = bases.load(model, device="cpu", dtype="float32")
    layout = layout_of(base.model, config.lora.modules)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        both = HypernetWithStatic(
            StaticLora(layout, rank=config.lora.rank, alpha=config.lora.alpha), new_hypernet(layout, config.hypernet)
        )
        for up in both.hypernet.up.values():
            up.data.normal_(0, 3.0)
    checkpoint.save_hypernet(folder, both, layout, config.lora, config.hypernet, model)
    return folder


def configured(model: ModelRef, root: Path, hypernet: Path | None, *, engine: Any = None, **serve: Any) -> Config:
    return Config(
        model=Model(name=model.path, served_name="tiny", device="cpu"),
        engine=Engine(name="torch", settings={"max_rows": 8, "window": 512, **(engine or {})}),
        serve=replace(
            Serve(registry=str(root / "registry"), checkpoint=str(hypernet or ""), port=0, drain_seconds=5),
            **serve,
        ),
    )


class Running:
    """A server in a thread. `log` has its lines."""

    def __init__(self, config: Config) -> None:
        self.log = io.StringIO()
        self.service = server.Service(config, log=self.log)
        self._listener = server.listen(config.serve.host, config.serve.port)
        self.url = server.address(self._listener)
        self.server = server.Server(self.service)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve([self._listener])))
        self._thread.start()
        ends = time.monotonic() + PATIENCE
        while not self.server.started:
            assert time.monotonic() < ends and self._thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def close(self) -> None:
        self.http.close()
        self.server.drain()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self.service.close()
        self._listener.close()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def metric(self, name: str, key: str = "") -> float:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        found = self.http.get("/metrics", headers=headers).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in found if line.startswith(name))


@contextlib.contextmanager
def running(config: Config) -> Iterator[Running]:
    served = Running(config)
    try:
        yield served
    finally:
        served.close()


def trajectory(number: int, *, secret: str = "") -> bytes:
    """One of Rune's own format; `number` is what it is about."""
    failed = {"code": f"def f(x):\n    return x - {number}\n", "outcome": "failed", "error_kind": "WrongAnswer"}
    solution = f"def f(x):\n    # {secret or 'rule'} {number}\n    return x + {number}\n"
    value = {
        "trajectory_id": f"t{number}",
        "task_id": f"shop/{number}",
        "benchmark": "shop",
        "prompt": f"Write f(x), which adds {number} in the served style.",
        "attempts": [{**failed, "error": "wrong"}, {"code": solution, "outcome": "passed"}],
        "solution": solution,
    }
    return (json.dumps(value) + "\n").encode()


def until(condition: Any) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.01)


def slowly(served: Running, *, seconds: float = 0.01) -> None:
    """Steps that take long enough to look at what happens meanwhile."""
    device = served.service.engine.decoder.device  # type: ignore[attr-defined]
    forward = device._forward

    def slow(*args: Any) -> None:
        time.sleep(seconds)
        forward(*args)

    device._forward = slow
