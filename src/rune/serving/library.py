"""The memory from Python: `rune.remember(trajectory)` makes an adapter, `rune.chat(…, memory=…)` answers under it.

The same registry, hypernetwork and engine as the server's, in this process and without one. Models are loaded when they
are first needed, and kept for the next call.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rune import config as settings_of
from rune import plugins, prompts
from rune.adapters.registry.objects import Objects
from rune.adapters.registry.registry import Registry
from rune.corpus import reading
from rune.corpus.redact import Redactor
from rune.errors import AdapterError, DataError
from rune.models import chat as templates
from rune.models import resolve
from rune.serving import memory as memories
from rune.serving.keys import OWNER
from rune.serving.memory import AdapterMemory, Learned
from rune.serving.refusals import Refusal
from rune.serving.settings import Config, device_of
from rune.types import AdapterRef, Engine, ModelRef, Request, Sampling, Trajectory

Session = Trajectory | Path | str  # a file or folder in any format that `collect --import` reads, or what is in one


def remember(
    sessions: Session | Sequence[Session],
    *,
    project: str = "",
    domain: str = "",
    task: str = "",
    alias: str = "",
    config: Config | None = None,
) -> AdapterRef:
    """One adapter from trajectories, registered at project/domain/task. Raises DataError or AdapterError."""
    made = learned(sessions, project=project, domain=domain, task=task, alias=alias, config=config)
    return _memory(_key(config)).ref(made.entry)


def learned(
    sessions: Session | Sequence[Session],
    *,
    project: str = "",
    domain: str = "",
    task: str = "",
    alias: str = "",
    config: Config | None = None,
) -> Learned:
    """`remember`, with what else is known of it."""
    found = read(sessions)
    memory = _memory(_key(config))
    try:
        where = memory.place_for(OWNER, project, domain, task)
        return memory.learn_from(found.trajectories, where, alias=alias, notes=found.words())
    except Refusal as refusal:
        raise AdapterError(str(refusal)) from None


def read(sessions: Session | Sequence[Session]) -> reading.Imported:
    """Sessions read, redacted and checked. Raises DataError."""
    several = [sessions] if isinstance(sessions, Trajectory | Path | str) else list(sessions)
    found = reading.read_all([Path(one) for one in several if not isinstance(one, Trajectory)])
    found.trajectories += [reading.redacted(one, Redactor()) for one in several if isinstance(one, Trajectory)]
    found.places += ["trajectory"] * (len(found.trajectories) - len(found.places))
    if not found.trajectories:
        raise DataError("nothing to remember; give a session's file, or a Trajectory")
    found.check_exclusion([])
    return found


def memory_of(config: Config | None = None) -> AdapterMemory:
    """What `remember` remembers with: the registry and the hypernetwork, loaded once. Raises RuneError."""
    return _memory(_key(config))


def chat(
    messages: str | Sequence[tuple[str, str]],
    *,
    memory: AdapterRef | str | None = None,
    max_tokens: int = 512,
    temperature: float = 0.0,
    seed: int = 0,
    config: Config | None = None,
) -> str:
    """The model's answer to a text, or to (role, text) in order. `memory`: what `remember` gave, or an adapter's name.

    Raises AdapterError for an adapter that is not there: the base model never answers for one.
    """
    turns = (("user", messages),) if isinstance(messages, str) else tuple(messages)
    key = _key(config)
    if isinstance(memory, str):
        try:
            memory = _memory(key).ref(_memory(key).named(memory, OWNER))
        except Refusal as refusal:
            raise AdapterError(str(refusal)) from None
    opened = _model(key)
    request = Request(
        key="chat",
        prompt=templates.render(opened.model, prompts.Chat(messages=turns, prefill="")),
        sampling=Sampling(temperature=temperature, max_new_tokens=max_tokens),
        seed=seed,
        adapter=memory,
    )
    (completion,) = _engine(key).complete([request])
    return completion.text


class _Opened(NamedTuple):
    config: Config
    model: ModelRef
    device: str


_configs: dict[str, Config] = {}


def _key(config: Config | None) -> str:
    """A name for a config that a cache can hold."""
    config = config or Config()
    key = settings_of.digest(config)
    _configs[key] = config
    return key


@functools.lru_cache(maxsize=2)
def _model(key: str) -> _Opened:
    config = _configs[key]
    model = resolve.resolve(config.model.name, sources=config.model.sources, cache=resolve.default_cache())
    return _Opened(config, model, device_of(config))


@functools.lru_cache(maxsize=2)
def _memory(key: str) -> AdapterMemory:
    config, model, device = _model(key)
    registry, generator = memories.opened(config.registry, model, config.checkpoint(model), device=device)
    assert isinstance(registry, Registry)
    return AdapterMemory(registry, model, generator, strength=config.serve.strength, keep=config.kept)


@functools.lru_cache(maxsize=2)
def _engine(key: str) -> Engine:
    config, model, device = _model(key)
    module = plugins.load("engines", config.engine.name)
    own = settings_of.build(module.Config, config.engine.settings, where="engine.settings")
    engine: Engine = module.build(
        own,
        model=model,
        device=device,
        dtype=config.dtype(device),
        adapters=Objects(config.registry / "objects"),
    )
    return engine
