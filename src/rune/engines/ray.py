"""Many GPUs or hosts: plain Ray actors, one inner engine each, work sharded by adapter.

Not `ray[llm]`, which pins a vLLM of its own. Every actor loads the base model; requests that share an adapter go
to one actor, so that each adapter is loaded once. Finished draws stream back in small lists. When an actor dies
its unfinished draws, and only those, are done again by a fresh one: same seeds, same texts. Adapters travel as
PEFT folders, so hosts need a shared file system.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rune import config as settings
from rune import console, plugins
from rune.adapters.folders import AdapterSource, Folders
from rune.engines.shared.streams import Turns, TurnTicket
from rune.errors import AdapterError, EngineError, RuneError
from rune.types import Completion, Listener, ModelRef, Request

_EVERY_SECONDS = 0.2  # how long an actor collects finished draws before it sends them


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[engine]` when name = "ray"."""

    actors: int  # inner engines
    engine: str = "torch"  # the inner engine's name
    settings: Mapping[str, Any] = field(default_factory=dict)  # the inner engine's own section
    gpus_per_actor: float = 1.0  # counts only where device is cuda
    cpus_per_actor: float = 1.0
    address: str = ""  # of a running cluster; "" starts Ray on this machine
    restarts: int = 3  # deaths of actors in one call before giving up

    def __post_init__(self) -> None:
        if self.actors < 1 or self.restarts < 0:
            raise ValueError("actors must be at least 1, restarts at least 0")
        if self.engine == "ray":
            raise ValueError("the inner engine cannot be ray")


def build(
    config: Config, *, model: ModelRef, device: str, dtype: str, adapters: AdapterSource | None = None
) -> RayEngine:
    """Start Ray and the actors; their models load at once, in parallel. Raises EngineError without Ray."""
    settings.build(plugins.load("engines", config.engine).Config, config.settings, where="engine.settings")
    try:
        import ray
    except ImportError:
        raise EngineError("engine 'ray' needs Ray; install it with: pip install 'rune-lora[ray]'") from None
    started = not ray.is_initialized()
    if started:
        options: dict[str, Any] = {"address": config.address or None}
        if not config.address:
            processors = max(os.cpu_count() or 1, math.ceil(config.actors * config.cpus_per_actor))
            options |= {"num_cpus": processors, "num_gpus": _gpus(config, device), "include_dashboard": False}
        path = os.pathsep.join(entry for entry in sys.path if entry)
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            **options,
        )
    return RayEngine(config, model, device, dtype, adapters or Folders(), owns_ray=started)


def _gpus(config: Config, device: str) -> int:
    """GPUs of this machine. Raises EngineError where the actors want more: Ray would wait for them for ever."""
    if device != "cuda":
        return 0
    import torch

    found, wanted = torch.cuda.device_count(), config.actors * config.gpus_per_actor
    if found < wanted:
        raise EngineError(
            f"{config.actors} actors of {config.gpus_per_actor:g} GPUs each need {wanted:g}, this machine has {found}; "
            "lower engine.actors or engine.gpus_per_actor"
        )
    return found


class Worker:
    """What runs in an actor: one inner engine."""

    def __init__(self, name: str, raw: Mapping[str, Any], model: ModelRef, device: str, dtype: str) -> None:
        module = plugins.load("engines", name)
        config = settings.build(module.Config, raw, where="engine.settings")
        self._folders = Folders()
        self.engine = module.build(config, model=model, device=device, dtype=dtype, adapters=self._folders)

    def complete(self, requests: list[Request], folders: Mapping[str, Path]) -> Iterator[list[Completion]]:
        """Finished draws in lists, at most a few lists a second. `folders`: adapter id → where it was found."""
        for adapter_id, folder in folders.items():
            self._folders.know(adapter_id, folder)
        finished: list[Completion] = []
        sent = time.monotonic()
        for completion in self.engine.complete(requests):
            finished.append(completion)
            if time.monotonic() - sent >= _EVERY_SECONDS:
                yield finished
                finished, sent = [], time.monotonic()
        if finished:
            yield finished


