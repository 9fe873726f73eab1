"""Which adapter serves a task: the most specific one with enough fitness, then up.

    task → domain → project        (the specified default)

Within a level the fittest wins, then the newest. An adapter that was never measured has no fitness: it is chosen only
where no threshold is asked for, and after every measured one.
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from rune.adapters.registry.database import adapters
from rune.adapters.registry.records import Entry, Place, Status
from rune.adapters.registry.registry import Registry
from rune.adapters.registry.rows import entry
from rune.errors import ConfigError


class Tried(NamedTuple):
    """One level on the way up."""

    place: Place
    best: Entry | None  # the fittest there, enough or not; None: nothing there
    enough: bool


class Selected(NamedTuple):
    """What was chosen, and what was passed over before it."""

    chosen: Entry | None
    tried: tuple[Tried, ...]


def query(base: str, place: Place) -> sa.Select:
    """The fittest active adapter at exactly this place: one step along the index `by_place`."""
    return (
        sa.select(adapters)
        .where(
            adapters.c.base == base,
            adapters.c.project == place.project,
            adapters.c.domain == place.domain,
            adapters.c.task == place.task,
            adapters.c.status == Status.ACTIVE,
        )
        .order_by(adapters.c.fitness.desc(), adapters.c.number.desc())
        .limit(1)
    )


def select(registry: Registry, place: Place, *, base: str, threshold: float | None = None) -> Selected:
    """The adapter for `place`. `threshold`: the fitness that is enough, in 0..1; None: any, measured or not.

    `base` is the base model's digest. Raises ConfigError for a threshold outside 0..1.
    """
    check_threshold(threshold)
    tried = []
    with registry.database.read() as connection:
        for level in place.upward():
            tried.append(_tried(connection, base, level, threshold))
            if tried[-1].enough:
                return Selected(tried[-1].best, tuple(tried))
    return Selected(None, tuple(tried))


def _tried(connection: sa.Connection, base: str, level: Place, threshold: float | None) -> Tried:
    row = connection.execute(query(base, level)).first()
    best = None if row is None else entry(row)
    enough = best is not None and (threshold is None or (best.fitness is not None and best.fitness >= threshold))
    return Tried(level, best, enough)


def chain(registry: Registry, place: Place, *, base: str, threshold: float | None = None) -> list[Entry]:
    """The fittest adapter with enough fitness at every level, the project's first: what is composed for `place`.

    What a composed adapter among them holds already is left out, or it would be added twice.
    """
    check_threshold(threshold)
    with registry.database.read() as connection:
        levels = [_tried(connection, base, level, threshold) for level in reversed(place.upward())]
    found = [one.best for one in levels if one.best is not None and one.enough]
    held = {e.parent for one in found if one.how == "composed" for e in registry.lineage(one.id).ancestors}
    return [one for one in found if one.id not in held]


def bases(registry: Registry, place: Place) -> list[str]:
    """Digests of the base models that have an active adapter for `place` or above it."""
    level = [sa.and_(adapters.c.domain == p.domain, adapters.c.task == p.task) for p in place.upward()]
    wanted = (
        sa.select(adapters.c.base)
        .distinct()
        .where(adapters.c.project == place.project, adapters.c.status == Status.ACTIVE, sa.or_(*level))
    )
    with registry.database.read() as connection:
        return sorted(connection.execute(wanted).scalars())


def check_threshold(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"the threshold is {threshold:g}; fitness lies between 0 and 1")
