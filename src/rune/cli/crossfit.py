"""`rune crossfit CONFIG|RUN`: every task held out once, several seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.cli import _stage


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="CONFIG|RUN", help="a TOML file; or a finished cross-fit, to decide it again"
    )
    _stage.add_settings(parser)
    parser.add_argument("--resume", action="store_true", help="go on with one that was interrupted")
    parser.epilog = "Exit codes: 0 the gate passed over all seeds together, 10 it failed, 2 bad input, 130 interrupted."


def run(args: argparse.Namespace) -> int:
    from rune import store
    from rune.errors import ConfigError
    from rune.stages import crossfit, pipeline

    if args.target.is_dir():
        if args.settings:
            raise ConfigError(f"--set cannot change the finished config of {args.target}; start another from a config")
        folder, settings = crossfit.reopen(args.target)
        crossfit.decide(folder, settings)
    else:
        settings = pipeline.load(args.target, args.settings)
        folder = crossfit.run(settings, resume=args.resume)
    result = store.read_json(folder / "result.json")
    first = next(iter(result["temperatures"].values()))["pooled"]["decision"]
    console.out((folder / "result.md").read_text())
    console.out(f"result: {folder / 'result.md'}")
    console.out(first["answer"])
    return 0 if first["passed"] else 10
