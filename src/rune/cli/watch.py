"""`rune watch FOLDER`: learns from an agent's sessions as they are written; `rune serve` has each adapter at once."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rune import console
from rune.cli import _memory
from rune.errors import AdapterError, ConfigError

if TYPE_CHECKING:
    from rune.serving.watching import Here


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Inputs: FOLDER is where an agent writes its sessions, one a file: ~/.claude/projects, ~/.codex/sessions, or\n"
        "another with files that `rune collect --import` reads. Prints each adapter's id and its session's file.\n"
        "A file that cannot be learned from is one line on stderr. Killed and started again, it goes on where it was."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--still",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="a session is taken when its file has not changed for so long, or ends as its agent ends one "
        "(default: 300)",
    )
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="between two looks (default: 5)")
    parser.add_argument("--once", action="store_true", help="take what is ready, and end")
    _memory.configure(parser)


def run(args: argparse.Namespace) -> int:
    from rune.serving.remote import Away
    from rune.serving.watching import Watcher

    if not args.every > 0:
        raise ConfigError(f"--every is {args.every:g}; give seconds above 0")
    watcher = Watcher(args.folder, _memory.served(args) or _here(args), still_seconds=args.still)
    away = False
    try:
        while True:
            try:
                for taken in watcher.poll():
                    away = False
                    if taken.made is None:
                        console.warn(f"{taken.path}: {taken.why}")
                        continue
                    console.note("\n".join(taken.made.notes))
                    console.out(f"{taken.made.id}  {taken.path}")
            except Away as error:  # the session stays untaken
                if args.once:
                    raise
                if not away:
                    console.warn(f"{error}; trying again every {args.every:g} s")
                away = True
            if args.once:
                return 0
            time.sleep(args.every)
    except KeyboardInterrupt:  # the usual way to end it
        return 0
    finally:
        watcher.close()


def _here(args: argparse.Namespace) -> Here:
    from rune.serving import library
    from rune.serving.keys import OWNER
    from rune.serving.memory import check_alias
    from rune.serving.refusals import Refusal
    from rune.serving.watching import Here

    memory = library.memory_of(_memory.config(args))
    try:
        where = memory.place_for(OWNER, args.project, args.domain, args.task)
        check_alias(args.alias)
    except Refusal as refusal:
        raise AdapterError(str(refusal)) from None
    if not memory.learns:
        raise ConfigError("there is no hypernetwork to learn with; give --checkpoint DIR")
    return Here(memory, where, alias=args.alias)
