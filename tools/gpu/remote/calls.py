"""What travels to a bare GPU machine in small parcels, and every call in order.

    .venv/bin/python tools/gpu/remote/calls.py pack .carry      .carry/setup: HEAD's tree, scripts, the pieces' sums
    .venv/bin/python tools/gpu/remote/calls.py list .carry --lane e15:0,3:8 --lane h12:-:38 --early h12

`.carry` holds 0.5b/000/piece000 …, 1.5b/…, vllm/0/p00 … (`carry_model.py split`, vLLM's archive in pieces), and
lane-NAME/start.sh for each lane and, to go on where it was, what it left as state-NAME/0/… (its files in folders that
fit a call, put to /tmp/state-NAME); setup/ needs site.tar.xz (wheels, unpacked) and data.tar.xz (what `split` left in
data/, in folders 0.5b and 1.5b), and may have more.tgz (more wheels for vLLM).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import lzma
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
TREE = ("src", "bench", "tools", "configs", "studies", "docs", "pyproject.toml", "README.md", "results/corpus-0.5b")
MODELS = ("0.5b", "vllm", "1.5b")  # in the order in which they are wanted
GUARD = "[ -e /tmp/ready-site ] || exit 1; "


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True, dest="verb")
    for verb in ("pack", "list"):
        one = verbs.add_parser(verb)
        one.add_argument("carry", type=Path)
        one.add_argument("--limit-mb", type=float, default=67.1, help="of one call, the working tree included")
    verbs.choices["list"].add_argument("--lane", action="append", default=[], metavar="NAME:GPUS:CORES")
    verbs.choices["list"].add_argument("--early", action="append", default=[], help="lanes that need no model")
    verbs.choices["list"].add_argument("--kind", default="nvidia-h200-x4")
    verbs.choices["list"].add_argument("--fetches", type=int, default=13)
    args = parser.parse_args()
    if args.verb == "pack":
        pack(args.carry)
        return 0
    try:
        print("\n".join(calls(args.carry, args.lane, args.early, args.kind, args.fetches, 1e6 * args.limit_mb)))
    except ValueError as error:
        sys.exit(f"calls: {error}")
    return 0


def pack(carry: Path) -> None:
    """`carry/setup` made anew from HEAD, but for the archives that it holds."""
    setup = carry / "setup"
    if missing := [name for name in ("site.tar.xz", "data.tar.xz") if not (setup / name).is_file()]:
        sys.exit(f"calls: {setup} lacks {' and '.join(missing)}; see {Path(__file__).name} --help")
    archive = subprocess.run(["git", "archive", "HEAD", *TREE], check=True, stdout=subprocess.PIPE).stdout
    (setup / "tree.tar.xz").write_bytes(lzma.compress(archive, preset=1))
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, stdout=subprocess.PIPE).stdout
    (setup / "commit").write_bytes(head)
    for name in ("start.sh", "join.sh", "lane.sh", "fetch.sh"):
        shutil.copy(HERE / name, setup)
    for name in ("ready.sh", "ready-vllm.sh", "there.sh", "carry_model.py"):
        shutil.copy(HERE.parent / name, setup)
    lines = io.StringIO()
    for what in MODELS:
        for piece in pieces(carry, what):
            with piece.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            lines.write(f"{digest} {what} {piece.name} {piece.stat().st_size}\n")
    (setup / "pieces").write_text(lines.getvalue())


def pieces(carry: Path, what: str) -> list[Path]:
    return sorted(path for path in (carry / what).glob("*/p*") if path.is_file())


def calls(carry: Path, lanes: Sequence[str], early: Sequence[str], kind: str, fetches: int, limit: float) -> list[str]:
    """One line a call. Raises ValueError where one is larger than `limit`."""
    names = [lane.partition(":")[0] for lane in lanes]
    if unknown := [name for name in (*names, *early) if not (carry / f"lane-{name}" / "start.sh").is_file()]:
        raise ValueError(f"no {carry}/lane-{unknown[0]}/start.sh")
    tree = tree_bytes()
    first = [lane for lane, name in zip(lanes, names, strict=True) if name in early]
    rest = [lane for lane in lanes if lane not in first]
    found = [
        f"FIRST, ALONE (kind {kind}); go on only when it says 'SETUP: ready-site'. Refused: no other call is sent."
    ]
    number = 0

    def call(folders: Sequence[Path], command: str, seconds: int) -> None:
        nonlocal number
        number += 1
        size = tree + sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        if size > limit:
            raise ValueError(
                f"call {number}, {', '.join(map(str, folders))}, takes {size / 1e6:.1f} MB with the tree's "
                f"{tree / 1e6:.1f}; {limit / 1e6:.1f} fit: move results/ aside, or cut smaller pieces"
            )
        told = ", ".join(f'"{folder}"' for folder in folders)
        found.append(f"{number}. carry [{told}] ({size / 1e6:.1f} MB), timeout_s {seconds}: {command}")

    call([carry / "setup"], "bash .carry/setup/start.sh", 120)
    if first:
        folders = [carry / f"lane-{lane.partition(':')[0]}" for lane in first]
        call(folders, f"{GUARD}bash /tmp/ready/lane.sh {' '.join(first)}", 60)
    for name in names:
        for folder in sorted(path for path in (carry / f"state-{name}").glob("*") if path.is_dir()):
            call([folder], f"{GUARD}mkdir -p /tmp/state-{name} && cp {folder}/* /tmp/state-{name}/", 60)
    for what in MODELS:
        folders = sorted({piece.parent for piece in pieces(carry, what)})
        for folder in folders:
            to = f"/tmp/pieces-{what}"
            call([folder], f"{GUARD}mkdir -p {to} && cp {folder}/p* {to}/", 60)
        if rest and what == MODELS[0]:
            lane_folders = [carry / f"lane-{lane.partition(':')[0]}" for lane in rest]
            call(lane_folders, f"{GUARD}bash /tmp/ready/lane.sh {' '.join(rest)}", 90)
    fetch = f"{GUARD}sleep 100; bash /tmp/ready/fetch.sh {' '.join(names)}"
    found.append(f"{number + 1} to {number + fetches}. no carry, timeout_s 170: {fetch}")
    return found


def tree_bytes() -> int:
    """Of the tracked files that are there."""
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, stdout=subprocess.PIPE).stdout.decode().split("\0")
    return sum(Path(name).stat().st_size for name in listed if name and Path(name).is_file())


if __name__ == "__main__":
    sys.exit(main())
