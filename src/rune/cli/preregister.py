"""`rune preregister CONFIG`: the promise as JSON, to be committed or mailed before the run; or held against a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rune import console
from rune.errors import GateError
from rune.runs import store
from rune.runs.store import RunDir


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the config of a run that has not begun")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", dest="settings", help="override a setting"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it there instead of printing it")
    parser.add_argument("--check", type=Path, metavar="RUN", help="compare with what a run folder promised")


def run(args: argparse.Namespace) -> int:
    from rune.runs import integrity, preregistration
    from rune.study import cells, config
    from rune.study.config import located

    settings, base = config.load(args.config, args.settings)
    first = cells.cells(settings)[0]
    frozen = cells.promise(settings, cells.tasks(located(settings, base, seed=first.seed, fold=first.fold)))
    if args.check:
        run = RunDir.open(args.check)
        changes = preregistration.differences(store.read_json(run / integrity.PREREGISTRATION), frozen)
        if changes and all(change.startswith("config:") for change in changes):
            # The promise keeps only a digest of such settings, the run folder keeps them all.
            changes = preregistration.differences(config.raw_in(run), config.raw_of(settings))
        if changes:
            raise GateError(f"{args.check} promised something else: {'; '.join(changes[:5])}")
        console.note(f"{args.check} promised the same")
    if args.output:
        store.write_json(args.output, frozen)
        console.note(f"written: {args.output}")
    elif not args.check:
        console.note(json.dumps(frozen, indent=2, ensure_ascii=False))
    console.out(frozen["digest"])
    return 0
