"""A registry: a folder with adapters as files and what is known of them in SQLite. Loads no torch.

    registry.sqlite      entries, lineage, fitness, operations
    objects/ab/abcd…/    the adapters (see objects.py)

An adapter's files come first and its entry second, so an entry never names what is not there; files without an entry
are what killed processes left, and `gc` takes them away.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import sqlalchemy as sa

from rune.adapters.registry import lineage, rows
from rune.adapters.registry.database import Database, adapters, aliases, measurements, sources
from rune.adapters.registry.objects import Objects, held, remove
from rune.adapters.registry.records import Draft, Entry, Fitness, Level, Source, Status
from rune.adapters.registry.rows import MIN_PREFIX
from rune.errors import AdapterError, DataError
from rune.types import AdapterRef

MAX_RANK = 256  # of an entry; engines pad every adapter of a batch to the largest


def default_folder() -> Path:
    """`$RUNE_REGISTRY`, or ~/.local/share/rune/adapters."""
    return Path(os.environ.get("RUNE_REGISTRY") or Path.home() / ".local" / "share" / "rune" / "adapters")


class Registry:
    """See the module's docstring. Safe for many processes at once; opened anew in each."""

    def __init__(self, folder: Path, *, create: bool = False, max_rank: int = MAX_RANK) -> None:
        """Raises StoreError if there is no registry and `create` is false, or if it cannot be read."""
        self.folder, self.max_rank = folder, max_rank
        self.database = Database(folder, create=create)
        self.objects = Objects(folder / "objects")

    # ------------------------------------------------------------------ in

    def insert(self, draft: Draft, config: bytes, weights: bytes, *, alias: str = "") -> tuple[Entry, bool]:
        """Bring an adapter in, files and entry; the flag says whether it is new.

        The same adapter at the same place is there once. Raises AdapterError for one that is there at another place,
        DataError for parents that do not fit.
        """
        with self.database.files(alone=False):
            self.keep_files(draft.id, config, weights)
            with self.database.write() as connection:
                new = rows.insert(connection, draft)
                if alias:
                    rows.set_alias(connection, alias, draft.id)
        return self.get(draft.id), new

    def keep_files(self, digest: str, config: bytes, weights: bytes) -> Path:
        """The files alone; damaged ones of this name are replaced. Hold `database.files` until an entry names them."""
        if self.objects.place(digest).is_dir():
            try:
                return self.objects.verify(digest)
            except AdapterError:
                self.objects.remove(digest)
        return self.objects.put(digest, config, weights)

    def set_alias(self, name: str, digest: str) -> None:
        """Give an adapter another name; a name that was another adapter's moves."""
        with self.database.write() as connection:
            rows.set_alias(connection, name, digest)

    def set_fitness(self, digest: str, fitness: Fitness, *, own: bool = True) -> None:
        """Keep a measurement. `own`: on the adapter's own domains, so that selection goes by it."""
        with self.database.write() as connection:
            rows.add_fitness(connection, digest, fitness, own=own)

    # ------------------------------------------------------------------ look

    def get(self, digest: str) -> Entry:
        """By the whole id. Raises DataError."""
        with self.database.read() as connection:
            row = connection.execute(sa.select(adapters).where(adapters.c.id == digest)).first()
        if row is None:
            raise DataError(f"{self.folder}: no adapter {digest}; `rune adapters list` shows what is there")
        return rows.entry(row)

    def has(self, digest: str) -> bool:
        """Whether there is an adapter with this whole id."""
        with self.database.read() as connection:
            return connection.execute(sa.select(adapters.c.number).where(adapters.c.id == digest)).first() is not None

    def resolve(self, name: str) -> Entry:
        """By an alias, or the first characters of an id. Raises DataError if none or several are meant."""
        found = self.named(name)
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{self.folder}: '{name}' begins the ids of several adapters; type more of it")
        raise DataError(
            f"{self.folder}: no adapter '{name}'; give an alias or the first {MIN_PREFIX} or more characters of an "
            "id that `rune adapters list` shows"
        )

    def named(self, name: str, projects: Collection[str] | None = None) -> list[Entry]:
        """Up to two entries that `name` may mean: by an alias, else by the first characters of an id.

        With `projects`, no others are looked at: an adapter of somebody else is one that is not there. An alias may
        then leave out the project in front of it ("dates" for "shop/dates").
        """
        mine = sa.true() if projects is None else adapters.c.project.in_(projects)
        called: sa.ColumnElement[bool] = aliases.c.name == name
        if projects is not None:
            called = aliases.c.name.in_([name, *(f"{project}/{name}" for project in projects)])
        by_alias = sa.select(adapters).join(aliases, aliases.c.adapter == adapters.c.id).where(called, mine).distinct()
        prefix = name.lower()
        by_id = sa.select(adapters).where(adapters.c.id >= prefix, adapters.c.id < prefix + "g", mine)
        with self.database.read() as connection:
            found = connection.execute(by_alias.limit(2)).all()
            if not found and len(name) >= MIN_PREFIX and not set(prefix) - set("0123456789abcdef"):
                found = connection.execute(by_id.limit(2)).all()
        return [rows.entry(row) for row in found]

    def projects(self) -> list[str]:
        """Every project that has an adapter, sorted."""
        with self.database.read() as connection:
            return sorted(connection.execute(sa.select(adapters.c.project).distinct()).scalars())

    def page(self, view: View, *, after: int = 0, limit: int = 50) -> list[Entry]:
        """Entries in the order of their numbers, those after number `after` first."""
        with self.database.read() as connection:
            return [rows.entry(row) for row in connection.execute(view.query(after, limit))]

    def count(self, view: View) -> int:
        with self.database.read() as connection:
            return int(connection.execute(view.narrow(sa.select(sa.func.count()))).scalar() or 0)

    def sources(self, digest: str) -> list[Source]:
        """The trajectories that an adapter was made from."""
        query = sa.select(sources).where(sources.c.adapter == digest).order_by(sources.c.trajectory)
        with self.database.read() as connection:
            return [Source(trajectory_id=r.trajectory, task_id=r.task) for r in connection.execute(query)]

    def aliases(self, digest: str) -> list[str]:
        query = sa.select(aliases.c.name).where(aliases.c.adapter == digest).order_by(aliases.c.name)
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def aliases_of(self, digests: Collection[str]) -> list[tuple[str, str]]:
        """(id, alias) of some adapters, by alias."""
        found: list[tuple[str, str]] = []
        some = sorted(digests)
        with self.database.read() as connection:
            for first in range(0, len(some), 500):  # SQLite takes so many values at once, and more
                query = sa.select(aliases.c.adapter, aliases.c.name).where(aliases.c.adapter.in_(some[first:][:500]))
                found += [(row.adapter, row.name) for row in connection.execute(query)]
        return sorted(found, key=lambda pair: pair[1])

    def fitness(self, digest: str) -> list[Fitness]:
        """All measurements of an adapter, the oldest first; NaN where version 1 did not keep a part."""
        query = sa.select(measurements).where(measurements.c.adapter == digest).order_by(measurements.c.number)
        with self.database.read() as connection:
            return [rows.fitness(row) for row in connection.execute(query)]

    def lineage(self, digest: str) -> lineage.Lineage:
        """Ancestors and descendants. Raises StoreError if they go in a circle."""
        with self.database.read() as connection:
            return lineage.of(connection, digest, where=str(self.database.path))

    # ------------------------------------------------------------------ out

    def ref(self, found: Entry, *, base: str) -> AdapterRef:
        """An adapter as engines take it, its bytes verified. Raises AdapterError for another base or a high rank."""
        self.check(found, base=base)
        self.objects.verify(found.id)
        return AdapterRef(
            adapter_id=found.id,
            base_model=found.base,
            rank=found.rank,
            delta_w_norm=found.delta_w_norm,
        )

    def check(self, found: Entry, *, base: str) -> None:
        """Raises AdapterError if an adapter is not for this base model, or has more ranks than are allowed."""
        if base and found.base != base:
            raise AdapterError(
                f"adapter {found.short} was made for base model {found.base[:12]}… ({found.base_name or 'no name'}), "
                f"asked for is {base[:12]}…; choose one of that base: `rune adapters list --base {base[:12]}`"
            )
        if found.rank > self.max_rank:
            raise AdapterError(
                f"adapter {found.short} has rank {found.rank}, the limit is {self.max_rank}; "
                f"pass --max-rank {found.rank}"
            )

    # ------------------------------------------------------------------ keep in order

    def verify(self, chosen: Sequence[Entry] = ()) -> list[str]:
        """Everything that is wrong, a line each: bytes, lineage, the database. `chosen`: of these adapters only."""
        problems = []
        if damage := self.database.check():
            problems.append(f"{self.database.path}: {damage}")
        with self.database.read() as connection:
            if circle := lineage.circle(lineage.edges(connection)):
                problems.append(f"{self.database.path}: {lineage.words(circle)}")
            every = [rows.entry(row) for row in connection.execute(sa.select(adapters).order_by(adapters.c.number))]
            released = rows.released(connection)
        for found in chosen or every:
            if found.status is Status.ARCHIVED and found.id in released and not self.objects.place(found.id).exists():
                continue
            try:
                self.objects.verify(found.id)
            except AdapterError as error:
                problems.append(str(error))
        return problems

    def gc(self, *, dry_run: bool = False) -> Collected:
        """Remove files that no entry names, when no other process is bringing any in."""
        with self.database.files(alone=True):
            with self.database.read() as connection:
                named = set(connection.execute(sa.select(adapters.c.id)).scalars())
            stray = [self.objects.place(d) for d in self.objects.digests() if d not in named]
            stray += self.objects.unfinished()
            found = Collected(len(stray), sum(map(held, stray)))
            if not dry_run:
                for folder in stray:
                    remove(folder)
        return found


