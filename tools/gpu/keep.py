"""Keeps a run's records under results/: what it decided as files, everything else in run.tar.xz, without weights.

    .venv/bin/python tools/gpu/keep.py RUN --out results/NAME

Left out: adapters, checkpoints' weights, optimiser states, logs, locks and the rendered report (`rune report` makes it
again). Open it with `tar xf results/NAME/run.tar.xz -C runs`, then `rune show runs/…`.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import sys
import tarfile
from pathlib import Path

BESIDE = ("config.toml", "manifest.json", "decision.json", "result.json", "result.md", "assessment.md")
LEFT_OUT = (".log", ".lock", ".safetensors", ".pt", ".html", ".png", ".svg")
FOLDERS_LEFT_OUT = ("adapters",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    keep(args.run.resolve(), args.out)
    return 0


def keep(run: Path, out: Path) -> None:
    """Copies `BESIDE` as far as they are there, and packs the folder; the same records give the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if (run / name).is_file():
            shutil.copyfile(run / name, out / name)
    preset = 9 | lzma.PRESET_EXTREME
    with (
        lzma.open(out / "run.tar.xz", "wb", preset=preset) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in sorted(run.rglob("*")):
            inside = path.relative_to(run)
            if path.is_file() and kept(inside):
                archive.add(path, f"{run.name}/{inside}", filter=plain)


def kept(path: Path) -> bool:
    return not path.name.endswith(LEFT_OUT) and not set(FOLDERS_LEFT_OUT) & set(path.parts)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without the machine's user and clock."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    sys.exit(main())
