"""Which adapters were made from which: a graph without circles, written once with each entry."""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from rune.adapters.registry.database import adapters, parents
from rune.adapters.registry.records import Draft
from rune.errors import AdapterError, DataError, StoreError


class Edge(NamedTuple):
    """`child` was made from `parent`."""

    child: str
    parent: str
    weight: float


class Lineage(NamedTuple):
    """What is above and below one adapter."""

    ancestors: tuple[Edge, ...]
    descendants: tuple[Edge, ...]


def add(connection: sa.Connection, draft: Draft) -> None:
    """Write a new entry's parents. Raises DataError for one that is not there, AdapterError for one of another base."""
    for position, (parent, weight) in enumerate(draft.made_from.parents):
        if parent == draft.id:
            raise DataError(f"adapter {draft.id[:12]} cannot be its own parent: that would be a cycle in the lineage")
        base = connection.execute(sa.select(adapters.c.base).where(adapters.c.id == parent)).scalar()
        if base is None:
            raise DataError(f"no adapter {parent} to be a parent; add it first")
        if base != draft.base:
            raise AdapterError(
                f"parent {parent[:12]} is for base model {base[:12]}…, the adapter for {draft.base[:12]}…; "
                "adapters of several bases cannot be mixed"
            )
        connection.execute(
            parents.insert().values(child=draft.id, parent=parent, position=position, weight=float(weight))
        )


def unchanged(connection: sa.Connection, draft: Draft) -> None:
    """An adapter that is there keeps its parents. Raises DataError if others are given, or would make a circle."""
    given = {parent for parent, _ in draft.made_from.parents}
    if not given:
        return
    below = {e.child for e in _walk(connection, draft.id, down=True)} | {draft.id}
    if circle := given & below:
        raise DataError(
            f"adapter {draft.id[:12]} cannot have parent {min(circle)[:12]}, which was made from it: "
            "that would be a cycle in the lineage"
        )
    had = set(connection.execute(sa.select(parents.c.parent).where(parents.c.child == draft.id)).scalars())
    if given != had:
        raise DataError(f"adapter {draft.id[:12]} is there already with other parents; lineage is written once")


def of(connection: sa.Connection, digest: str, *, where: str) -> Lineage:
    """Everything above and below. Raises StoreError for a circle: the file was changed by something else."""
    found = Lineage(_walk(connection, digest, down=False), _walk(connection, digest, down=True))
    if path := circle([*found.ancestors, *found.descendants]):
        raise StoreError(f"{where}: {words(path)}; put a copy back")
    return found


def edges(connection: sa.Connection) -> list[Edge]:
    """The whole graph."""
    rows = connection.execute(sa.select(parents.c.child, parents.c.parent, parents.c.weight))
    return [Edge(*row) for row in rows]


def circle(found: Iterable[Edge]) -> Sequence[str]:
    """Ids along a circle, the first one last again; () if there is none."""
    graph: dict[str, set[str]] = {}
    for edge in found:
        graph.setdefault(edge.child, set()).add(edge.parent)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        path: list[str] = error.args[1]
        return path
    return ()


def words(path: Sequence[str]) -> str:
    """A circle as text."""
    return "a cycle in the lineage: " + " → ".join(digest[:12] for digest in path)


def _walk(connection: sa.Connection, digest: str, *, down: bool) -> tuple[Edge, ...]:
    return tuple(Edge(*row) for row in connection.execute(walk(digest, down=down)))


def walk(digest: str, *, down: bool) -> sa.Select:
    """Edges reached from one adapter, up or down. UNION drops what was seen, so a circle ends too."""
    here, there = (parents.c.parent, parents.c.child) if down else (parents.c.child, parents.c.parent)
    edge = (parents.c.child, parents.c.parent, parents.c.weight, there.label("next"))
    reached = sa.select(*edge).where(here == digest).cte("reached", recursive=True)
    reached = reached.union(sa.select(*edge).where(here == reached.c.next))
    return sa.select(reached.c.child, reached.c.parent, reached.c.weight)
