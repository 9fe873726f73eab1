"""Rows of the registry's tables as records, and the parts of a transaction that write them."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from rune.adapters.registry import lineage
from rune.adapters.registry.database import adapters, aliases, measurements, operations, sources
from rune.adapters.registry.records import Draft, Entry, Fitness, Place, Status
from rune.errors import AdapterError, DataError
from rune.runs.store import now

RELEASE = "release"  # the kind of operation that takes an archived adapter's weights off the disk
MIN_PREFIX = 4  # characters of an id that are enough to mean it


def insert(connection: sa.Connection, draft: Draft) -> bool:
    """Write an entry with its sources and parents; returns whether it is new. Raises AdapterError, DataError."""
    row = connection.execute(sa.select(adapters).where(adapters.c.id == draft.id)).first()
    if row is not None:
        there = entry(row)
        lineage.unchanged(connection, draft)
        if there.place != draft.place:
            raise AdapterError(
                f"adapter {there.short} is there already, as {there.place}; an adapter has one place: "
                "give it an --alias, or compose it"
            )
        return False
    connection.execute(
        adapters.insert().values(
            id=draft.id,
            base=draft.base,
            base_name=draft.base_name,
            project=draft.place.project,
            domain=draft.place.domain,
            task=draft.place.task,
            rank=draft.rank,
            modules=",".join(draft.modules),
            parameters=draft.parameters,
            size=draft.size,
            delta_w_norm=draft.delta_w_norm,
            how=draft.made_from.how,
            hypernet=draft.made_from.hypernet,
            status=Status.ACTIVE,
            created=now(),
        )
    )
    if draft.made_from.sources:
        rows = {s.trajectory_id: s.task_id for s in draft.made_from.sources}
        connection.execute(
            sources.insert(), [{"adapter": draft.id, "trajectory": t, "task": task} for t, task in rows.items()]
        )
    lineage.add(connection, draft)
    return True


def set_alias(connection: sa.Connection, name: str, digest: str) -> None:
    """Raises DataError for a name that could be meant as an id, or as nothing."""
    if not name.strip() or any(c.isspace() or ord(c) < 32 for c in name):
        raise DataError(f"the alias is {name!r}; give one word")
    if len(name) >= MIN_PREFIX and not set(name.lower()) - set("0123456789abcdef"):
        raise DataError(f"the alias '{name}' looks like the beginning of an id; give it a letter after f, or a dash")
    connection.execute(sa.delete(aliases).where(aliases.c.name == name))
    connection.execute(aliases.insert().values(name=name, adapter=digest))


def add_fitness(connection: sa.Connection, digest: str, fitness: Fitness, *, own: bool) -> None:
    connection.execute(
        measurements.insert().values(adapter=digest, **{name: getattr(fitness, name) for name in Fitness.__slots__})
    )
    if own:
        connection.execute(
            sa.update(adapters)
            .where(adapters.c.id == digest)
            .values(
                fitness=fitness.value,
                fitness_low=fitness.low,
                fitness_high=fitness.high,
                fitness_draws=fitness.draws,
                measured=fitness.measured,
            )
        )


def released(connection: sa.Connection) -> set[str]:
    """Adapters whose weights were taken off the disk, perhaps brought back since."""
    query = sa.select(operations.c.inputs).where(operations.c.kind == RELEASE)
    return {digest for inputs in connection.execute(query).scalars() for digest in inputs}


def set_status(connection: sa.Connection, digests: Collection[str], status: Status) -> None:
    connection.execute(sa.update(adapters).where(adapters.c.id.in_(digests)).values(status=status))


def entry(row: sa.Row) -> Entry:
    """A row of `adapters` as a record."""
    return Entry(
        number=row.number,
        id=row.id,
        base=row.base,
        base_name=row.base_name,
        place=Place(project=row.project, domain=row.domain, task=row.task),
        rank=row.rank,
        modules=tuple(row.modules.split(",")),
        parameters=row.parameters,
        size=row.size,
        delta_w_norm=row.delta_w_norm,
        how=row.how,
        hypernet=row.hypernet,
        status=Status(row.status),
        created=row.created,
        fitness=row.fitness,
        fitness_low=row.fitness_low,
        fitness_high=row.fitness_high,
        fitness_draws=row.fitness_draws,
        measured=row.measured,
    )


def fitness(row: sa.Row) -> Fitness:
    def rate(value: float | None) -> float:
        return float("nan") if value is None else value

    return Fitness(
        value=row.value,
        low=row.low,
        high=row.high,
        level=row.level,
        alpha=rate(row.alpha),
        pass_rate=rate(row.pass_rate),
        generalization=rate(row.generalization),
        inside_tasks=row.inside_tasks or 0,
        outside_tasks=row.outside_tasks or 0,
        draws=row.draws,
        protocol=row.protocol,
        measured=row.measured,
    )
