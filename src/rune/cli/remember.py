"""`rune remember SESSION…`: one adapter from an agent's sessions, in the memory; `rune serve` has it at once."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rune import console


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Inputs: files or folders in any format that `rune collect --import` reads; all make one adapter."
    parser.add_argument("session", type=Path, nargs="+", metavar="SESSION")
    parser.add_argument("--project", default="", help="default: default")
    parser.add_argument("--domain", default="", help="what its tasks share: a library, a convention")
    parser.add_argument("--task", default="", help="one task of the domain")
    parser.add_argument("--alias", default="", help="another name for it")
    parser.add_argument("--registry", metavar="FOLDER", help="where the memory lies")
    parser.add_argument("--model", metavar="NAME", help="base model (default: qwen2.5-coder-0.5b-instruct)")
    parser.add_argument("--checkpoint", metavar="DIR", help="the hypernetwork (default: the shipped one)")


def run(args: argparse.Namespace) -> int:
    from rune.serving import library, settings

    given = {"model.name": args.model, "serve.registry": args.registry, "serve.checkpoint": args.checkpoint}
    changes = [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in given.items() if value is not None]
    made = library.learned(
        args.session,
        project=args.project,
        domain=args.domain,
        task=args.task,
        alias=args.alias,
        config=settings.load(None, changes),
    )
    console.note("\n".join(made.notes))
    console.note(
        f"{made.entry.place}, rank {made.entry.rank}, ‖ΔW‖_F {made.entry.delta_w_norm:.3f}, {made.seconds:.1f} s"
    )
    console.out(made.entry.id)
    return 0
