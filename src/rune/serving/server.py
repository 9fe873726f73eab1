"""A server from its configuration to its end: what is loaded, who may reach it, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import uvicorn

from rune import config as settings_of
from rune import plugins
from rune.errors import ConfigError, EngineError
from rune.models import loader, resolve
from rune.serving import app, memory
from rune.serving.context import ServerContext
from rune.serving.drawing import Post
from rune.serving.edge import Edge
from rune.serving.keys import OWNER, Keys
from rune.serving.metrics import Metrics
from rune.serving.refusals import Refusal
from rune.serving.settings import Config, device_of, is_loopback
from rune.types import Engine, ModelRef


class Service:
    """An engine, the adapters and the application over them."""

    def __init__(self, config: Config, *, log: TextIO | None = sys.stderr) -> None:
        """Loads everything. Raises RuneError in one line for whatever does not fit together."""
        self.config = config
        keys = Keys(config.keys)
        check_reach(config, keys)
        engine = plugins.load("engines", config.engine.name)
        own = settings_of.build(engine.Config, config.engine.settings, where="engine.settings")
        device = device_of(config)
        self.model: ModelRef = resolve.resolve(
            config.model.name, sources=config.model.sources, cache=resolve.default_cache()
        )
        registry, generator = memory.opened(config.registry, self.model, config.checkpoint(self.model), device=device)
        self.engine: Engine = engine.build(
            own, model=self.model, device=device, dtype=config.dtype(device), adapters=registry.objects
        )
        self.memory = memory.AdapterMemory(
            registry,
            self.model,
            generator,
            strength=config.serve.strength,
            keep=config.kept,
            most_bytes=config.serve.trajectory_bytes,
        )
        self._pin()
        metrics = Metrics(
            residency=lambda: getattr(self.engine, "residency", None),
            prefixes=lambda: getattr(self.engine, "prefixes", None),
            waiting=lambda: int(getattr(self.engine, "waiting", 0)),
            replicas=lambda: getattr(self.engine, "replicas", None),
        )
        tokenizer: Any = loader.tokenizer(self.model)
        encoding = threading.Lock()

        def count(text: str) -> int:
            with encoding:  # a tokenizer is not made for several threads at once
                return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        shared = ServerContext(
            settings=config.serve,
            model=self.model,
            base_name=config.model.served_name or self.model.name,
            engine=self.engine,
            memory=self.memory,
            count=count,
            window=int(getattr(self.engine, "window", config.serve.window)),
            metrics=metrics,
            ready=lambda: not self.edge.draining and not getattr(self.engine, "broken", False),
            post=Post(),
        )
        self.edge = Edge(app.build(shared), config.serve, keys, metrics, log=log)

    def close(self) -> None:
        self.engine.close()

    def _pin(self) -> None:
        for name in self.config.serve.pins:
            pin: Callable[[Any], None] | None = getattr(self.engine, "pin_adapter", None)
            if pin is None:
                raise ConfigError(f"the engine '{self.config.engine.name}' pins no adapters; leave serve.pins out")
            try:
                pin(self.memory.ref(self.memory.named(name, OWNER)))
            except Refusal:
                raise ConfigError(
                    f"serve.pins: no adapter '{name}' of this model in {self.memory.registry.folder}; "
                    "`rune adapters list` shows what is there"
                ) from None


def check_reach(config: Config, keys: Keys) -> None:
    """Raises ConfigError where others than this machine could ask without a key."""
    if not is_loopback(config.serve.host) and not keys.required:
        raise ConfigError(
            f"[serve] host = '{config.serve.host}' can be reached from other machines, and there are no API keys in "
            f"{config.keys}; make one: `rune keys add NAME --project P --keys {config.keys}`, or use host 127.0.0.1"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises ConfigError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # TCP by name: asyncio turns Nagle's algorithm off only where the socket says so. With it each answer's body waits
    # for the client to acknowledge its head, 40 ms on Linux.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{host}:{port} cannot be had: {error.strerror or error}; choose another --port") from None
    return listener


def address(listener: socket.socket) -> str:
    """Where clients find it: http://127.0.0.1:8000."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """Uvicorn, which leaves signals to `run` and to whoever runs it in a thread."""

    def __init__(self, service: Service) -> None:
        self.service = service
        seconds = service.config.serve.drain_seconds
        super().__init__(
            uvicorn.Config(
                service.edge,
                http="h11",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=service.config.serve.keep_alive_seconds,  # type: ignore[arg-type]  # also takes parts
                timeout_graceful_shutdown=math.ceil(seconds),
                h11_max_incomplete_event_size=64 << 10,  # of a request's head
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def drain(self) -> None:
        """Take nothing new, finish what is under way, end."""
        self.service.edge.draining = True
        self.should_exit = True


M_ARENA_MAX = -8  # of glibc's malloc.h


def one_heap() -> None:
    """Let all threads allocate from one heap, where the C library is glibc.

    With a heap for each thread, a request that is made in one thread and freed in another leaves holes in both: a
    server's memory grew by about a kilobyte a request while nothing was held.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def run(config: Config, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then drain. `ready` is told the address as soon as requests are answered."""
    one_heap()
    service = Service(config)
    try:
        with listen(config.serve.host, config.serve.port) as listener:
            asyncio.run(_serve(Server(service), listener, ready))
    finally:
        with contextlib.suppress(EngineError):
            service.close()


async def _serve(server: Server, listener: socket.socket, ready: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.drain)
    serving = asyncio.ensure_future(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        ready(address(listener))
    await serving
