"""`rune collect RUN|CONFIG`: the loop. `rune collect --import FILE -o OUT`: trajectories made elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.cli import _stage
from rune.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "target", type=Path, metavar="RUN|CONFIG", nargs="?", help="a run folder, or a config.toml for a new one"
    )
    _stage.add_settings(parser)
    parser.add_argument(
        "--import",
        dest="imports",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="trajectories that agents wrote, or Rune's: a file or a folder, plain or .gz; repeatable "
        "(docs/trajectories.md has the formats)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="with --import: where the checked trajectories go"
    )


def run(args: argparse.Namespace) -> int:
    if args.imports:
        if args.target or not args.output or _stage.changes(args):
            raise ConfigError(
                "--import takes -o OUT.jsonl and no run, --set or --override: it writes a checked corpus, which a "
                'config uses as collect.imports = ["OUT.jsonl"]'
            )
        return _import(args.imports, args.output)
    if not args.target:
        raise ConfigError("nothing to do: give a run folder, a config, or --import FILE -o OUT.jsonl")
    _stage.show_files(_stage.run_stage(args, "collect"), "trajectories.jsonl")
    return 0


def _import(files: list[Path], output: Path) -> int:
    from rune.corpus import reading, summary
    from rune.runs import store

    found = reading.read_all(files)
    # No run, so no held-out tasks yet: what is for evaluation only is refused whatever will be held out.
    found.check_exclusion([])
    store.write_jsonl(output, found.trajectories)
    console.note(summary.text(summary.summarise(found.trajectories)))
    console.note("\n".join(found.words()))
    console.out(f"{output}: {len(found.trajectories)} trajectories")
    return 0
