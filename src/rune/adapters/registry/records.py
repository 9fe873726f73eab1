"""What the registry keeps of an adapter: frozen records, standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rune.errors import ConfigError


class Level(StrEnum):
    """How much an adapter is about, from the widest to the most specific."""

    PROJECT = "project"
    DOMAIN = "domain"
    TASK = "task"


class Status(StrEnum):
    """Archived adapters are kept and shown, and never selected."""

    ACTIVE = "active"
    ARCHIVED = "archived"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an adapter stands: a project, a domain of it, or a task of that domain."""

    project: str
    domain: str = ""  # "" at the level of the project
    task: str = ""  # "" above the level of the task

    @property
    def level(self) -> Level:
        return Level.TASK if self.task else Level.DOMAIN if self.domain else Level.PROJECT

    def upward(self) -> tuple[Place, ...]:
        """This place, then what is above it, up to the project."""
        places = (self, Place(project=self.project, domain=self.domain), Place(project=self.project))
        return tuple(dict.fromkeys(places))

    def __str__(self) -> str:
        return "/".join(part for part in (self.project, self.domain, self.task) if part)


def place(project: str, domain: str | None = None, task: str | None = None) -> Place:
    """A place from what a user typed. Raises ConfigError for an empty name, and for a task without a domain."""
    for name, value in (("project", project), ("domain", domain), ("task", task)):
        if value is not None and (not value.strip() or any(ord(c) < 32 for c in value)):
            raise ConfigError(f"the {name} is {value!r}; give it a name, or leave --{name} out")
    if task and not domain:
        raise ConfigError(f"task {task!r} has no domain; add --domain NAME")
    return Place(project=project, domain=domain or "", task=task or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A trajectory that an adapter was made from: by its id only; the registry holds no trajectories."""

    trajectory_id: str
    task_id: str = ""  # "" when it is not known; a task that is scored must not be among them


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFrom:
    """What an adapter comes from."""

    sources: tuple[Source, ...] = ()
    hypernet: str = ""  # sha256 of the hypernetwork's weights; "" when none made it
    how: str = ""  # "hypernet", "merge svd", "imported", …
    parents: tuple[tuple[str, float], ...] = ()  # (id, weight) of the adapters that it was made from


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """φ = α · pass_rate + (1 − α) · generalization, and what it was measured on. All rates in 0..1."""

    value: float
    low: float
    high: float
    level: float  # of the interval, 0.95
    alpha: float
    pass_rate: float  # over tasks of the adapter's own domains that it was not made from
    generalization: float  # over tasks of other domains
    inside_tasks: int
    outside_tasks: int
    draws: int  # of all tasks together
    protocol: str  # digest of all that a pass depends on but the adapter: model, tasks, sampling, scorer
    measured: str  # UTC


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """An adapter on its way into the registry: what an entry says before it has a number."""

    id: str
    base: str
    base_name: str
    place: Place
    rank: int
    modules: tuple[str, ...]
    parameters: int
    size: int
    delta_w_norm: float
    made_from: MadeFrom = field(default_factory=lambda: MadeFrom())


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One adapter of a registry."""

    number: int  # in the order in which they were added, from 1
    id: str  # sha256 of its weights file, which holds the base model's digest and the scale too
    base: str  # `ModelRef.digest` of the model that it belongs to
    base_name: str
    place: Place
    rank: int
    modules: tuple[str, ...]  # kinds of linear layers that it changes
    parameters: int
    size: int  # bytes of the weights file
    delta_w_norm: float  # ‖ΔW‖_F
    how: str
    hypernet: str
    status: Status
    created: str  # UTC
    fitness: float | None = None  # the last one measured on its own domains; None: never
    fitness_low: float | None = None
    fitness_high: float | None = None
    fitness_draws: int | None = None
    measured: str = ""

    @property
    def short(self) -> str:
        """Enough of the id to type."""
        return self.id[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing that was done to the memory, and enough to do it again."""

    number: int
    kind: str  # consolidate, update, merge, forget
    key: str  # digest of kind, inputs and arguments: what is done once is not done again
    inputs: tuple[str, ...]  # ids of adapters
    arguments: Mapping[str, Any] = field(default_factory=dict)
    result: str = ""  # id of the adapter that was made, "" if none
    kept: bool = False  # the result is active
    numbers: Mapping[str, Any] = field(default_factory=dict)  # what decided: fitness of the result and the inputs
    done: str = ""  # UTC


def plain(found: Entry) -> dict[str, Any]:
    """An entry as JSON."""
    return {
        "number": found.number,
        "id": found.id,
        "base": found.base,
        "base_name": found.base_name,
        "level": found.place.level.value,
        "project": found.place.project,
        "domain": found.place.domain,
        "task": found.place.task,
        "rank": found.rank,
        "modules": list(found.modules),
        "parameters": found.parameters,
        "bytes": found.size,
        "delta_w_norm": found.delta_w_norm,
        "how": found.how,
        "hypernet": found.hypernet,
        "status": found.status.value,
        "created": found.created,
        "fitness": found.fitness,
        "fitness_interval": [found.fitness_low, found.fitness_high] if found.fitness is not None else None,
        "fitness_draws": found.fitness_draws,
        "measured": found.measured or None,
    }
