"""A run without its weights, as it comes back from a machine: what cannot go on from there is removed, and begins anew.

    python tools/gpu/ended.py RUNS        the folder that holds run folders

Cells of one seed and fold share one training. Where it was begun and one of them has no verdicts, all of them go. What
was collected stays. (A folder whose training was not begun, or that has all its verdicts, wants no weights.)
"""

from __future__ import annotations

import argparse
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

from rune.runs import store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    args = parser.parse_args()
    for manifest in sorted(args.runs.glob("*/manifest.json")):
        for folder in cut_off(manifest.parent):
            print(f"begins anew: {folder.relative_to(args.runs)}")
            shutil.rmtree(folder)
    return 0


def cut_off(run: Path) -> list[Path]:
    """Folders of a run whose training has gone nowhere."""
    by_training: dict[tuple[Any, ...], list[Path]] = defaultdict(list)
    cells = [path.parent for path in sorted(run.glob("cells/*/manifest.json"))]
    for folder in cells or [run]:
        cell = store.read_json(folder / "manifest.json").get("cell", {})
        by_training[tuple(sorted((k, v) for k, v in cell.items() if k != "variant"))].append(folder)
    return [folder for some in by_training.values() if _begun(some) and not _ended(some) for folder in some]


def _stages(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = store.read_json(folder / "manifest.json")["stages"]
    return found


def _begun(folders: list[Path]) -> bool:
    return any("train" in _stages(folder) for folder in folders)


def _ended(folders: list[Path]) -> bool:
    return all(_stages(folder).get("score", {}).get("status") == "done" for folder in folders)


if __name__ == "__main__":
    raise SystemExit(main())
