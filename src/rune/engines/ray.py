"""Many GPUs or hosts: replicas in plain Ray actors, an inner engine each, requests routed to where their adapter is.

Not `ray[llm]`, which pins a vLLM of its own. Every replica loads the base model; a request goes to one that holds its
adapter, so that each adapter is read by few (`replicas/routing.py`). Lists and submitted requests take the same way.
When an actor dies another is started, and its unfinished draws, and only those, are begun anew: same seeds, same texts.
Adapters travel as paths of PEFT folders, so hosts need a shared file system; what is registered lies there and nowhere
else, so that no replica's death loses any.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rune import config as settings
from rune import plugins
from rune.adapters.folders import AdapterSource, Folders
from rune.config import ADDED
from rune.engines.replicas.fleet import Fleet, Job, ReplicaLost
from rune.engines.shared import cluster
from rune.engines.shared.residency import Residency
from rune.engines.shared.streams import joined
from rune.errors import AdapterError, EngineError
from rune.types import AdapterRef, Completion, Delta, Listener, ModelRef, Request


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[engine]` when name = "ray"."""

    actors: int = 0  # replicas, an inner engine each; 0: as many as the GPUs carry, without GPUs one
    engine: str = "torch"  # the inner engine's name
    settings: Mapping[str, Any] = field(default_factory=dict)  # the inner engine's own section
    gpus_per_actor: float = 1.0  # counts only where device is cuda
    cpus_per_actor: float = 1.0
    address: str = ""  # of a running cluster; "" starts Ray on this machine
    restarts: int = 3  # deaths of replicas that one request survives
    # Draws that a replica with the adapter may be ahead of the idlest one before that one reads the adapter too.
    slack: int = field(default=16, metadata=ADDED)
    # Until every replica must be there; afterwards those that are begin, and late ones join.
    start_seconds: float = field(default=600.0, metadata=ADDED)

    def __post_init__(self) -> None:
        if min(self.actors, self.restarts, self.slack) < 0 or self.start_seconds <= 0:
            raise ValueError("actors, restarts and slack must be at least 0, start_seconds more than 0")
        if self.engine == "ray":
            raise ValueError("the inner engine cannot be ray")


def build(
    config: Config, *, model: ModelRef, device: str, dtype: str, adapters: AdapterSource | None = None
) -> RayEngine:
    """Join or start Ray, and load a model in each replica, all at once.

    Raises EngineError without Ray or without a replica, and what the inner engine's `build` raises.
    """
    settings.build(plugins.load("engines", config.engine).Config, config.settings, where="engine.settings")
    processors = max(os.cpu_count() or 1, math.ceil(config.actors * config.cpus_per_actor))
    gpus = 0 if config.address else _gpus(config, device)
    started = cluster.join(config.address, cpus=processors, gpus=gpus)
    try:
        fleet = Fleet(
            config.actors or _fitting(config, device),
            (config.engine, dict(config.settings), model, device, dtype),
            {"num_cpus": config.cpus_per_actor, "num_gpus": config.gpus_per_actor if device == "cuda" else 0},
            restarts=config.restarts,
            slack=config.slack,
            start_seconds=config.start_seconds,
        )
    except BaseException:
        if started:
            cluster.leave()
        raise
    return RayEngine(fleet, adapters or Folders(), owns_ray=started)


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


def _fitting(config: Config, device: str) -> int:
    """Replicas that the GPUs of the cluster carry."""
    import ray

    if device != "cuda" or not config.gpus_per_actor:
        return 1
    return max(1, int(ray.cluster_resources().get("GPU", 0) // config.gpus_per_actor))


class RayEngine:
    """See the module's docstring."""

    def __init__(self, fleet: Fleet, adapters: AdapterSource, *, owns_ray: bool) -> None:
        self.fleet = fleet
        self._adapters = adapters
        self._owns_ray = owns_ray
        facts = next(replica.facts for replica in fleet.replicas if replica.facts is not None)
        self.reports_logprobs = facts.reports_logprobs
        if facts.window is not None:
            self.window = facts.window

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield draws as replicas finish them. The inner engine's own errors come through as they are."""
        heard: queue.SimpleQueue[tuple[int, Delta | Exception]] = queue.SimpleQueue()
        unfinished = sum(request.n for request in requests)
        located = self._located(requests)

        def to(index: int) -> Listener:
            return lambda what: heard.put((index, what))

        jobs: list[Job] = []
        try:
            jobs = self.fleet.send(
                [(requests[index], to(index), self._folder(requests[index], located)) for index in in_order(requests)],
                listed=True,
            )
            while unfinished:
                index, what = heard.get()
                if isinstance(what, ReplicaLost):
                    raise EngineError(f"{what}; {unfinished} draws are missing; what was drawn is kept, resume the run")
                if isinstance(what, Exception):
                    raise what
                unfinished -= 1
                yield joined(requests[index].key, [what])
        finally:
            if unfinished:
                self.fleet.cancel(jobs)

    def submit(self, request: Request, listen: Listener) -> Job:
        """See `types.Engine`. Raises EngineError when no replica is left."""
        folder = self._folder(request, self._located([request]))
        return self.fleet.send([(request, listen, folder)])[0]

    def pin_adapter(self, adapter: AdapterRef) -> None:
        """Resident in every replica, whatever else is asked for. Raises AdapterError where one has no room."""
        self.fleet.pin(adapter, self._adapters.folder(adapter).resolve())

    @property
    def residency(self) -> Residency | None:
        """Of all replicas together."""
        return self.fleet.residency

    @property
    def replicas(self) -> int:
        """How many can be asked now."""
        return self.fleet.live

    @property
    def waiting(self) -> int:
        """Submitted draws that have not begun."""
        return self.fleet.waiting

    @property
    def broken(self) -> bool:
        """Whether no replica is left; every request is then refused."""
        return self.fleet.broken

    def close(self) -> None:
        self.fleet.close()
        if self._owns_ray:
            cluster.leave()

    def _located(self, requests: Sequence[Request]) -> dict[str, Path]:
        """Adapter id → its folder; what is not found is left to the inner engine, which may know it or refuses."""
        found: dict[str, Path] = {}
        for ref in {r.adapter.adapter_id: r.adapter for r in requests if r.adapter is not None}.values():
            with contextlib.suppress(AdapterError):
                found[ref.adapter_id] = self._adapters.folder(ref).resolve()
        return found

    def _folder(self, request: Request, located: Mapping[str, Path]) -> Path | None:
        return located.get(request.adapter.adapter_id) if request.adapter else None


def in_order(requests: Sequence[Request]) -> list[int]:
    """Numbers of requests as they are handed out: adapters with most draws first, the base model last.

    So adapters are spread while there is choice, and what may be drawn anywhere evens it out.
    """
    draws: dict[str, int] = defaultdict(int)
    for request in requests:
        if request.adapter:
            draws[request.adapter.adapter_id] += request.n

    def place(index: int) -> tuple[int, str, int]:
        name = requests[index].adapter.adapter_id if requests[index].adapter else ""  # type: ignore[union-attr]
        return -draws[name] if name else 0, name, index

    return sorted(range(len(requests)), key=place)
