"""`rune adapters ACTION`: the memory of adapters: stored, selected, composed, measured, merged, archived."""

from __future__ import annotations

import argparse
import json
import math
import re
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rune import console
from rune.adapters.registry.records import MadeFrom, Place, Source, place, plain
from rune.cli import _adapters
from rune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rune.adapters.registry.registry import Registry

EPILOG = (
    "The registry is --registry FOLDER, else $RUNE_REGISTRY, else ~/.local/share/rune/adapters. See docs/memory.md."
)
ACTIONS: dict[str, tuple[str, str]] = {
    "add": ("bring PEFT folders in", "rune adapters add adapter/ --project shop --domain dates"),
    "list": ("what is there, a page at a time", "rune adapters list --project shop --limit 20"),
    "show": ("everything that is known of one", "rune adapters show 3f2a"),
    "select": ("the one that serves a task", "rune adapters select --project shop --domain dates --threshold 0.5"),
    "compose": ("several as one, exactly", "rune adapters compose 3f2a 9c01 --weights 1,0.5 -o both/"),
    "archive": ("take out of selection, keep everything", "rune adapters archive 3f2a --reason 'library is gone'"),
    "lineage": ("what it was made from, and what from it", "rune adapters lineage 3f2a"),
    "verify": ("compare every file with its hash", "rune adapters verify"),
    "gc": ("remove files that no entry names", "rune adapters gc --dry-run"),
    "evolve": ("measure, consolidate, update, merge, forget", "rune adapters evolve --config memory.toml --dry-run"),
    "export": ("a PEFT folder, to load anywhere", "rune adapters export 3f2a -o adapter/"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")
    made = {}
    for name, (text, example) in ACTIONS.items():
        made[name] = actions.add_parser(name, help=text, description=text, epilog=f"Example: {example}")
        made[name].add_argument("--registry", type=Path, metavar="FOLDER", help="where the memory lies")
        made[name].add_argument("--json", action="store_true", help="print JSON")
    for name in ("show", "export"):
        made[name].add_argument("adapter", metavar="ID", help="the beginning of an id, or an alias")
    for name in ("lineage", "archive", "verify", "compose"):
        one_or_more = "+" if name == "archive" else "*"
        made[name].add_argument("adapter", metavar="ID", nargs=one_or_more, help="the beginning of an id, or an alias")
    for name in ("add", "select", "compose"):
        made[name].add_argument("--project", default="default", help="default: %(default)s")
        made[name].add_argument("--domain", help="what the tasks share: a library, a convention")
        made[name].add_argument("--task", help="one task of the domain")
    for name in ("add", "select", "compose"):
        made[name].add_argument("--base", metavar="MODEL", help="base model: a name, or the sha256 of its weights")
    for name in ("add", "compose"):
        made[name].add_argument("--max-rank", type=int, metavar="R", help="refuse a higher rank (default: 256)")
    for name in ("select", "compose"):
        made[name].add_argument("--threshold", type=float, metavar="φ", help="fitness that is enough (default: any)")
    _configure_add(made["add"])
    listing = made["list"]
    listing.add_argument("--project")
    listing.add_argument("--domain")
    listing.add_argument("--level", choices=("project", "domain", "task"))
    listing.add_argument("--base", metavar="SHA256", help="the beginning of a base model's digest")
    listing.add_argument("--all", action="store_true", help="archived ones too")
    listing.add_argument("--limit", type=int, default=50, help="entries a page (default: %(default)s)")
    listing.add_argument("--after", type=int, default=0, metavar="NUMBER", help="entries after this number")
    made["compose"].add_argument("--weights", metavar="W,W,…", help="one an adapter (default: 1 each)")
    learning = made["compose"].add_argument_group("weights of every module, learned on validation tasks")
    learning.add_argument("--learn", type=Path, nargs="+", metavar="FILE", help="solved trajectories of those tasks")
    learning.add_argument("--steps", type=int, default=40, help="of Adam (default: %(default)s)")
    learning.add_argument("--rate", type=float, default=0.05, help="learning rate (default: %(default)s)")
    for name in ("compose", "export"):
        made[name].add_argument("-o", "--output", type=Path, metavar="DIR", required=True, help="where it goes")
    made["archive"].add_argument("--reason", default="", help="kept with the operation")
    made["archive"].add_argument("--restore", action="store_true", help="the way back")
    made["lineage"].add_argument("--operations", action="store_true", help="every operation on the memory, in order")
    evolving = made["evolve"]
    evolving.add_argument("--config", type=Path, metavar="FILE", required=True, help="see docs/memory.md")
    evolving.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", dest="settings", help="override a setting; repeatable"
    )
    evolving.add_argument("--dry-run", action="store_true", help="say what would be done and what it costs")
    evolving.add_argument("--replay", type=int, metavar="NUMBER", help="make the result of an operation again")
    made["gc"].add_argument(
        "--archived", action="store_true", help="the weights of archived adapters too; what is known of them stays"
    )
    made["gc"].add_argument("--dry-run", action="store_true", help="only say what would be removed")


def _configure_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="+", metavar="DIR", help="a PEFT LoRA folder, ours or another's")
    parser.add_argument("--alias", default="", help="another name for it")
    parser.add_argument("--trajectory-id", action="append", default=[], metavar="ID", help="made from it; repeatable")
    parser.add_argument("--parent", action="append", default=[], metavar="ID", help="made from it; repeatable")


