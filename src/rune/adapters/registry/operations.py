"""What was done to the memory: one row and one transaction an operation, with all that is needed to do it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from rune.adapters.registry.database import adapters, aliases, operations, passes
from rune.adapters.registry.objects import held
from rune.adapters.registry.records import Draft, Entry, Fitness, Operation, Status
from rune.adapters.registry.registry import Collected, Registry
from rune.adapters.registry.rows import RELEASE, add_fitness, insert, set_status
from rune.errors import AdapterError, DataError
from rune.runs.store import now


def key(kind: str, inputs: Sequence[str], arguments: Mapping[str, Any]) -> str:
    """The name of an operation: equal for equal inputs and arguments, so that a stopped process does nothing twice."""
    text = json.dumps([kind, list(inputs), dict(arguments)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def commit(
    registry: Registry,
    *,
    kind: str,
    inputs: Sequence[str],
    arguments: Mapping[str, Any],
    numbers: Mapping[str, Any],
    made: Draft | None = None,
    kept: bool = False,
    fitness: Sequence[tuple[Fitness, bool]] = (),
    archive: Collection[str] = (),
    successor: Mapping[str, str] | None = None,
) -> Operation:
    """Everything that an operation changes, at once; returns its row. Done before: nothing changes.

    `made`: the adapter that came of it, whose files are there; archived unless `kept`. `fitness`: its measurements,
    each with whether it was on its own domains. `archive`: ids. `successor`: id → the id that its aliases move to.
    """
    name = key(kind, inputs, arguments)
    with registry.database.write() as connection:
        there = connection.execute(sa.select(operations).where(operations.c.key == name)).first()
        if there is not None:
            return _operation(there)
        if made is not None:
            new = insert(connection, made)
            for found, own in fitness:
                add_fitness(connection, made.id, found, own=own)
            if new and not kept:
                set_status(connection, [made.id], Status.ARCHIVED)
        set_status(connection, list(archive), Status.ARCHIVED)
        for old, heir in (successor or {}).items():
            connection.execute(sa.update(aliases).where(aliases.c.adapter == old).values(adapter=heir))
        result = made.id if made else ""
        return _written(connection, name, kind, inputs, arguments, result=result, kept=kept, numbers=numbers)


def _written(
    connection: sa.Connection,
    name: str,
    kind: str,
    inputs: Sequence[str],
    arguments: Mapping[str, Any],
    *,
    result: str = "",
    kept: bool = False,
    numbers: Mapping[str, Any] | None = None,
) -> Operation:
    row: dict[str, Any] = {
        "kind": kind,
        "key": name,
        "inputs": list(inputs),
        "arguments": dict(arguments),
        "result": result,
    }
    row |= {"kept": kept, "numbers": dict(numbers or {}), "done": now()}
    connection.execute(operations.insert().values(**row))
    return _operation(connection.execute(sa.select(operations).where(operations.c.key == name)).one())


def forget(registry: Registry, entries: Sequence[Entry], *, reason: str) -> Operation:
    """Archive adapters: they stay, with all that is known of them, and are never selected again."""
    return _turn(registry, "forget", entries, Status.ARCHIVED, reason)


def restore(registry: Registry, entries: Sequence[Entry], *, reason: str) -> Operation:
    """Take adapters back from the archive. Raises AdapterError for one whose weights were released."""
    for found in entries:
        if not registry.objects.place(found.id).exists():
            made = [str(o.number) for o in listed(registry, found.id) if o.result == found.id]
            again = f", or make it again: `rune adapters evolve --config FILE --replay {made[0]}`" if made else ""
            raise AdapterError(
                f"adapter {found.short}: its weights were removed; `rune adapters add` a copy of it{again}"
            )
    return _turn(registry, "restore", entries, Status.ACTIVE, reason)


def release(registry: Registry, *, dry_run: bool = False) -> Collected:
    """Remove the weights of archived adapters, when no other process is bringing any in.

    Their entries stay with all that is known of them. The operation that says so is written first, so that a killed
    sweep leaves nothing missing that is not explained.
    """
    with registry.database.files(alone=True):
        with registry.database.read() as connection:
            archived = set(
                connection.execute(sa.select(adapters.c.id).where(adapters.c.status == Status.ARCHIVED)).scalars()
            )
        resting = [digest for digest in registry.objects.digests() if digest in archived]
        found = Collected(len(resting), sum(held(registry.objects.place(digest)) for digest in resting))
        if resting and not dry_run:
            with registry.database.write() as connection:
                _numbered(connection, RELEASE, resting, {})
            for digest in resting:
                registry.objects.remove(digest)
    return found


def _turn(registry: Registry, kind: str, entries: Sequence[Entry], status: Status, reason: str) -> Operation:
    ids = [found.id for found in entries]
    with registry.database.write() as connection:
        set_status(connection, ids, status)
        return _numbered(connection, kind, ids, {"reason": reason})


def _numbered(connection: sa.Connection, kind: str, ids: Sequence[str], arguments: Mapping[str, Any]) -> Operation:
    """An operation that may be done again: the arguments say how many of its kind came before."""
    earlier = sa.select(sa.func.count()).select_from(operations).where(operations.c.kind == kind)
    arguments = {**arguments, "after": connection.execute(earlier).scalar()}
    return _written(connection, key(kind, ids, arguments), kind, ids, arguments)


def done(registry: Registry, name: str) -> Operation | None:
    """The operation of this key, if it was done."""
    with registry.database.read() as connection:
        row = connection.execute(sa.select(operations).where(operations.c.key == name)).first()
    return None if row is None else _operation(row)


def get(registry: Registry, number: int) -> Operation:
    """Raises DataError."""
    with registry.database.read() as connection:
        row = connection.execute(sa.select(operations).where(operations.c.number == number)).first()
    if row is None:
        raise DataError(f"{registry.folder}: no operation {number}; `rune adapters lineage --operations` lists them")
    return _operation(row)


def listed(registry: Registry, digest: str = "") -> list[Operation]:
    """All operations in order, or those that one adapter had a part in."""
    query = sa.select(operations).order_by(operations.c.number)
    with registry.database.read() as connection:
        found = [_operation(row) for row in connection.execute(query)]
    return [o for o in found if not digest or digest == o.result or digest in o.inputs]


# --------------------------------------------------------------------------- passes, task by task


def known_passes(registry: Registry, digest: str, protocol: str) -> dict[str, tuple[int, int]]:
    """Task → (passes, draws) of one adapter under one protocol."""
    query = sa.select(passes).where(passes.c.adapter == digest, passes.c.protocol == protocol)
    with registry.database.read() as connection:
        return {row.task: (row.passes, row.draws) for row in connection.execute(query)}


def spent(registry: Registry, protocol: str) -> int:
    """Draws that were made under a protocol."""
    query = sa.select(sa.func.sum(passes.c.draws)).where(passes.c.protocol == protocol)
    with registry.database.read() as connection:
        return int(connection.execute(query).scalar() or 0)


def add_passes(registry: Registry, protocol: str, found: Sequence[tuple[str, str, int, int]]) -> None:
    """(adapter, task, passes, draws), kept once: what another process has measured meanwhile stays."""
    if not found:
        return
    rows = [
        {"adapter": adapter, "protocol": protocol, "task": task, "passes": c, "draws": n}
        for adapter, task, c, n in found
    ]
    with registry.database.write() as connection:
        connection.execute(passes.insert().prefix_with("OR IGNORE"), rows)


def _operation(row: sa.Row) -> Operation:
    return Operation(
        number=row.number,
        kind=row.kind,
        key=row.key,
        inputs=tuple(row.inputs),
        arguments=row.arguments,
        result=row.result,
        kept=bool(row.kept),
        numbers=row.numbers,
        done=row.done,
    )
