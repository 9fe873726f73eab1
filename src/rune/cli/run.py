"""`rune run CONFIG`: a whole experiment, of one cell or of many."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.cli import _stage
from rune.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="CONFIG|RUN", help="a TOML file, see configs/; or a folder to resume"
    )
    _stage.add_settings(parser)
    parser.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print memory and time, do nothing")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes that share the cells, on all GPUs (default: 1)"
    )
    parser.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="share the cells over a Ray cluster with a common file system; without an address, on this machine",
    )
    parser.add_argument("--worker", nargs="+", metavar="CELL", help=argparse.SUPPRESS)
    parser.add_argument("--together", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=int, default=0, help=argparse.SUPPRESS)
    parser.epilog = "Exit codes: 0 the gate passed, 10 it failed, 2 bad input, 130 interrupted."


def run(args: argparse.Namespace) -> int:
    from rune.study import config, executor, folders, reading, workers

    if args.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, found {args.jobs}")
    if args.worker:
        if args.parent:
            workers.end_with(args.parent)
        executor.work(args.target, args.worker, together=args.together)
        return 0
    if args.target.is_dir():
        if _stage.changes(args):
            what = "--set" if args.settings else "--override"
            raise ConfigError(f"{what} cannot change the config of {args.target}; start another run from a config")
        if not args.resume or args.dry_run:
            raise ConfigError(f"{args.target}: a folder; add --resume to go on with it, or give a config")
        experiment = executor.go_on(folders.reopen(args.target), jobs=args.jobs, ray=args.ray)
    else:
        loaded = config.load(args.target, _stage.changes(args))
        if args.dry_run:
            from rune.cli import doctor

            return doctor.dry_run(loaded)
        experiment = executor.run(loaded, resume=args.resume, jobs=args.jobs, ray=args.ray)
    decision = reading.decision(experiment.folder)
    if not experiment.single:
        console.out((experiment.folder / "result.md").read_text(encoding="utf-8"))
    console.out(f"report: {experiment.folder / 'report.html'}")
    console.out(decision.answer)
    return 0 if decision.passed else 10
