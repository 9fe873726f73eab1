"""`rune remember SESSION…`: one adapter from an agent's sessions, in the memory; `rune serve` has it at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.cli import _memory


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Inputs: files or folders in any format that `rune collect --import` reads; all make one adapter."
    parser.add_argument("session", type=Path, nargs="+", metavar="SESSION")
    _memory.configure(parser)


def run(args: argparse.Namespace) -> int:
    from rune.serving import library

    made = library.learned(
        args.session,
        project=args.project,
        domain=args.domain,
        task=args.task,
        alias=args.alias,
        config=_memory.config(args),
    )
    console.note("\n".join(made.notes))
    console.note(
        f"{made.entry.place}, rank {made.entry.rank}, ‖ΔW‖_F {made.entry.delta_w_norm:.3f}, {made.seconds:.1f} s"
    )
    console.out(made.entry.id)
    return 0
