"""`rune train RUN`: the static LoRA, then the hypernetwork."""

from __future__ import annotations

import argparse

from rune.cli import _stage


def configure(parser: argparse.ArgumentParser) -> None:
    _stage.add_target(parser)


def run(args: argparse.Namespace) -> int:
    _stage.show_files(_stage.run_stage(args, "train"), "checkpoints")
    return 0
