"""`rune sample RUN`: draw what is missing."""

from __future__ import annotations

import argparse

from rune.cli import _stage


def configure(parser: argparse.ArgumentParser) -> None:
    _stage.add_target(parser)


def run(args: argparse.Namespace) -> int:
    _stage.show_files(_stage.run_stage(args, "sample"), "samples.jsonl")
    return 0
