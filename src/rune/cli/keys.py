"""`rune keys ACTION`: the API keys of `rune serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.adapters.registry.registry import default_folder


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "The file is --keys FILE, else keys.json in the registry's folder. It holds hashes: a key is shown once."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION", title="actions")
    add = actions.add_parser("add", help="make a key and print it", epilog="Example: rune keys add team --project shop")
    add.add_argument("name", help="whose it is")
    add.add_argument("--project", action="append", default=[], metavar="P", help="a project it is for; repeatable")
    add.add_argument("--admin", action="store_true", help="it is for everything, /metrics and folders too")
    listing = actions.add_parser("list", help="names and projects", epilog="Example: rune keys list")
    revoke = actions.add_parser("revoke", help="refuse a key from now on", epilog="Example: rune keys revoke team")
    revoke.add_argument("name")
    for each in (add, listing, revoke):
        each.add_argument("--keys", type=Path, metavar="FILE", default=None, help="the file of keys")


def run(args: argparse.Namespace) -> int:
    from rune.serving import keys

    path = args.keys or default_folder() / "keys.json"
    if args.action == "add":
        console.out(keys.add(path, args.name, args.project, admin=args.admin))
        console.note(f"kept as a hash in {path}; it is not shown again")
    elif args.action == "revoke":
        keys.revoke(path, args.name)
        console.out(f"revoked {args.name}")
    else:
        rows: list[tuple[object, ...]] = [
            (key.name, "everything" if key.admin else ", ".join(key.projects), key.created) for key in keys.read(path)
        ]
        console.out(console.table(rows, ("name", "for", "made")))
    return 0
