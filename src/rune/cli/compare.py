"""`rune compare RUN RUN…`: several decided runs in one table and plot."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.errors import DataError
from rune.reporting import compare


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="run folders with decision.json")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="also write compare.html, .md and .json there")


def run(args: argparse.Namespace) -> int:
    from rune.runs.store import RunDir
    from rune.study import config, reading

    if len(args.runs) < 2:
        raise DataError("a comparison needs at least two runs; `rune report RUN` shows one")
    places = [path.resolve() for path in args.runs]
    twice = next((path for i, path in enumerate(places) if path in places[:i]), None)
    if twice is not None:
        raise DataError(f"{twice}: named twice; a run compared with itself says nothing, name another")
    folders = [RunDir.open(path) for path in args.runs]
    entries = [compare.entry(f.path.resolve().name, reading.decision(f), config.raw_in(f)) for f in folders]
    found = compare.table(entries)
    console.out(console.table([tuple(row) for row in found.rows], found.header))
    console.out(f"\n{found.note}")
    if args.output:
        console.out(str(compare.write(entries, args.output)))
    return 0
