"""What the one-stage verbs share: a run folder, or a config that makes or reopens one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rune.errors import ConfigError

if TYPE_CHECKING:
    from rune.stages.pipeline import RunConfig
    from rune.store import RunDir


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, metavar="RUN|CONFIG", help="a run folder, or a config.toml for a new one")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", dest="settings", help="override a setting; repeatable"
    )


def resolve(args: argparse.Namespace) -> tuple[RunDir, RunConfig]:
    """The run folder and its config. Raises ConfigError for --set on an existing run."""
    from rune.stages import pipeline

    target: Path = args.target
    if target.is_dir():
        if args.settings:
            raise ConfigError(f"--set cannot change the finished config of {target}; start another run from a config")
        return pipeline.reopen(target)
    settings = pipeline.load(target, args.settings)
    return pipeline.create(settings, resume=True), settings


def run_stage(args: argparse.Namespace, name: str) -> RunDir:
    """Resolve the target and run one stage under the folder's lock."""
    from rune.stages import pipeline

    folder, settings = resolve(args)
    with folder.lock(), pipeline.machinery(settings) as context:
        pipeline.run_stage(folder, settings, context, name)
    return folder
