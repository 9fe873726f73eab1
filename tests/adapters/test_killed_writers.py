"""Eight processes write at once and are killed at any moment: nothing lost, nothing half, nothing twice."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from rune.adapters.registry import operations
from rune.adapters.registry.database import adapters, aliases, parents, sources
from rune.adapters.registry.registry import Registry, View
from tests.adapters import writer

WRITERS, KILLS, ENOUGH, SECONDS = 8, 40, 120, 60


@pytest.mark.check
def test_eight_writers_killed_at_random_lose_nothing_halve_nothing_double_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.adapters.writer"])
    folder, rng = tmp_path / "registry", random.Random(17)
    starts = itertools.count(1)
    running = {}

    def start(slot: int) -> None:
        # Numbers of a slot's lives do not meet, so that only what is meant to be shared is brought in twice.
        first = next(starts) * 1_000_000 + slot
        running[slot] = context.Process(
            target=writer.write, args=(str(folder), str(tmp_path / f"{slot}.txt"), first, WRITERS), daemon=True
        )
        running[slot].start()

    def lines() -> list[str]:
        return [line for slot in range(WRITERS) for line in _whole_lines(tmp_path / f"{slot}.txt")]

    for slot in range(WRITERS):  # all at an empty folder: they make the database together
        start(slot)
    kills, ends = 0, time.monotonic() + SECONDS
    while (kills < KILLS or len(lines()) < ENOUGH) and time.monotonic() < ends:
        time.sleep(rng.uniform(0.0, 0.25))
        slot = rng.randrange(WRITERS)
        alive = running[slot].is_alive()
        assert alive, f"writer {slot} ended by itself"
        running[slot].kill()
        running[slot].join()
        kills += 1
        start(slot)
    for process in running.values():
        process.kill()
        process.join()

    registry = Registry(folder)
    acknowledged = lines()
    assert kills >= KILLS // 2 and len(acknowledged) >= ENOUGH // 4, (kills, len(acknowledged))
    said = {line.split()[1] for line in acknowledged if line.startswith("adapter")}
    found = {e.id: e for e in registry.page(View(status=None), limit=100_000)}
    assert said <= found.keys()  # nothing lost
    assert registry.verify() == []  # nothing half: every entry has its files, every file its hash, every row its others
    assert registry.count(View(status=None)) == len(found)  # nothing twice
    for digest, entry in found.items():
        assert len(registry.sources(digest)) == 1 and entry.number > 0
    done = {line.split()[1] for line in acknowledged if line.startswith("operation")}
    keys = [o.key for o in operations.listed(registry)]
    assert done <= set(keys) and len(set(keys)) == len(keys)
    archived = {o.inputs[0] for o in operations.listed(registry)}
    assert {d for d, e in found.items() if e.status == "archived"} == archived
    registry.gc()
    assert set(registry.objects.digests()) == set(found) and not registry.objects.unfinished()
    with registry.database.read() as connection:
        for table in (sources, parents, aliases):
            rows = connection.execute(sa.select(table)).all()
            assert len(rows) == len(set(rows))
        assert connection.execute(sa.select(sa.func.count()).select_from(adapters)).scalar() == len(found)


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()
