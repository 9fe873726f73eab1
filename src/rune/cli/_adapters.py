"""What `rune adapters` shows and keeps in order, and the words that its actions share."""

from __future__ import annotations

import argparse
import json
import math
import re
from typing import TYPE_CHECKING, Any

from rune import console
from rune.adapters.registry.records import Entry, Level, Status, plain
from rune.errors import ConfigError, ContaminationError

if TYPE_CHECKING:
    from rune.adapters.peft import Adapter
    from rune.adapters.registry.registry import Registry
    from rune.hypernet.composition_weights import Learned


def listing(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry.registry import View

    if args.limit < 1 or args.after < 0:
        raise ConfigError("--limit must be 1 or more and --after 0 or more")
    view = View(
        project=args.project or "",
        domain=args.domain or "",
        level=Level(args.level) if args.level else None,
        status=None if args.all else Status.ACTIVE,
        base=(args.base or "").lower(),
    )
    page, total = registry.page(view, after=args.after, limit=args.limit), registry.count(view)
    more = page[-1].number if page and len(page) == args.limit else None
    if args.json:
        return say_json({"total": total, "next_after": more, "adapters": [plain(entry) for entry in page]})
    rows: list[tuple[object, ...]] = [
        (
            e.number,
            e.short,
            e.place.level.value,
            str(e.place),
            e.rank,
            f"{e.delta_w_norm:.3f}",
            fitness(e),
            e.status.value,
        )
        for e in page
    ]
    console.out(console.table(rows, ("number", "id", "level", "place", "rank", "‖ΔW‖", "fitness", "status")))
    console.note(f"{len(page)} of {total}" + (f"; go on with --after {more}" if more else ""))
    return 0


def show(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry import operations
    from rune.config import plain as as_json

    entry = registry.resolve(args.adapter)
    found = {
        **plain(entry),
        "path": str(registry.objects.place(entry.id)),
        "aliases": registry.aliases(entry.id),
        "sources": [as_json(s) for s in registry.sources(entry.id)],
        "measurements": [no_nan(as_json(f)) for f in registry.fitness(entry.id)],
        "operations": [as_json(o) for o in operations.listed(registry, entry.id)],
    }
    if args.json:
        return say_json(found)
    for name, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            console.out(f"{name}:")
            for row in value:
                console.out("  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items() if v not in ("", None, [], {})))
        elif value not in ("", None, []):
            console.out(f"{name}: {', '.join(map(_short, value)) if isinstance(value, list) else value}")
    return 0


def lineage(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry import operations
    from rune.config import plain as as_json

    if args.operations or not args.adapter:
        chosen = registry.resolve(args.adapter[0]).id if args.adapter else ""
        rows = operations.listed(registry, chosen)
        if args.json:
            return say_json([as_json(o) for o in rows])
        table: list[tuple[object, ...]] = [
            (o.number, o.done, o.kind, " ".join(i[:12] for i in o.inputs), o.result[:12], "kept" if o.kept else "")
            for o in rows
        ]
        console.out(console.table(table, ("number", "done", "operation", "inputs", "result", "")))
        return 0
    found = [(registry.resolve(name), registry.lineage(registry.resolve(name).id)) for name in args.adapter]
    if args.json:
        return say_json(
            [{"id": e.id, **{k: [x._asdict() for x in v] for k, v in f._asdict().items()}} for e, f in found]
        )
    for entry, lineage in found:
        console.out(f"{entry.short} {entry.place} ({entry.how})")
        for edge in lineage.ancestors:
            console.out(f"  {edge.child[:12]} ← {edge.weight:g} × {edge.parent[:12]}")
        for edge in lineage.descendants:
            console.out(f"  {edge.parent[:12]} → {edge.child[:12]}")
        for source in registry.sources(entry.id):
            console.out(f"  trajectory {source.trajectory_id}" + (f" of {source.task_id}" if source.task_id else ""))
    return 0


def archive(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry import operations
    from rune.config import plain as as_json

    entries = [registry.resolve(name) for name in args.adapter]
    turn = operations.restore if args.restore else operations.forget
    operation = turn(registry, entries, reason=args.reason)
    if args.json:
        return say_json(as_json(operation))
    for entry in entries:
        console.out(f"{entry.short} {'active' if args.restore else 'archived'}")
    return 0


def verify(args: argparse.Namespace, registry: Registry) -> int:
    chosen = [registry.resolve(name) for name in args.adapter]
    problems = registry.verify(chosen)
    if args.json:
        say_json({"problems": problems})
    else:
        for problem in problems:
            console.out(problem)
        console.note(f"{len(problems)} found wrong" if problems else "every adapter is what its name says")
    return 1 if problems else 0


def gc(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry import operations

    swept = registry.gc(dry_run=args.dry_run)
    archived = operations.release(registry, dry_run=args.dry_run or not args.archived)
    if args.json:
        return say_json({
            "removed": not args.dry_run, **swept._asdict(),
            "archived": {"removed": args.archived and not args.dry_run, **archived._asdict()},
        })  # fmt: skip
    verb = "would be removed" if args.dry_run else "removed"
    console.out(f"{swept.folders} folders without an entry, {swept.bytes / 1e6:.1f} MB, {verb}")
    what = f"weights of {archived.folders} archived adapters, {archived.bytes / 1e6:.1f} MB"
    if args.archived:
        console.out(f"{what}, {verb}; their entries stay")
    elif archived.folders:
        console.note(f"{what}, are kept; --archived removes them")
    return 0


def learned_weights(
    args: argparse.Namespace, registry: Registry, entries: list[Entry], adapters: list[Adapter]
) -> Learned:
    """Weights of every module from `--learn FILE`. Raises ContaminationError for a task that an adapter knows."""
    if not args.base or re.fullmatch(r"[0-9a-fA-F]{64}", args.base):
        raise ConfigError("--learn runs the base model; add --base with its name, as `rune models list` shows it")
    if args.steps < 1 or not 0 < args.rate < math.inf:
        raise ConfigError(f"--steps must be 1 or more and --rate above 0, found {args.steps} and {args.rate:g}")
    from rune.corpus import reading
    from rune.hypernet import base as bases
    from rune.hypernet import composition_weights
    from rune.models import resolve

    found = reading.read_all(args.learn)
    found.check_exclusion([])
    known = {s.task_id for entry in entries for s in registry.sources(entry.id)} - {""}
    for trajectory in found.trajectories:
        if trajectory.task_id in known:
            raise ContaminationError(
                f"--learn: an adapter was made from task '{trajectory.task_id}'; its weight would be learned on what "
                "it knows by heart: give other tasks"
            )
    model = resolve.resolve(args.base, sources=("cache",))
    for entry in entries:
        registry.check(entry, base=model.digest)
    base = bases.load(model, device="cpu", dtype="float32")
    return composition_weights.learn(base, adapters, found.trajectories, steps=args.steps, learning_rate=args.rate)


def few(digests: list[str]) -> str:
    return ", ".join(d[:12] for d in digests[:3]) + (", …" if len(digests) > 3 else "")


def fitness(entry: Entry) -> str:
    if entry.fitness is None or entry.fitness_low is None or entry.fitness_high is None:
        return "not measured"
    return f"{entry.fitness:.3f} [{entry.fitness_low:.3f}, {entry.fitness_high:.3f}]"


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text


def no_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {k: no_nan(v) for k, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def say_json(value: Any) -> int:
    console.out(json.dumps(value, indent=1, ensure_ascii=False))
    return 0
