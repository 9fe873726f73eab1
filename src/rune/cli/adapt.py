"""`rune adapt RUN`: all arms' treatments; `rune adapt --trajectory FILE -o DIR`: one adapter from any trajectories."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from rune import console
from rune.cli import _stage
from rune.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", type=Path, nargs="?", metavar="RUN|CONFIG", help="a run folder or a config.toml")
    _stage.add_settings(parser)
    one = parser.add_argument_group("one adapter, outside of any run")
    one.add_argument(
        "--trajectory",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="trajectories: files or folders in any format that `collect --import` reads; all make one adapter",
    )
    one.add_argument("-o", "--output", type=Path, metavar="DIR", help="where the PEFT folder goes")
    one.add_argument("--model", default="qwen2.5-coder-0.5b-instruct", help="the base model (default: %(default)s)")
    one.add_argument(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="the hypernetwork, of any kind (default: the one that ships for the base; `rune checkpoints list`)",
    )
    one.add_argument("--strength", type=float, default=1.0, help="λ on the trajectory part (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    if args.trajectory is not None:
        return _one(args)
    if args.target is None:
        raise ConfigError("nothing to adapt; give a run folder or a config, or --trajectory FILE -o DIR")
    _stage.show_files(_stage.run_stage(args, "adapt"), "treatments.jsonl")
    return 0


def _one(args: argparse.Namespace) -> int:
    if args.target is not None or _stage.changes(args):
        raise ConfigError(
            "--trajectory makes one adapter outside of any run; leave out the run folder, --set and --override"
        )
    if not math.isfinite(args.strength):
        raise ConfigError(f"--strength must be a finite number, found {args.strength}")
    if args.output is None:
        raise ConfigError("--trajectory needs a place for the adapter; add -o DIR")
    from rune.corpus import reading
    from rune.hypernet import choice
    from rune.models import resolve
    from rune.stages import adapt

    found = reading.read_all(args.trajectory)
    found.check_exclusion([])
    model = resolve.resolve(args.model, sources=resolve.SOURCES, cache=resolve.default_cache())
    try:
        checkpoint = args.checkpoint or choice.for_base(model)
    except ConfigError as error:
        raise ConfigError(f"{error}; pass --checkpoint DIR, a hypernetwork of this model") from None
    ref = adapt.one(found.trajectories, args.output, checkpoint, model, strength=args.strength)
    console.note("\n".join(found.words()))
    console.note(f"rank {ref.rank}, ‖ΔW‖_F {ref.delta_w_norm:.3f}, id {ref.adapter_id}")
    console.out(str(args.output))
    return 0
