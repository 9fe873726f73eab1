"""Official data files: found by a setting, by RUNE_DATA or on the hub, and compared with what is pinned.

A file is compared with its sha256. The hub serves the same records in another format, so that there only their
number can be held against the official one.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rune import store
from rune.errors import DataError


class OnHub(NamedTuple):
    """A data set on the Hugging Face hub: all its splits together are the official file."""

    name: str
    subset: str  # its configuration, "" for the only one
    records: int  # in all splits


def load(
    setting: str, relative: str, pins: Mapping[str, str], *, hub: OnHub, verify: bool
) -> tuple[list[dict[str, Any]], Path]:
    """The records and where they are from. `setting` "hub" asks the hub, else see `locate`. Raises DataError."""
    if setting == "hub":
        return _from_hub(hub), Path(f"hub:{hub.name}")
    path = locate(setting, relative, hub=hub.name)
    check(path, pins, verify=verify)
    return read(path), path


def _from_hub(hub: OnHub) -> list[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(f"{hub.name}: reading data sets from the hub needs `pip install datasets`") from None
    try:
        splits = load_dataset(hub.name, hub.subset or None)
    except Exception as error:  # its network, cache and format errors share no base
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{hub.name}: the hub does not give it ({first[:160]}); give a path instead") from None
    records = [_unix(dict(row)) for part in splits.values() for row in part]
    if len(records) != hub.records:
        raise DataError(f"{hub.name}: {len(records)} tasks on the hub, the official set has {hub.records}")
    return records


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
        f"{name}: {where}; set benchmark.settings.path or RUNE_DATA to a folder that holds {relative}, "
        f"or, where the hub has it, set path to 'hub' (published as {hub})"
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
