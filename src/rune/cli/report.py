"""`rune report RUN`: report.html, report.md and assessment.md; with --readme also the README's result."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import config, console
from rune.stages import _provenance, report
from rune.store import RunDir


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a run folder with decision.json")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also write the result between the markers in FILE")


def run(args: argparse.Namespace) -> int:
    folder = RunDir.open(args.run_folder)
    raw = config.parse((folder / "config.toml").read_text(), where=str(folder / "config.toml"))
    settings = config.build(report.Config, raw.get("report", {}), where="report")
    with folder.lock(), folder.stage("report") as entry:
        entry["by"] = _provenance.worker()
        path = report.run(folder, settings)
    if args.readme:
        report.write_readme(folder, settings, args.readme)
    console.out(str(path))
    return 0
