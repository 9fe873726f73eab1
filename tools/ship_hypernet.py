"""A run's hypernetwork as it ships: half the bytes, with its settings, what the run found, and what made it.

    .venv/bin/python tools/ship_hypernet.py RUN/cells/CELL results/hypernet-0.5b       (or RUN itself, of one cell)

Weights become float16 (`rune adapt` computes with them in float32 or bfloat16); result.md stands beside them because
the model card of every adapter quotes it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from safetensors.torch import load_file, save

from rune import console
from rune.errors import RuneError
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
    args = parser.parse_args()
    try:
        ship(args.run, args.output)
    except RuneError as error:
        console.warn(str(error))
        return 2
    return 0


def ship(run: Path, output: Path) -> None:
    """Raises StoreError or DataError if there is no run, or no trained hypernetwork in it."""
    folder = RunDir.open(run)
    trained = folder / "checkpoints" / "hypernet"
    settings = store.read_json(trained / "settings.json")
    whole = load_file(trained / "model.safetensors")
    half = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in whole.items()}
    store.write_atomic(output / "model.safetensors", save(half, metadata={"format": "pt"}))
    store.write_json(output / "settings.json", settings)
    experiment = run.parent.parent if run.parent.name == "cells" else run
    for name in ("result.md", "result.json", "report.md"):
        if (experiment / name).is_file():
            store.write_atomic(output / name, (experiment / name).read_bytes())
    manifest = folder.manifest()
    made = {key: manifest[key] for key in KEPT if key in manifest}
    sums = {f"shipped/{name}": store.sha256_file(output / name) for name in ("model.safetensors", "settings.json")}
    config = (folder / "config.toml").read_text(encoding="utf-8")
    store.write_json(output / "manifest.json", {"made_by": "rune run", **made, "sha256": sums, "config": config})
    console.out(f"{output}: {sum(t.numel() for t in whole.values()):,} numbers in float16")


if __name__ == "__main__":
    sys.exit(main())
