"""`rune remember SESSION…`: one adapter from an agent's sessions, in the memory; `rune serve` has it at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.cli import _memory
from rune.errors import AdapterError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Inputs: files or folders in any format that `rune collect --import` reads; all make one adapter."
    parser.add_argument("session", type=Path, nargs="+", metavar="SESSION")
    _memory.configure(parser)


def run(args: argparse.Namespace) -> int:
    from rune.serving import library
    from rune.serving.refusals import Refusal

    server = _memory.served(args)
    if server is None:
        made = library.learned(
            args.session,
            project=args.project,
            domain=args.domain,
            task=args.task,
            alias=args.alias,
            config=_memory.config(args),
        )
        told = (str(made.entry.place), made.entry.rank, made.entry.delta_w_norm, made.seconds)
        notes, name = made.notes, made.id
    else:
        found = library.read(args.session)
        try:
            there = server.learn_from(found.trajectories, notes=found.words())
        except Refusal as refusal:
            raise AdapterError(f"{server.url}: {refusal}") from None
        told = (there.where, there.rank, there.delta_w_norm, there.seconds)
        notes, name = there.notes, there.id
    console.note("\n".join(notes))
    console.note("{}, rank {}, ‖ΔW‖_F {:.3f}, {:.1f} s".format(*told))
    console.out(name)
    return 0
