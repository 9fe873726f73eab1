"""Adapters as files: PEFT folders, written once, each named by the sha256 of its weights file.

    objects/ab/abcdef…/adapter_model.safetensors      `sha256sum` gives the folder's name
    objects/ab/abcdef…/adapter_config.json            says again what the weights' header says, as PEFT wants it

A folder is filled beside its place, brought to the disk and renamed: it is there whole or not at all. Engines, vLLM
and PEFT load it where it lies. Nothing here loads torch.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rune.adapters.layout import CONFIG_FILE as CONFIG_FILE
from rune.adapters.layout import WEIGHTS_FILE as WEIGHTS_FILE
from rune.errors import AdapterError, StoreError
from rune.runs.store import sha256_file
from rune.types import AdapterRef

_SCRATCH = "tmp-"


class Header(NamedTuple):
    """What a weights file says of itself before any number."""

    base: str
    scale: float
    rank: int
    tensors: dict[str, Any]  # name → {"dtype", "shape", "data_offsets"}


class Objects:
    """The folder `objects/` of a registry."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, digest: str) -> Path:
        return self.root / digest[:2] / digest

    def put(self, digest: str, config: bytes, weights: bytes) -> Path:
        """Bring one adapter to the disk; nothing happens if it is there. Raises StoreError, leaving no part of it."""
        final = self.place(digest)
        if final.is_dir():
            return final
        scratch = final.parent / f"{_SCRATCH}{uuid.uuid4().hex}"
        try:
            scratch.mkdir(parents=True)
            for name, data in ((WEIGHTS_FILE, weights), (CONFIG_FILE, config)):
                with (scratch / name).open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            _sync(scratch)
            try:
                scratch.rename(final)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Another process put the same bytes there first.
            for folder in (final.parent, self.root):
                _sync(folder)
        except OSError as error:
            raise _refusal(final, error) from None
        finally:
            if scratch.exists():
                shutil.rmtree(scratch, ignore_errors=True)
        return final

    def verify(self, digest: str) -> Path:
        """The folder of an adapter whose bytes are the ones that its name says. Raises AdapterError, StoreError."""
        folder = self.place(digest)
        weights = folder / WEIGHTS_FILE
        again = "`rune adapters add` puts it back from a copy of the adapter"
        try:
            found = sha256_file(weights)
        except OSError as error:
            raise AdapterError(f"{weights}: cannot be read ({error.strerror}); {again}") from None
        if found != digest:
            raise AdapterError(f"{weights}: damaged, its sha256 is {found[:12]}…, its name {digest[:12]}…; {again}")
        try:
            head = header(weights)
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            same = config["r"] == head.rank and abs(config["lora_alpha"] / config["r"] - head.scale) < 1e-9
            same = same and config["peft_type"] == "LORA" and not config["use_rslora"]
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            same = False
        if not same:
            raise AdapterError(f"{folder / CONFIG_FILE}: damaged, it contradicts the weights file; {again}")
        return folder

    def folder(self, ref: AdapterRef) -> Path:
        """As engines ask for it (`AdapterSource`)."""
        return self.verify(ref.adapter_id)

    def digests(self) -> Iterator[str]:
        """Names of all adapters on the disk, in order."""
        if self.root.is_dir():
            for shelf in sorted(self.root.iterdir()):
                for folder in sorted(shelf.iterdir()):
                    if not folder.name.startswith(_SCRATCH):
                        yield folder.name

    def unfinished(self) -> list[Path]:
        """What killed processes left of folders that they were filling."""
        return sorted(self.root.glob(f"??/{_SCRATCH}*"))

    def remove(self, digest: str) -> int:
        """Take one adapter off the disk; returns its size in bytes. For what no entry names, or rests."""
        return remove(self.place(digest))


def held(folder: Path) -> int:
    """The bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def remove(folder: Path) -> int:
    """Delete a folder; returns the bytes that it held."""
    size = held(folder)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    return size


def header(weights: Path) -> Header:
    """The header of a weights file of ours. Raises ValueError or KeyError for another's."""
    with weights.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > 100 << 20:
            raise ValueError("no safetensors header")
        raw = json.loads(file.read(size))
    about = raw.pop("__metadata__")
    ranks = {value["shape"][0] for name, value in raw.items() if name.endswith(".lora_A.weight")}
    (rank,) = ranks
    return Header(about["base_model"], float(about["scale"]), int(rank), raw)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refusal(path: Path, error: OSError) -> StoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(f"{path}: the disk is full ({error.strerror}); nothing was added: free some space, try again")
    return StoreError(f"{path}: cannot write: {error.strerror or error}")
