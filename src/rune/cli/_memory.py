"""What `rune remember` and `rune watch` are told alike: where the memory lies, and where in it an adapter goes."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from rune.errors import ConfigError

if TYPE_CHECKING:
    from rune.serving.remote import ServedMemory
    from rune.serving.settings import Config


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--project", default="", help="default: default")
    parser.add_argument("--domain", default="", help="what its tasks share: a library, a convention")
    parser.add_argument("--task", default="", help="one task of the domain")
    parser.add_argument("--alias", default="", help="another name for it")
    parser.add_argument(
        "--server",
        metavar="URL",
        help="hand the sessions to this `rune serve` instead of loading a model here; its API key is read from "
        "$RUNE_KEY",
    )
    parser.add_argument("--registry", metavar="FOLDER", help="where the memory lies")
    parser.add_argument("--model", metavar="NAME", help="base model (default: qwen2.5-coder-0.5b-instruct)")
    parser.add_argument("--checkpoint", metavar="DIR", help="the hypernetwork (default: the shipped one)")


def served(args: argparse.Namespace) -> ServedMemory | None:
    """The memory of `--server`; None: that of this process. Raises ConfigError for what a server has settled itself."""
    if args.server is None:
        return None
    for name in ("model", "checkpoint", "registry"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} is the server's own affair; leave it out with --server")
    from rune.serving.remote import ServedMemory

    return ServedMemory(args.server, project=args.project, domain=args.domain, task=args.task, alias=args.alias)


def config(args: argparse.Namespace) -> Config:
    from rune.serving import settings

    given = {"model.name": args.model, "serve.registry": args.registry, "serve.checkpoint": args.checkpoint}
    changes = [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in given.items() if value is not None]
    return settings.load(None, changes)
