"""`rune run CONFIG`: the whole experiment."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.cli import _stage


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, see configs/")
    _stage.add_settings(parser)
    parser.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print memory and time, do nothing")
    parser.epilog = "Exit codes: 0 the gate passed, 10 it failed, 2 bad input, 130 interrupted."


def run(args: argparse.Namespace) -> int:
    from rune import store
    from rune.stages import pipeline

    settings = pipeline.load(args.config, args.settings)
    if args.dry_run:
        from rune.cli import doctor

        return doctor.dry_run(settings)
    folder = pipeline.run_all(settings, resume=args.resume)
    decision = store.read_json(folder / "decision.json")
    console.out(f"report: {folder / 'report.html'}")
    console.out(decision["answer"])
    return 0 if decision["passed"] else 10
