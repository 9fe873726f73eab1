"""A run's hypernetwork as it ships: fewer bytes, with its settings, what the run found, and what made it.

    .venv/bin/python tools/ship_hypernet.py RUN/cells/CELL results/hypernet-0.5b       (or RUN itself, of one cell)

Weights become int8, or what --precision says (docs/hypernetworks.md); result.md stands beside them because the model
card of every adapter quotes it. A folder that ships for another base model needs its line in results/hypernets.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from rune import console
from rune.errors import RuneError
from rune.hypernet import checkpoint
from rune.hypernet.settings import Precision
from rune.runs import store
from rune.runs.store import RunDir

KEPT = (
    "name",
    "config_digest",
    "model",
    "device",
    "dtype",
    "environment",
    "rune",
    "created",
    "cell",
)  # of the manifest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--precision", choices=get_args(Precision), default="int8")
    args = parser.parse_args()
    try:
        ship(args.run, args.output, args.precision)
    except RuneError as error:
        console.warn(str(error))
        return 2
    return 0


def ship(run: Path, output: Path, precision: Precision = "int8") -> None:
    """Raises StoreError or DataError if there is no run, or no trained hypernetwork in it."""
    folder = RunDir.open(run)
    trained = folder / "checkpoints" / "hypernet"
    done = checkpoint.compress(trained, output, precision)
    experiment = run.parent.parent if run.parent.name == "cells" else run
    for name in checkpoint.BESIDE:
        if (experiment / name).is_file():
            store.write_atomic(output / name, (experiment / name).read_bytes())
    manifest = folder.manifest()
    made = {key: manifest[key] for key in KEPT if key in manifest}
    sums = {f"shipped/{name}": store.sha256_file(output / name) for name in ("model.safetensors", "settings.json")}
    config = (folder / "config.toml").read_text(encoding="utf-8")
    store.write_json(output / "manifest.json", {"made_by": "rune run", **made, "sha256": sums, "config": config})
    console.out(f"{output}: {done.numbers:,} numbers, {done.after / 1e6:.1f} MB as {precision}")


if __name__ == "__main__":
    sys.exit(main())
