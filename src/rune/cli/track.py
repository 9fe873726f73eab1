"""`rune track RUN`: write a finished run to the tracker, again if need be."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rune import config, console
from rune.reporting import tracking
from rune.runs.store import RunDir


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Exit code 1: the tracker could not be reached; the run is unharmed, try again later."
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a run folder with decision.json")
    parser.add_argument("--uri", help="tracker to write to, instead of [track] uri")


def run(args: argparse.Namespace) -> int:
    folder = RunDir.open(args.run_folder)
    raw = config.parse((folder / "config.toml").read_text(encoding="utf-8"), where=str(folder / "config.toml"))
    settings = config.build(tracking.Config, raw.get("track", {}), where="track")
    if args.uri:
        settings = dataclasses.replace(settings, uri=args.uri)
    problem = tracking.record(folder.path, dataclasses.replace(settings, enabled=True))
    if problem:
        console.warn(problem)
        return 1
    console.out(str(folder / "tracking.json"))
    return 0
