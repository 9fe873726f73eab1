"""`rune serve [CONFIG]`: OpenAI's interface over an engine and the registry of adapters; learns from trajectories."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.errors import ConfigError

EPILOG = (
    "Inputs: CONFIG is a TOML file with [model], [engine] and [serve] (docs/serving.md lists every setting), or none.\n"
    "Prints the address on stdout when it answers, one JSON line a request on stderr. Ends with 0 on SIGTERM or\n"
    "Ctrl-C, after the requests under way (serve.drain_seconds)."
)
_SHORT = {
    "model": "model.name",
    "engine": "engine.name",
    "host": "serve.host",
    "registry": "serve.registry",
    "checkpoint": "serve.checkpoint",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("config", type=Path, nargs="?", metavar="CONFIG", help="a TOML file; none: the defaults")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", dest="settings", help="override a setting; repeatable"
    )
    parser.add_argument("--model", metavar="NAME", help="base model (default: qwen2.5-coder-0.5b-instruct)")
    parser.add_argument("--engine", metavar="NAME", help="what draws (default: torch); ray: replicas, docs/cluster.md")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1); any other than loopback needs keys")
    parser.add_argument("--port", type=int, help="default: 8000; 0: one that is free")
    parser.add_argument("--registry", metavar="FOLDER", help="where the adapters lie")
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="the hypernetwork; '' learns nothing (default: the shipped)"
    )


def run(args: argparse.Namespace) -> int:
    from rune.serving import settings

    given = {path: getattr(args, name) for name, path in _SHORT.items() if getattr(args, name) is not None}
    changes = [f"{path}={_quoted(value)}" for path, value in given.items()]
    if args.port is not None:
        changes.append(f"serve.port={args.port}")
    config = settings.load(args.config, [*args.settings, *changes])
    try:
        from rune.serving import server
    except ModuleNotFoundError as error:
        raise ConfigError(f"rune serve needs {error.name}; install it with: pip install 'rune-lora[serve]'") from None
    server.run(config, ready=console.out)
    return 0


def _quoted(value: str) -> str:
    """As a TOML string, whatever is in it."""
    import json

    return json.dumps(value, ensure_ascii=False)
