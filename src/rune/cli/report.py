"""`rune report RUN`: report.html, report.md and assessment.md; with --readme also the README's result."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.runs import provenance


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a run folder with decision.json")
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="also write the result between the markers in FILE: `result`, or the run's name if it has several cells",
    )


def run(args: argparse.Namespace) -> int:
    from rune.study import combine, reading

    source = reading.source(args.run_folder)
    folder = source.folder
    with folder.lock():
        if not (folder / "decision.json").exists() and reading.result(folder):
            combine.decide(source)  # version 1 kept it in result.json only
        with folder.stage("report") as entry:
            entry["by"] = provenance.worker()
            path = combine.report_on(source, reading.result(folder))
    if args.readme:
        combine.readme(source, args.readme)
    console.out(str(path))
    return 0
