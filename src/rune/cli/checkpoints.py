"""`rune checkpoints ACTION`: trained hypernetworks: which ship and for which base, what one is, and a smaller copy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from rune import console, plugins, shipped
from rune.errors import DataError
from rune.hypernet.settings import Precision
from rune.runs import store

EPILOG = "Their format, and what int8 costs: docs/hypernetworks.md."
WEIGHTS, SETTINGS = "model.safetensors", "settings.json"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|show|compress", title="actions")
    actions.add_parser("list", help="those that ship, by their base model", epilog=EPILOG)
    show = actions.add_parser("show", help="what one is, and whether its weights are whole", epilog=EPILOG)
    show.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint's folder")
    small = actions.add_parser("compress", help="the same in fewer bytes, in another folder", epilog=EPILOG)
    small.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint's folder")
    small.add_argument("-o", "--output", type=Path, metavar="OUT", required=True, help="where the copy goes")
    small.add_argument(
        "--precision", choices=get_args(Precision), default="int8", help="of its weights (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    if args.action == "list":
        rows: list[tuple[object, ...]] = [
            (one.base_name, one.base[:12], about["kind"], about["precision"], about["size"], one.folder)
            for one in shipped.hypernets()
            for about in [_about(one.folder)]
        ]
        console.out(console.table(rows, ("base", "digest", "kind", "precision", "size", "folder")))
        return 0
    if args.action == "show":
        for name, value in _about(args.folder).items():
            console.out(f"{name:29s} {value}")
        return 0
    from rune.hypernet import checkpoint

    done = checkpoint.compress(args.folder, args.output, args.precision)
    console.note(
        f"{done.numbers:,} numbers, {done.before / 1e6:.1f} → {done.after / 1e6:.1f} MB, "
        f"‖w − ŵ‖ / ‖w‖ = {done.error:.2g}"
    )
    console.out(str(args.output))
    return 0


def _about(folder: Path) -> dict[str, Any]:
    """What its settings and the head of its weights say. Raises DataError or StoreError if it is none, or damaged."""
    if not (folder / SETTINGS).is_file() or not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder}: no checkpoint (it needs {SETTINGS} and {WEIGHTS}); give a trained one's folder")
    settings = store.read_json(folder / SETTINGS)
    try:
        kind, layout = str(settings["kind"]), settings["layout"]
        if kind not in (known_kinds := plugins.available("hypernet.kinds")):
            raise DataError(
                f"{folder / SETTINGS}: not a checkpoint's settings (kind '{kind}' is none of "
                f"{', '.join(known_kinds)}); copy it again"
            )
        known = {
            "kind": kind,
            "base": f"{settings['base_name']} ({settings['base_model']})",
            "modules": f"{', '.join(layout['sizes'])} of {layout['layers']} layers",
            **{f"{kind}.{k}": v for k, v in settings[kind].items() if not isinstance(v, dict)},
            "trained on": f"{len(settings['trained_on'])} tasks",
            "precision": settings.get("precision", "not said"),
        }
    except KeyError as error:
        raise DataError(
            f"{folder / SETTINGS}: not a checkpoint's settings ({error} is missing); copy it again"
        ) from None
    except (TypeError, AttributeError) as error:
        raise DataError(f"{folder / SETTINGS}: not a checkpoint's settings ({error}); copy it again") from None
    digest = store.sha256_file(folder / WEIGHTS)
    if digest != settings.get("weights_sha256", digest):
        raise DataError(f"{folder / WEIGHTS}: damaged, its sha256 is not the one in {SETTINGS}; copy it again")
    return {**known, "sha256": digest, "size": f"{(folder / WEIGHTS).stat().st_size / 1e6:.1f} MB"}
