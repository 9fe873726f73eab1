"""How long a registry of 100,000 adapters takes to select and to list; writes results/bench-registry.json.

    python bench/registry.py [--entries 100000] [--check] [--out results/bench-registry.json]

Entries without files: 200 projects × 50 domains, ten adapters each (one in five of a task, one in ten archived, one
in ten without fitness). Wall time of a call in a running process, the file in the system's cache; the command line adds
the start of Python. `--check` writes nothing and exits 1 if a median select
takes more than 20 ms or a page more than 100 ms.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from rune.adapters.registry import database, selection
from rune.adapters.registry.records import Level, Place
from rune.adapters.registry.registry import Registry, View
from rune.console import table

ROOT = Path(__file__).resolve().parents[1]
BASE = hashlib.sha256(b"base").hexdigest()
LIMITS = {"select": 20.0, "page": 100.0}  # milliseconds
PROJECTS, DOMAINS = 200, 50


def fill(registry: Registry, entries: int, rng: random.Random) -> None:
    """Rows as `insert` and `set_fitness` write them, in one transaction."""
    rows, links = [], []
    for number in range(entries):
        project, domain = number % PROJECTS, number // PROJECTS % DOMAINS
        fitness = rng.random() if rng.random() < 0.9 else None
        level = rng.random()
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        rows.append(
            {
                "id": digest,
                "base": BASE,
                "base_name": "org/base",
                "project": f"project {project}",
                "domain": f"domain {domain}" if level < 0.98 else "",
                "task": f"task {number}" if level < 0.2 else "",
                "rank": 8,
                "modules": "q_proj,v_proj",
                "parameters": 1_000_000,
                "size": 4_000_000,
                "delta_w_norm": 1.0,
                "how": "hypernet",
                "hypernet": "",
                "status": "archived" if rng.random() < 0.1 else "active",
                "created": "2026-01-01T00:00:00Z",
                "fitness": fitness,
                "fitness_low": fitness,
                "fitness_high": fitness,
                "fitness_draws": 100 if fitness is not None else None,
                "measured": "2026-01-02T00:00:00Z" if fitness is not None else "",
            }
        )
        if number and rng.random() < 0.1:
            parent = hashlib.sha256(str(rng.randrange(number)).encode()).hexdigest()
            links.append({"child": digest, "parent": parent, "position": 0, "weight": 1.0})
    with registry.database.write() as connection:
        connection.execute(database.adapters.insert(), rows)
        connection.execute(database.parents.insert(), links)


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of `repeats` calls: median, 95th percentile, longest."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - started))
    taken.sort()
    return {
        "median_ms": round(statistics.median(taken), 3),
        "p95_ms": round(taken[int(0.95 * (len(taken) - 1))], 3),
        "max_ms": round(taken[-1], 3),
    }


def measure(registry: Registry, entries: int, repeats: int, rng: random.Random) -> dict[str, dict[str, float]]:
    def somewhere() -> Place:
        number = rng.randrange(entries)
        return Place(
            project=f"project {number % PROJECTS}",
            domain=f"domain {number // PROJECTS % DOMAINS}",
            task=f"task {number}",
        )

    def digest() -> str:
        return hashlib.sha256(str(rng.randrange(entries)).encode()).hexdigest()

    def page(**view: object) -> Callable[[], object]:
        return lambda: registry.page(View(**view), after=rng.randrange(entries), limit=50)  # type: ignore[arg-type]

    def up() -> object:
        return selection.select(registry, somewhere(), base=BASE, threshold=0.99)

    return {
        "select": timed(lambda: selection.select(registry, somewhere(), base=BASE), repeats),
        "select, threshold 0.99 (all levels)": timed(up, repeats),
        "page of all": timed(page(), repeats),
        "page of a project": timed(page(project="project 7"), repeats),
        "page of a domain": timed(page(project="project 7", domain="domain 3"), repeats),
        "page of a project's tasks": timed(page(project="project 7", level=Level.TASK), repeats),
        "count of all": timed(lambda: registry.count(View()), max(1, repeats // 10)),
        "resolve by the beginning of an id": timed(lambda: registry.resolve(digest()[:12]), repeats),
        "lineage": timed(lambda: registry.lineage(digest()), repeats),
        "open": timed(lambda: Registry(registry.folder), repeats),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "bench-registry.json")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a limit of LIMITS is passed")
    args = parser.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        registry = Registry(Path(scratch), create=True)
        fill(registry, args.entries, rng)
        found = measure(registry, args.entries, args.repeats, rng)
        size = registry.database.path.stat().st_size
    record = {
        "entries": args.entries,
        "database_megabytes": round(size / 1e6, 1),
        "sqlite": sa.create_engine("sqlite://").dialect.dbapi.sqlite_version,  # type: ignore[union-attr]
        "sqlalchemy": sa.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "limits_ms": LIMITS,
        "milliseconds": found,
    }
    if not args.check:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    rows = [(name, *times.values()) for name, times in found.items()]
    print(table(rows, ("what", "median ms", "95 % ms", "longest ms")))
    slow = [
        n for n, t in found.items() for kind, limit in LIMITS.items() if n.startswith(kind) and t["median_ms"] > limit
    ]
    if slow:
        print(f"over the limit: {', '.join(slow)}", file=sys.stderr)
    return 1 if args.check and slow else 0


if __name__ == "__main__":
    sys.exit(main())
