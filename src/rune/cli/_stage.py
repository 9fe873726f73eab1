"""What the one-stage verbs share: a run folder, or a config that makes or reopens one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rune import console
from rune.errors import ConfigError

if TYPE_CHECKING:
    from rune.study.folders import Experiment


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="RUN|CONFIG", help="a run folder, or a config.toml for a new one")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", dest="settings", help="override a setting; repeatable"
    )


def resolve(args: argparse.Namespace) -> Experiment:
    """The experiment that is meant. Raises ConfigError for --set on an existing one."""
    from rune.study import config, folders

    target: Path = args.target
    if target.is_dir():
        if args.settings:
            raise ConfigError(f"--set cannot change the finished config of {target}; start another run from a config")
        return folders.reopen(target)
    return folders.create(config.load(target, args.settings), resume=True)


def run_stage(args: argparse.Namespace, name: str) -> Experiment:
    """Resolve the target and run one stage of all its cells under the folder's lock."""
    from rune.study import executor

    experiment = resolve(args)
    executor.run_one(experiment, name)
    return experiment


def show_files(experiment: Experiment, name: str) -> None:
    """Print where a stage's result lies, one line a cell."""
    for place in experiment.places():
        console.out(str(place.folder / name))
