"""What the one-stage verbs share: a run folder, or a config that makes or reopens one."""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument(
        "--override",
        metavar="REASON",
        help="begin a phase without a passed decision of the one before; REASON stands in everything written",
    )


def changes(args: argparse.Namespace) -> list[str]:
    """What the command line changes in the config. Raises ConfigError for an override without a reason."""
    if args.override is None:
        return list(args.settings)
    if not args.override.strip():
        raise ConfigError('--override needs the reason in words, for example --override "the gate is under review"')
    return [*args.settings, f"phase.override={json.dumps(args.override.strip(), ensure_ascii=False)}"]


def resolve(args: argparse.Namespace) -> Experiment:
    """The experiment that is meant. Raises ConfigError for --set on an existing one."""
    from rune.study import config, creation, folders

    target: Path = args.target
    if target.is_dir():
        if changes(args):
            what = "--set" if args.settings else "--override"
            raise ConfigError(f"{what} cannot change the finished config of {target}; start another run from a config")
        return folders.reopen(target)
    return creation.create(config.load(target, changes(args)), resume=True)


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
