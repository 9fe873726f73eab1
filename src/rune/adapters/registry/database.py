"""The registry's SQLite file: tables, transactions, and migration to the newest version.

WAL, one transaction an operation. A writer takes the lock when it begins (BEGIN IMMEDIATE), so that two never find out
at the end that they contradict each other; a process that dies leaves its transaction undone.
"""

from __future__ import annotations

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from rune.errors import StoreError

FILE = "registry.sqlite"
LOCK = ".lock"
NEWEST = "2"
BUSY_SECONDS = 60

metadata = sa.MetaData()

adapters = sa.Table(
    "adapters",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String, nullable=False, unique=True),
    sa.Column("base", sa.String, nullable=False),
    sa.Column("base_name", sa.String, nullable=False),
    sa.Column("project", sa.String, nullable=False),
    sa.Column("domain", sa.String, nullable=False),
    sa.Column("task", sa.String, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("modules", sa.String, nullable=False),
    sa.Column("parameters", sa.Integer, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("delta_w_norm", sa.Float, nullable=False),
    sa.Column("how", sa.String, nullable=False),
    sa.Column("hypernet", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("created", sa.String, nullable=False),
    sa.Column("fitness", sa.Float),
    sa.Column("fitness_low", sa.Float),
    sa.Column("fitness_high", sa.Float),
    sa.Column("fitness_draws", sa.Integer),
    sa.Column("measured", sa.String, nullable=False, server_default=""),
    sa.Index("by_place", "base", "project", "domain", "task", "status", "fitness", "number"),
    sa.Index("by_project", "project", "number", "status"),
    sa.Index("by_domain", "project", "domain", "number", "status"),
    sqlite_autoincrement=True,
)
sources = sa.Table(
    "sources",
    metadata,
    sa.Column("adapter", sa.ForeignKey("adapters.id"), primary_key=True),
    sa.Column("trajectory", sa.String, primary_key=True),
    sa.Column("task", sa.String, nullable=False),
    sa.Index("by_trajectory", "trajectory"),
)
parents = sa.Table(
    "parents",
    metadata,
    sa.Column("child", sa.ForeignKey("adapters.id"), primary_key=True),
    sa.Column("parent", sa.ForeignKey("adapters.id"), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Index("by_parent", "parent"),
)
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("adapter", sa.ForeignKey("adapters.id"), nullable=False),
    sa.Index("by_adapter", "adapter"),
)
# From version 2 on.
measurements = sa.Table(
    "measurements",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("adapter", sa.ForeignKey("adapters.id"), nullable=False),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("low", sa.Float, nullable=False),
    sa.Column("high", sa.Float, nullable=False),
    sa.Column("level", sa.Float, nullable=False),
    sa.Column("alpha", sa.Float),
    sa.Column("pass_rate", sa.Float),
    sa.Column("generalization", sa.Float),
    sa.Column("inside_tasks", sa.Integer),
    sa.Column("outside_tasks", sa.Integer),
    sa.Column("draws", sa.Integer, nullable=False),
    sa.Column("protocol", sa.String, nullable=False),
    sa.Column("measured", sa.String, nullable=False),
    sa.Index("by_measured_adapter", "adapter", "number"),
)
passes = sa.Table(
    "passes",
    metadata,
    sa.Column("adapter", sa.String, primary_key=True),  # it may be measured before it is decided what becomes of it
    sa.Column("protocol", sa.String, primary_key=True),
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("draws", sa.Integer, nullable=False),
    sa.Column("passes", sa.Integer, nullable=False),
)
operations = sa.Table(
    "operations",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("key", sa.String, nullable=False, unique=True),
    sa.Column("inputs", sa.JSON, nullable=False),
    sa.Column("arguments", sa.JSON, nullable=False),
    sa.Column("result", sa.String, nullable=False),
    sa.Column("kept", sa.Boolean, nullable=False),
    sa.Column("numbers", sa.JSON, nullable=False),
    sa.Column("done", sa.String, nullable=False),
)


class Database:
    """One SQLite file at the newest version."""

    def __init__(self, folder: Path, *, create: bool) -> None:
        """Raises StoreError if there is none and `create` is false, or if it is damaged or of a newer rune."""
        self.folder, self.path = folder, folder / FILE
        if not create and not self.path.is_file():
            raise StoreError(
                f"{folder}: no registry of adapters; `rune adapters add DIR --registry {folder}` makes one"
            )
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            # SQLite takes an empty file for a new database; `gc` would then remove every adapter, as none has an entry.
            if self.path.is_file() and not self.path.stat().st_size and any((folder / "objects").glob("*/*")):
                raise StoreError(_words(self.path, RuntimeError("an empty file; not a database")))
        self._engine = sa.create_engine(
            f"sqlite:///{self.path}", connect_args={"timeout": BUSY_SECONDS}, poolclass=sa.pool.NullPool
        )
        sa.event.listen(self._engine, "connect", _on_connect)
        sa.event.listen(self._engine, "begin", _on_begin)
        self._bring_up_to_date()

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """One state of the database, however long it is looked at."""
        with self._errors(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction: all of it or, if the body raises or the process dies, nothing."""
        with (
            self._errors(),
            self._engine.connect().execution_options(rune_write=True) as connection,
            connection.begin(),
        ):
            yield connection

    @contextlib.contextmanager
    def files(self, *, alone: bool) -> Iterator[None]:
        """The right to add files (shared) or to remove files that nothing names (alone). Ends with the process."""
        with self._errors(), (self.folder / LOCK).open("a", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            yield

    def check(self) -> str:
        """SQLite's own look at the whole file: "" or the first thing that is wrong."""
        with self.read() as connection:
            found = str(connection.exec_driver_sql("PRAGMA integrity_check").scalar())
            if found != "ok":
                return found
            stray = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        return "" if stray is None else f"a row of '{stray[0]}' names an adapter that is not there"

    # ------------------------------------------------------------------ version

    def version(self) -> str:
        """Of the tables, "" if there are none."""
        with self.read() as connection:
            if not sa.inspect(connection).has_table("alembic_version"):
                return ""
            return str(connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() or "")

    def _bring_up_to_date(self) -> None:
        if self.version() == NEWEST:
            return
        with self.files(alone=True):
            found = self.version()
            if found == NEWEST:
                return  # another process did it meanwhile
            if found and (not found.isdecimal() or int(found) > int(NEWEST)):
                raise StoreError(f"{self.path}: version {found}, this rune reads up to {NEWEST}; install a newer rune")
            with self.read() as connection:
                connection.exec_driver_sql("COMMIT")  # the journal is chosen outside of transactions; the file keeps it
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            with self.write() as connection:
                migrate(connection)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What SQLite and the file system say, as one line."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            raise StoreError(_words(self.path, error.orig)) from None
        except sqlite3.Error as error:
            raise StoreError(_words(self.path, error)) from None
        except OSError as error:
            raise StoreError(f"{error.filename or self.path}: cannot write: {error.strerror or error}") from None


def migrate(connection: sa.Connection, to: str = "head") -> None:
    """Alembic's upgrade inside the caller's transaction: a killed migration leaves the old version as it was."""
    from alembic import command
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    settings.attributes["connection"] = connection
    command.upgrade(settings, to)


def _on_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # sqlite3 would begin and commit by rules of its own
    connection.execute("PRAGMA synchronous = FULL")  # what was said to be there survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")


def _on_begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("rune_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _words(path: Path, error: BaseException | None) -> str:
    said = str(error)
    if "disk is full" in said or "disk I/O" in said:
        return f"{path}: the disk is full or fails ({said}); nothing was changed: free some space and try again"
    if "locked" in said:
        return f"{path}: other processes have been writing for {BUSY_SECONDS} s; try again"
    if "readonly" in said or "unable to open" in said:
        return f"{path}: cannot be opened for writing ({said}); check the folder's owner, or pass --registry"
    if "malformed" in said or "not a database" in said or "no such table" in said or "no such column" in said:
        return (
            f"{path}: damaged ({said}); put a copy back, or move it away and add the adapters again: "
            f"`rune adapters add --registry {path.parent} {path.parent}/objects/*/*`"
        )
    return f"{path}: {said}"
