"""`rune train RUN`: the static LoRA, then the hypernetwork."""

from __future__ import annotations

import argparse
import os

from rune.cli import _stage
from rune.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    _stage.add_target(parser)
    parser.epilog = (
        "On several GPUs: accelerate launch --multi_gpu --num_processes N -m rune train RUN, see docs/cluster.md."
    )


def run(args: argparse.Namespace) -> int:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not args.target.is_dir():
        raise ConfigError(f"{args.target}: several processes train in a folder that is there; run `rune collect` first")
    _stage.show_files(_stage.run_stage(args, "train"), "checkpoints")
    return 0
