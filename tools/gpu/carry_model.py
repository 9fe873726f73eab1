"""A base model for a machine without network, as small and as soon ready as it gets.

    python tools/gpu/carry_model.py split MODEL.gguf FOLDER OUT --bytes N    here: OUT/000/piece000 …, OUT/data/
    python tools/gpu/carry_model.py join PIECES DATA FOLDER                  there: the folder, to the last byte

FOLDER is what `rune models pull` made of MODEL.gguf. What the conversion does not read stays here (where the output
matrix is stored beside the embeddings, only the former is read: a fifth of the file). There, all processors dequantise
at once into the places that the safetensors header names, and the sha256 of the file here is the last word.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROWS = 8192  # of one job


class Job(NamedTuple):
    """Some rows of one tensor: where they lie in the carried bytes, and where they go in the safetensors file."""

    kind: int  # gguf's number of the quantisation
    start: int
    rows: int
    row_bytes: int
    target: int  # bytes from the beginning of the file
    of_rows: int


def split(args: argparse.Namespace) -> None:
    from gguf import GGUFReader

    from rune.models.offline import gguf

    reader = GGUFReader(args.gguf)
    weights = args.folder / "model.safetensors"
    with weights.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(size)
    places = json.loads(header)
    found = {gguf._rename(t.name): t for t in reader.tensors}
    if "lm_head.weight" in found and "lm_head.weight" not in places:
        found["model.embed_tokens.weight"] = found.pop("lm_head.weight")
    data = args.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    jobs, blob = [], bytearray()
    for name, place in places.items():
        if name == "__metadata__":
            continue
        tensor = found[name]
        raw = np.ascontiguousarray(tensor.data).view(np.uint8)
        lines = raw.reshape(len(raw), -1) if raw.ndim > 1 else raw.reshape(1, -1)
        begin, end = place["data_offsets"]
        for first in range(0, len(lines), ROWS):
            rows = min(ROWS, len(lines) - first)
            target = 8 + size + begin + (end - begin) // len(lines) * first
            at = len(blob) + first * lines.shape[1]
            jobs.append(Job(int(tensor.tensor_type), at, rows, lines.shape[1], target, len(lines)))
        blob += lines.tobytes()
    (data / "header.bin").write_bytes(size.to_bytes(8, "little") + header)
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    index = {"bytes": weights.stat().st_size, "sha256": digest, "jobs": jobs}
    (data / "index.json").write_text(json.dumps(index))
    for file in args.folder.iterdir():
        if file.name not in ("model.safetensors", ".verified.json"):
            shutil.copy(file, data / file.name)
    for number, begin in enumerate(range(0, len(blob), args.bytes)):
        folder = args.out / f"{number:03d}"
        folder.mkdir(exist_ok=True)
        (folder / f"piece{number:03d}").write_bytes(blob[begin : begin + args.bytes])
    print(f"{len(blob):,} bytes in {number + 1} pieces")


def join(args: argparse.Namespace) -> None:
    began = time.monotonic()
    index = json.loads((args.data / "index.json").read_text())
    args.folder.mkdir(parents=True, exist_ok=True)
    blob, target = args.folder / "blob.partial", args.folder / "model.safetensors"
    with blob.open("wb") as out:
        for piece in sorted(args.pieces.glob("piece*")):
            out.write(piece.read_bytes())
    header = (args.data / "header.bin").read_bytes()
    with target.open("wb") as out:
        out.write(header)
        out.truncate(index["bytes"])
    jobs = sorted((Job(*job) for job in index["jobs"]), key=lambda j: -j.rows * j.row_bytes)
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, initializer=_open, initargs=(blob, target)) as pool:
        list(pool.map(_dequantise, jobs, chunksize=1))
    blob.unlink()
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != index["sha256"]:
        raise SystemExit(
            f"{target}: sha256 {digest[:12]}… where {index['sha256'][:12]}… was sent; carry the pieces again"
        )
    for file in args.data.iterdir():
        if file.name not in ("header.bin", "index.json"):
            shutil.copy(file, args.folder / file.name)
    print(f"{args.folder}: {digest[:12]}…, {time.monotonic() - began:.1f} s on {workers} processors")


_maps: dict[str, Any] = {}


def _open(blob: Path, target: Path) -> None:
    import torch

    torch.set_num_threads(1)
    with blob.open("rb") as file:
        _maps["from"] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with target.open("r+b") as file:
        _maps["to"] = mmap.mmap(file.fileno(), 0)


def _dequantise(job: Job) -> None:
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    raw = np.frombuffer(_maps["from"], np.uint8, job.rows * job.row_bytes, job.start).reshape(job.rows, job.row_bytes)
    kind = GGMLQuantizationType(job.kind)
    plain = raw.view(np.float32) if kind == GGMLQuantizationType.F32 else dequantize(raw, kind)
    rounded = torch.from_numpy(plain.copy()).to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()
    _maps["to"][job.target : job.target + len(rounded)] = rounded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    here = verbs.add_parser("split")
    here.add_argument("gguf", type=Path)
    here.add_argument("folder", type=Path)
    here.add_argument("out", type=Path)
    here.add_argument("--bytes", type=int, required=True, help="of a piece, at most")
    here.set_defaults(do=split)
    there = verbs.add_parser("join")
    there.add_argument("pieces", type=Path)
    there.add_argument("data", type=Path)
    there.add_argument("folder", type=Path)
    there.set_defaults(do=join)
    args = parser.parse_args()
    args.do(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
