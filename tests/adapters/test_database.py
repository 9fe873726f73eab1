"""The database: migrations from version 1, damage in one line, and queries that go by their indexes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from rune.adapters.registry import database, lineage, operations, selection
from rune.adapters.registry.database import Database, metadata
from rune.adapters.registry.records import Level, Place, Status
from rune.adapters.registry.registry import Registry, View
from rune.errors import StoreError
from tests.adapters import small


def steps(made: Database, query: sa.Executable) -> str:
    """How SQLite would answer `query`, a line a step."""
    compiled = query.compile(made._engine, compile_kwargs={"literal_binds": True})  # type: ignore[attr-defined]
    with made.read() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}").all()
    return "\n".join(str(row[3]) for row in rows)


VERSION_1 = Path(__file__).with_name("version1.sql")  # a database as version 1 wrote it


def of_version_1(folder: Path) -> Path:
    folder.mkdir()
    connection = sqlite3.connect(folder / database.FILE)
    connection.executescript(VERSION_1.read_text())
    connection.close()
    return folder


def test_a_database_of_version_1_is_brought_to_the_newest_with_all_that_is_in_it(tmp_path: Path) -> None:
    registry = Registry(of_version_1(tmp_path / "old"))
    assert registry.database.version() == database.NEWEST and registry.database.check() == ""
    first, second, third = registry.page(View(status=None))
    assert [e.id[0] for e in (first, second, third)] == ["1", "2", "3"]
    assert [e.place.level for e in (first, second, third)] == [Level.PROJECT, Level.DOMAIN, Level.TASK]
    assert third.status is Status.ARCHIVED and second.modules == ("q_proj", "v_proj")
    assert registry.resolve("best") == second
    assert [e.parent for e in registry.lineage(second.id).ancestors] == [first.id]
    assert [(s.trajectory_id, s.task_id) for s in registry.sources(third.id)] == [("trajectory-7", "Shop/7")]
    # What was known of the fitness is the first measurement now.
    (known,) = registry.fitness(second.id)
    assert (known.value, known.low, known.high, known.draws) == (0.7, 0.55, 0.8, 120) and known.alpha != known.alpha
    assert registry.fitness(third.id) == []
    place = Place(project="shop", domain="dates")
    assert selection.select(registry, place, base="b" * 64, threshold=0.6).chosen == second
    # It is used as any other: entries, measurements, operations.
    added = small.put(registry, 1, place, fitness=0.9)
    assert added.number == 4 and len(registry.fitness(added.id)) == 1
    assert operations.forget(registry, [added], reason="test").number == 1


def test_a_migration_that_is_killed_leaves_version_1_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = of_version_1(tmp_path / "old")
    before = list(sqlite3.connect(folder / database.FILE).iterdump())
    real = database.migrate

    def dies(connection: sa.Connection) -> None:
        real(connection)
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "migrate", dies)
    with pytest.raises(KeyboardInterrupt):
        Registry(folder)
    assert list(sqlite3.connect(folder / database.FILE).iterdump()) == before
    monkeypatch.undo()
    assert Registry(folder).database.version() == database.NEWEST


def test_the_migrations_end_at_the_tables_that_the_code_knows(tmp_path: Path) -> None:
    settings = Config()
    settings.set_main_option("script_location", str(Path(database.__file__).with_name("migrations")))
    assert ScriptDirectory.from_config(settings).get_current_head() == database.NEWEST
    made = Database(tmp_path / "new", create=True)
    with made.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_database_of_a_newer_rune_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r", create=True)
    with registry.database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '99'")
    with pytest.raises(StoreError, match="version 99, this rune reads up to 2; install a newer rune"):
        Registry(tmp_path / "r")


@pytest.mark.parametrize("damage", ["not a database", "cut", "middle", "empty"])
def test_a_damaged_database_is_one_line_and_stays_as_it_is(tmp_path: Path, damage: str) -> None:
    registry = Registry(tmp_path / "r", create=True)
    for n in range(40):
        small.put(registry, n, Place(project="shop", domain="d" * n + "x"), rank=1)
    path = registry.database.path
    data = bytearray(path.read_bytes())
    if damage == "not a database":
        data[:16] = b"something else\n\n"
    elif damage in ("cut", "empty"):
        data = data[: len(data) // 2 if damage == "cut" else 0]
    else:
        data[4096 : len(data)] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises(StoreError, match=r"\.sqlite: damaged .*`rune adapters add --registry .*/objects/\*/\*`"):
        Registry(tmp_path / "r").page(View(status=None), limit=100)
    assert path.read_bytes() == bytes(data)
    if damage == "empty":  # nor does a new adapter make it a registry in which the others have no entry, for `gc`
        with pytest.raises(StoreError, match="damaged"):
            Registry(tmp_path / "r", create=True)


def test_a_write_that_fails_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "r", create=True)
    entry = small.put(registry, 1, Place(project="shop"))
    with pytest.raises(StoreError, match="FOREIGN KEY"), registry.database.write() as connection:
        connection.exec_driver_sql("UPDATE adapters SET status = 'archived'")
        connection.exec_driver_sql("INSERT INTO aliases VALUES ('x', 'nobody')")
    assert registry.get(entry.id) == entry and registry.aliases(entry.id) == []


# --------------------------------------------------------------------------- how queries are answered


@pytest.mark.parametrize(
    "place", [Place(project="p"), Place(project="p", domain="d"), Place(project="p", domain="d", task="t")]
)
def test_selection_is_one_step_along_an_index(tmp_path: Path, place: Place) -> None:
    made = Database(tmp_path / "r", create=True)
    plan = steps(made, selection.query("b", place))
    columns = "base=? AND project=? AND domain=? AND task=? AND status=?"
    assert plan == f"SEARCH adapters USING INDEX by_place ({columns})"


@pytest.mark.parametrize(
    ("view", "index"),
    [
        (View(status=None), "USING INTEGER PRIMARY KEY (rowid>?)"),
        (View(), "USING INTEGER PRIMARY KEY (rowid>?)"),
        (View(project="p"), "USING INDEX by_project (project=? AND number>?)"),
        (View(project="p", domain="d"), "USING INDEX by_domain (project=? AND domain=? AND number>?)"),
        (View(project="p", level=Level.PROJECT), "(project=? AND domain=? AND number>?)"),
        (View(project="p", level=Level.TASK), "USING INDEX by_project (project=? AND number>?)"),
    ],
)
def test_a_page_is_read_in_the_order_of_an_index(tmp_path: Path, view: View, index: str) -> None:
    plan = steps(Database(tmp_path / "r", create=True), view.query(1000, 50))
    assert plan.startswith("SEARCH adapters") and index in plan
    assert "SCAN" not in plan and "TEMP B-TREE" not in plan


def test_ids_aliases_and_lineage_are_looked_up_by_index(tmp_path: Path) -> None:
    made = Database(tmp_path / "r", create=True)
    by_id = sa.select(database.adapters).where(database.adapters.c.id >= "ab", database.adapters.c.id < "abg").limit(2)
    assert "SEARCH adapters USING INDEX sqlite_autoindex_adapters_1 (id>? AND id<?)" in steps(made, by_id)
    for down in (False, True):
        assert "SCAN parents" not in steps(made, lineage.walk("a", down=down))


def test_the_check_of_plans_can_fail(tmp_path: Path) -> None:
    made = Database(tmp_path / "r", create=True)
    plan = steps(made, sa.select(database.adapters).order_by(database.adapters.c.created))
    assert "SCAN adapters" in plan and "TEMP B-TREE" in plan
