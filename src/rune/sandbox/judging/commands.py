"""Commands over files of their own, each in a box of its own (`isolation/command.py`): a repository's tests."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rune.errors import SandboxError
from rune.sandbox.isolation import command as inside
from rune.sandbox.isolation.limits import python_command
from rune.types import Command, Finished

_ASK = "import json, sys; print(json.dumps([sys.executable, sys.prefix, sys.base_prefix, sys.path]))"
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
_GRACE = 30.0  # seconds beyond a command's own, for the walls and the files


def run(commands: Iterable[Command], *, workers: int) -> Iterator[Finished]:
    """In the commands' order, `workers` at a time. Raises SandboxError where a box cannot be made."""
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        yield from pool.map(_one, commands)


def _one(command: Command) -> Finished:
    executable, folders, python_path = interpreter(command.python or sys.executable)
    named = Path(executable).parent
    argv = [executable if command.argv[0] in ("python", "python3") else command.argv[0], *command.argv[1:]]
    job = {
        "argv": argv,
        "files": dict(command.files),
        "folders": list(folders),
        "path": f"{named}:{_SYSTEM_PATH}",
        "python_path": python_path,
        "seconds": command.seconds,
        "memory_mb": command.memory_mb,
        "folder_mb": command.folder_mb,
    }
    said, files = json.dumps(job).encode(), Path(command.archive).read_bytes()
    try:
        done = subprocess.run(
            python_command(module="isolation.command", isolated=True),
            input=inside.HEAD.pack(len(said), len(files)) + said + files,
            capture_output=True,
            timeout=command.seconds + _GRACE,
            check=False,
            env={},
        )
        answer: dict[str, Any] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise SandboxError(f"{command.key}: the box of a command did not end with its time", key=command.key) from None
    except ValueError:
        end = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise SandboxError(
            f"{command.key}: the box of a command said nothing ({''.join(end)})", key=command.key
        ) from None
    if "broken" in answer:
        raise SandboxError(
            f"{command.key}: a repository's tests need a box of their own with namespaces, and none could be made "
            f"({answer['broken']}); see `rune doctor`",
            key=command.key,
        )
    return Finished(
        key=command.key,
        code=int(answer["code"]),
        output=str(answer["output"]),
        timed_out=bool(answer["timed_out"]),
        wall_seconds=float(answer["seconds"]),
    )


@functools.lru_cache(maxsize=8)
def interpreter(python: str) -> tuple[str, tuple[str, ...], str]:
    """An interpreter's own path, the folders it needs to see, and what it would otherwise find by `.pth` files.

    Raises SandboxError if it does not start.
    """
    try:
        done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, timeout=30, check=True)
        executable, prefix, base, path = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise SandboxError(f"{python}: no Python interpreter that starts here; name another one") from None
    real = os.path.realpath(executable)
    outside = [p for p in path if p and Path(p).is_dir() and not p.startswith((prefix, base))]
    folders = dict.fromkeys([prefix, base, str(Path(real).parent), *outside])
    return executable, tuple(f for f in folders if f not in ("/", "/usr")), os.pathsep.join(outside)