def run(args: argparse.Namespace) -> int:
    from rune.adapters.registry.registry import MAX_RANK, Registry, default_folder

    max_rank = getattr(args, "max_rank", None)
    if max_rank is not None and max_rank < 1:
        raise ConfigError(f"--max-rank must be 1 or more, found {max_rank}")
    folder = args.registry or default_folder()
    registry = Registry(folder, create=args.action == "add", max_rank=max_rank or MAX_RANK)
    return _RUN[args.action](args, registry)


# --------------------------------------------------------------------------- in


def _add(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry import intake, origin

    where = _place(args)
    if args.alias and len(args.folder) > 1:
        raise ConfigError("an alias names one adapter; add the folders one by one")
    base = base_digest(args.base) if args.base else ""
    name = args.base if args.base and args.base != base else ""
    given = tuple((registry.resolve(parent).id, 1.0) for parent in args.parent)
    prepared = []
    for folder in args.folder:  # all are looked at before the first is brought in
        told = origin.read(folder)
        here = [(parent, weight) for parent, weight in told.parents if registry.has(parent)]
        if len(here) < len(told.parents):
            console.warn(f"{folder}: {len(told.parents) - len(here)} of its parents are not in this registry")
        made_from = MadeFrom(
            sources=(*told.sources, *(Source(trajectory_id=t) for t in args.trajectory_id)),
            hypernet=told.hypernet,
            how=told.how,
            parents=given or tuple(here),
        )
        prepared.append(intake.read(folder, where, made_from, base=base, base_name=name, max_rank=registry.max_rank))
    found = [registry.insert(p.draft, p.config, p.weights, alias=args.alias) for p in prepared]
    if args.json:
        return _adapters.say_json([{**plain(entry), "new": new} for entry, new in found])
    for entry, new in found:
        console.note(f"{'added' if new else 'there already'}: {entry.place.level} {entry.place}, rank {entry.rank}")
        console.out(entry.short)
    return 0


# --------------------------------------------------------------------------- look


def _select(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry.selection import select

    where = _place(args)
    found = select(registry, where, base=_base_of(args, registry, where), threshold=args.threshold)
    if args.json:
        tried = [{"place": str(t.place), "best": t.best and plain(t.best), "enough": t.enough} for t in found.tried]
        _adapters.say_json({"chosen": found.chosen and plain(found.chosen), "tried": tried})
        return 0 if found.chosen else 1
    for tried_here in found.tried:
        best = tried_here.best
        console.note(
            f"{tried_here.place}: " + (f"{best.short}, fitness {_adapters.fitness(best)}" if best else "no adapter")
        )
    if found.chosen is None:
        console.note("no adapter has enough fitness; use the base model, or lower --threshold")
        return 1
    console.out(found.chosen.short)
    return 0


# --------------------------------------------------------------------------- out


def _compose(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters import composition, interference, peft
    from rune.adapters.registry import export, intake
    from rune.adapters.registry.selection import chain
    from rune.runs import store

    if args.adapter:
        entries = [registry.resolve(name) for name in args.adapter]
    else:
        where = _place(args)
        entries = chain(registry, where, base=_base_of(args, registry, where), threshold=args.threshold)
        if not entries:
            raise DataError(
                f"{registry.folder}: nothing to compose for {where}; `rune adapters list` shows what is there"
            )
    if args.learn and args.weights:
        raise ConfigError("--learn finds the weights; leave --weights out")
    weights = _weights(args.weights, len(entries))
    adapters = intake.load_all(registry, entries)
    learned = _adapters.learned_weights(args, registry, entries, adapters) if args.learn else None
    if learned:
        weights = [sum(each.values()) / len(each) for each in learned.weights]  # for the record: their means
    whole = composition.compose(adapters, learned.weights if learned else weights)
    if whole.rank > registry.max_rank:
        raise DataError(
            f"the ranks add up to {whole.rank}, the limit is {registry.max_rank}; pass --max-rank {whole.rank}"
        )
    couples = list(combinations(range(len(entries)), 2))
    between: list[dict[str, Any]] = [
        {"first": entries[i].id, "second": entries[j].id, **interference.summary(adapters[i], adapters[j])._asdict()}
        for i, j in couples
    ]
    ids = [(entry.id, weight) for entry, weight in zip(entries, weights, strict=True)]
    export.composed(registry, whole, ids, args.output, base_name=entries[0].base_name)
    if learned:
        store.write_json(
            args.output / "weights.json", {e.id: w for (e, w) in zip(entries, learned.weights, strict=True)}
        )
        console.note(f"loss on the validation tasks {learned.losses[0]:.4f} → {learned.losses[-1]:.4f} nats a token")
    if args.json:
        norm = peft.delta_w_norm(whole)
        parts = [{**plain(e), "weight": w} for e, w in zip(entries, weights, strict=True)]
        for row, (i, j) in zip(between, couples, strict=True):
            each = interference.measure(adapters[i], adapters[j])
            row["modules"] = {name: found._asdict() for name, found in each.items()}
        between = [_adapters.no_nan(row) for row in between]
        return _adapters.say_json(
            {"path": str(args.output), "rank": whole.rank, "delta_w_norm": norm, "parts": parts, "between": between}
        )
    for entry, weight in zip(entries, weights, strict=True):
        console.note(f"{weight:g} × {entry.short} {entry.place}, rank {entry.rank}")
    for row in between:
        console.note(
            f"between {row['first'][:12]} and {row['second'][:12]}: cosine of ΔW {row['cosine']:+.3f}, "
            f"overlap of inputs {row['inputs']:.3f}, of outputs {row['outputs']:.3f}"
        )
    console.out(str(args.output))
    return 0


def _export(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry import export

    entry = registry.resolve(args.adapter)
    export.one(registry, entry, args.output)
    if args.json:
        return _adapters.say_json({"id": entry.id, "path": str(args.output)})
    console.out(str(args.output))
    return 0


def _evolve(args: argparse.Namespace, registry: Registry) -> int:
    from rune.adapters.registry import operations
    from rune.config import plain as as_json
    from rune.reporting import memory_tracking
    from rune.study import measuring
    from rune.study.memory import Memory, load

    settings = load(args.config, args.settings)
    done = operations.get(registry, args.replay) if args.replay is not None else None
    with measuring.opened(settings, registry.folder) as evaluator:
        generator = measuring.generator(settings, evaluator)
        memory = Memory(registry, settings.evolve, evaluator, base=evaluator.model.digest, generator=generator)
        if done is not None:
            again = memory.replay(done)
            console.out(json.dumps({"operation": done.number, "result": again}) if args.json else again)
            return 0
        if args.dry_run:
            return _plan(memory.plan(), args)
        outcome = memory.evolve()
        if settings.track:
            untracked = memory_tracking.record(
                registry, settings.track, project=settings.evolve.project, protocol=evaluator.protocol,
                settings=as_json(settings),
            )  # fmt: skip
            if untracked:
                console.warn(untracked)
    if args.json:
        measured = [{"id": e.id, "fitness": e.fitness} for e in outcome.measured]
        made = [as_json(o) for o in outcome.operations]
        return _adapters.say_json(
            {"measured": measured, "operations": made, "left": outcome.left, "draws": outcome.draws}
        )
    for entry in outcome.measured:
        console.out(f"measured {entry.short} {entry.place}: φ {_adapters.fitness(entry)}")
    for operation in outcome.operations:
        what = f" → {operation.result[:12]} {'kept' if operation.kept else 'archived'}" if operation.result else ""
        console.out(f"{operation.number} {operation.kind} {' '.join(i[:12] for i in operation.inputs)}{what}")
    for left in outcome.left:
        console.note(f"left: {left}")
    if outcome.left:
        console.note("raise evolve.budget and run again to go on; what is done is kept")
    return 0


def _plan(plan: dict[str, Any], args: argparse.Namespace) -> int:
    if args.json:
        return _adapters.say_json(plan)
    console.out(f"measure {len(plan['measure'])} adapters: {plan['draws']} draws, {plan['budget_left']} left")
    for step in plan["operations"]:
        how = step["arguments"].get("merge", {}).get("method", "")
        console.out(f"{step['kind']} {how} {' '.join(i[:12] for i in step['inputs'])}".replace("  ", " "))
    for digest in plan["forget"]:
        console.out(f"forget {digest[:12]}")
    for domain, tasks in plan["scored"].items():
        console.out(f"scored of {domain}: {', '.join(tasks)}")
    return 0


# --------------------------------------------------------------------------- words


def _place(args: argparse.Namespace) -> Place:
    return place(args.project, args.domain, args.task)


def base_digest(text: str) -> str:
    """A base model's digest from what was typed: the digest, or a name whose model is in the cache."""
    if re.fullmatch(r"[0-9a-f]{64}", text.lower()):
        return text.lower()
    from rune.models import resolve

    return resolve.resolve(text, sources=("cache",)).digest


def _base_of(args: argparse.Namespace, registry: Registry, where: Place) -> str:
    """The base that is meant: the one given, or the only one that has adapters there."""
    from rune.adapters.registry.selection import bases

    if args.base:
        return base_digest(args.base)
    found = bases(registry, where)
    if len(found) > 1:
        raise DataError(
            f"{where}: adapters of {len(found)} base models ({_adapters.few(found)}); choose with --base SHA256"
        )
    return found[0] if found else ""


def _weights(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        weights = [float(w) for w in text.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {text!r}: expected numbers with commas, for example --weights 1,0.5") from None
    if len(weights) != count or not all(map(math.isfinite, weights)):
        raise ConfigError(f"--weights {text!r}: expected {count} finite numbers, one an adapter")
    return weights


_RUN = {
    "add": _add,
    "list": _adapters.listing,
    "show": _adapters.show,
    "select": _select,
    "compose": _compose,
    "archive": _adapters.archive,
    "lineage": _adapters.lineage,
    "verify": _adapters.verify,
    "gc": _adapters.gc,
    "evolve": _evolve,
    "export": _export,
}