class RayEngine:
    """See the module's docstring."""

    def __init__(
        self, config: Config, model: ModelRef, device: str, dtype: str, adapters: AdapterSource, *, owns_ray: bool
    ) -> None:
        self.config, self.model, self.device, self.dtype = config, model, device, dtype
        self._adapters = adapters
        self._owns_ray = owns_ray
        self.actors = [self._start() for _ in range(config.actors)]
        self._turns = Turns(self.complete)

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield draws as actors finish them. The inner engine's own errors come through as they are."""
        import ray

        # Inner keys name (request, first draw), so that any run of draws can be asked for again.
        missing = {(index, draw) for index, request in enumerate(requests) for draw in range(request.n)}
        shards = shard(requests, len(self.actors))
        sent = {self._send(number, requests, shards[number], missing): number for number in range(len(self.actors))}
        flying: dict[Any, int] = {stream: number for stream, number in sent.items() if stream is not None}
        deaths = 0
        while flying:
            ready: list[Any] = ray.wait(list(flying), num_returns=1)[0]
            stream = ready[0]
            number = flying[stream]
            try:
                finished = ray.get(next(stream))
            except StopIteration:
                del flying[stream]
                continue
            except ray.exceptions.RayTaskError as error:
                raise _own(error) from None
            except ray.exceptions.RayError as error:
                del flying[stream]
                deaths += 1
                if deaths > self.config.restarts:
                    raise EngineError(
                        f"Ray actors died {deaths} times, last: {_last_line(error)}; {len(missing)} draws are "
                        "missing; what was drawn is kept, resume the run"
                    ) from None
                console.warn(f"a Ray actor died ({type(error).__name__}); its unfinished draws are done again")
                self.actors[number] = self._start()
                again = self._send(number, requests, shards[number], missing)
                if again is not None:
                    flying[again] = number
                continue
            for completion in finished:
                index, first = map(int, completion.key.split(":"))
                draw = first + completion.draw
                missing.discard((index, draw))
                yield replace(completion, key=requests[index].key, draw=draw)

    @property
    def reports_logprobs(self) -> bool:
        """Whether the inner engines do."""
        return self.config.engine == "torch"

    def submit(self, request: Request, listen: Listener) -> TurnTicket:
        return self._turns.submit(request, listen)

    def close(self) -> None:
        import ray

        self._turns.close()

        for actor in self.actors:
            ray.kill(actor)
        self.actors = []
        if self._owns_ray:
            ray.shutdown()

    def _start(self) -> Any:
        import ray

        gpus = self.config.gpus_per_actor if self.device == "cuda" else 0
        remote = ray.remote(num_cpus=self.config.cpus_per_actor, num_gpus=gpus, max_restarts=0)(Worker)
        return remote.remote(self.config.engine, dict(self.config.settings), self.model, self.device, self.dtype)

    def _send(
        self, number: int, requests: Sequence[Request], shard: Sequence[int], missing: set[tuple[int, int]]
    ) -> Any:
        """Hand an actor what is missing of its shard; None if nothing is."""
        work = []
        for index in shard:
            request = requests[index]
            wanted = [draw for draw in range(request.n) if (index, draw) in missing]
            if len(wanted) == request.n:
                work.append(replace(request, key=f"{index}:0"))
            else:
                work += [replace(request, key=f"{index}:{d}", seed=request.seed + d, n=1) for d in wanted]
        if not work:
            return None
        return self.actors[number].complete.options(num_returns="streaming").remote(work, self._located(work))

    def _located(self, requests: Sequence[Request]) -> dict[str, Path]:
        """Adapter id → its folder; what is not found is left to the inner engine, which may know it or refuses."""
        found: dict[str, Path] = {}
        for ref in {r.adapter.adapter_id: r.adapter for r in requests if r.adapter is not None}.values():
            with contextlib.suppress(AdapterError):
                found[ref.adapter_id] = self._adapters.folder(ref).resolve()
        return found


def shard(requests: Sequence[Request], count: int) -> list[list[int]]:
    """Indices of requests per actor: those of one adapter together, draws as even as that allows.

    Requests of the base model go anywhere, and an adapter with more than an even share of the draws is shared out.
    The largest pieces are placed first, each where least is waiting.
    """
    applied: dict[str, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        applied[f"adapter {request.adapter.adapter_id}" if request.adapter else f"request {index}"].append(index)
    even = sum(request.n for request in requests) / count
    pieces: list[list[int]] = []
    for indices in applied.values():
        parts = min(len(indices), -(-sum(requests[i].n for i in indices) // max(1, int(even))))
        pieces += [indices[part::parts] for part in range(parts)]
    shards: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for piece in sorted(pieces, key=lambda piece: -sum(requests[i].n for i in piece)):
        target = load.index(min(load))
        shards[target] += piece
        load[target] += sum(requests[i].n for i in piece)
    return shards


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


def _own(error: Any) -> Exception:
    """The error that the inner engine raised, as it raised it; anything else becomes an EngineError."""
    cause = error.cause
    if isinstance(cause, RuneError):
        return type(cause)(str(cause))
    return EngineError(f"an engine in a Ray actor failed: {type(cause).__name__}: {str(cause).splitlines()[0]}")
