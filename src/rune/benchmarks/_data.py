"""Official data files: found by a setting, by RUNE_DATA or in a package, and compared with their pinned sha256."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rune import store
from rune.errors import DataError


def locate(setting: str, relative: str, *, hub: str) -> Path:
    """The file `setting` names (itself, or in the folder it names); else `$RUNE_DATA/relative`.

    Raises DataError that says where to get it. `hub` is the data set's id there.
    """
    name = Path(relative).name
    tried: list[Path] = []
    if setting:
        path = Path(setting).expanduser()
        tried = [path / relative, path / name] if path.is_dir() else [path]
    elif root := os.environ.get("RUNE_DATA"):
        tried = [Path(root).expanduser() / relative]
    for path in tried:
        if path.is_file():
            return path
    where = f"not at {' or '.join(map(str, tried))}" if tried else "no path given"
    raise DataError(
        f"{name}: {where}; set benchmark.settings.path or RUNE_DATA to a folder that holds {relative} "
        f"(published as {hub})"
    )


def check(path: Path, pins: Mapping[str, str], *, verify: bool) -> None:
    """Compare a file with the pinned hash of its name. Raises DataError; `verify=False` is for a user's own file."""
    if not verify:
        return
    found = store.sha256_file(path)
    if found not in pins.values():
        pinned = pins.get(path.name) or next(iter(pins.values()))
        raise DataError(
            f"{path}: sha256 {found[:12]}… is not the official file's ({pinned[:12]}…); "
            "set benchmark.settings.verify = false to use your own version of it"
        )


def read(path: Path) -> list[dict[str, Any]]:
    """Records of a .jsonl, .jsonl.gz or .json (a list) file, line ends normalised. Raises DataError with the line."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read it: {error}") from None
    if path.suffix == ".json":
        try:
            records = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(records, list):
            raise DataError(f"{path}: expected a list of tasks, found {type(records).__name__}")
        return [_unix(r) for r in records]
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append(_unix(json.loads(line)))
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not valid JSON: {error}") from None
    return found


def _unix(value: Any) -> Any:
    """Every string with \\n line ends: MBPP's programs come with \\r\\n."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n")
    if isinstance(value, list):
        return [_unix(v) for v in value]
    if isinstance(value, dict):
        return {k: _unix(v) for k, v in value.items()}
    return value


def need(record: Mapping[str, Any], *fields: str, where: Path) -> list[Any]:
    """Values of required fields. Raises DataError that names the task and the field."""
    for name in fields:
        if name not in record:
            raise DataError(f"{where}: task {record.get('task_id', '?')}: field '{name}' is missing")
    return [record[name] for name in fields]
