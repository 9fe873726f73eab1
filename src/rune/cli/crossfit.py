"""`rune crossfit CONFIG|RUN`: every task held out once, several seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.cli import _stage


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target",
        type=Path,
        metavar="CONFIG|RUN",
        help="a TOML file; or a folder, to decide again or --resume",
    )
    _stage.add_settings(parser)
    parser.add_argument("--resume", action="store_true", help="go on with one that was interrupted")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="processes that share the folds, each with a model (default: %(default)s)",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="FILE",
        help="also write a table between <!-- rune:NAME:begin --> and <!-- rune:NAME:end -->, NAME being [run] name",
    )
    parser.add_argument("--worker", nargs="+", metavar="SEED/FOLD", help=argparse.SUPPRESS)
    parser.epilog = "Exit codes: 0 the gate passed over all seeds together, 10 it failed, 2 bad input, 130 interrupted."


def run(args: argparse.Namespace) -> int:
    from rune import store
    from rune.errors import ConfigError
    from rune.stages import _crossfit_decide, _crossfit_tables, crossfit, pipeline

    if args.jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, found {args.jobs}")
    if args.worker:
        crossfit.work(args.target, args.worker, jobs=args.jobs)
        return 0
    if args.target.is_dir():
        if args.settings:
            raise ConfigError(f"--set cannot change the finished config of {args.target}; start another from a config")
        folder, settings = crossfit.reopen(args.target)
        if args.resume:
            crossfit.go_on(folder, settings, jobs=args.jobs)
        else:
            _crossfit_decide.decide(folder, settings)
    else:
        settings = pipeline.load(args.target, args.settings)
        folder = crossfit.run(settings, resume=args.resume, jobs=args.jobs)
    result = store.read_json(folder / "result.json")
    first = next(iter(result["temperatures"].values()))["pooled"]["decision"]
    if args.readme:
        store.replace_block(args.readme, settings.run.name, _crossfit_tables.brief(result))
    console.out((folder / "result.md").read_text())
    console.out(f"result: {folder / 'result.md'}")
    console.out(first["answer"])
    return 0 if first["passed"] else 10