class Collected(NamedTuple):
    """What `gc` or `release` found."""

    folders: int
    bytes: int


class View(NamedTuple):
    """Which entries are listed."""

    project: str = ""
    domain: str = ""
    level: Level | None = None
    status: Status | None = Status.ACTIVE
    base: str = ""  # first characters of a base model's digest
    projects: Collection[str] | None = None  # of these only; None: all

    def narrow(self, query: sa.Select) -> sa.Select:
        query = query.select_from(adapters)
        if self.project:
            query = query.where(adapters.c.project == self.project)
        if self.domain:
            query = query.where(adapters.c.domain == self.domain)
        if self.level is Level.PROJECT:
            query = query.where(adapters.c.domain == "")
        elif self.level is Level.DOMAIN:
            query = query.where(adapters.c.domain != "", adapters.c.task == "")
        elif self.level is Level.TASK:
            query = query.where(adapters.c.task != "")
        if self.status:
            query = query.where(adapters.c.status == self.status)
        if self.projects is not None:
            query = query.where(adapters.c.project.in_(self.projects))
        if self.base:
            query = query.where(adapters.c.base.startswith(self.base, autoescape=True))
        return query

    def query(self, after: int, limit: int) -> sa.Select:
        narrowed = self.narrow(sa.select(adapters)).where(adapters.c.number > after)
        return narrowed.order_by(adapters.c.number).limit(limit)
