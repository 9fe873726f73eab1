"""Official data files: found by a setting, by RUNE_DATA or on the hub, and compared with what is pinned.

A file is compared with its sha256. The hub serves the same records in another format, so that there only their
number can be held against the official one.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rune.errors import DataError
from rune.runs import store
from rune.types import Problem


class Missing(DataError):
    """A data file that is nowhere; `looked`: where it was looked for, `folder`: what RUNE_DATA would have to hold."""

    def __init__(self, message: str, *, looked: str, folder: str) -> None:
        super().__init__(message)
        self.looked = looked
        self.folder = folder


class Unreadable(NamedTuple):
    """A task of a user's file that makes no problem: which, and why (file, line and field)."""

    task_id: str  # "" if even that cannot be read
    reason: str


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


def load_problems(
    setting: str,
    relative: str,
    pins: Mapping[str, str],
    make: Callable[[dict[str, Any], str], Problem],
    *,
    hub: OnHub,
    verify: bool,
    unreadable: list[Unreadable] | None = None,
) -> list[Problem]:
    """`make` of every record of `load`, as `problems` has it. Raises DataError."""
    if setting == "hub":
        return [make(r, f"hub:{hub.name}: task {r.get('task_id', '?')}") for r in _from_hub(hub)]
    path = locate(setting, relative, hub=hub.name)
    check(path, pins, verify=verify)
    return problems(path, make, unreadable)


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
        if path.exists() and not path.is_dir():  # a pipe will do
            return path
    where = f"not at {' or '.join(map(str, tried))}" if tried else "no path given"
    raise Missing(
        f"{name}: {where}; set benchmark.settings.path or RUNE_DATA to a folder that holds {relative}, "
        f"or, where the hub has it, set path to 'hub' (published as {hub})",
        looked=f"{name}: {where}",
        folder=relative,
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
    return [record for _, record in numbered(path)]


def numbered(path: Path) -> list[tuple[int, Any]]:
    """(line, or place in the list, from 1; record) of a JSON Lines file or a JSON list. Raises DataError."""
    return [(number, _unix(record)) for number, record in store.read_foreign(path)]


def problems(
    path: Path, make: Callable[[dict[str, Any], str], Problem], unreadable: list[Unreadable] | None = None
) -> list[Problem]:
    """`make(record, where)` of every record. What raises DataError stops, or goes to `unreadable` if that is given."""
    found: dict[str, Problem] = {}
    for number, record in numbered(path):
        where = f"{path}:{number}"
        named = record.get("task_id") if isinstance(record, dict) else None
        identity = str(named) if isinstance(named, (str, int)) else ""
        try:
            if not isinstance(record, dict):
                raise DataError(f"{where}: expected a task as an object, found {type(record).__name__}")
            problem = make(record, f"{where}: task {record.get('task_id', '?')}")
            identity = problem.task_id
            if problem.task_id in found:
                raise DataError(f"{where}: task {problem.task_id}: field 'task_id': it was there before")
        except DataError as error:
            if unreadable is None:
                raise
            unreadable.append(Unreadable(identity, str(error)))
        else:
            found[problem.task_id] = problem
    return list(found.values())


def parse(source: str, where: str) -> ast.Module:
    """The syntax tree of a field's source. Raises DataError; `where` names the field."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        said = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise DataError(f"{where}: not Python 3 ({said}{f', its line {line}' if line else ''})") from None


def texts(record: Mapping[str, Any], *fields: str, where: str) -> list[str]:
    """Values of required fields that are strings. Raises DataError that names the task and the field."""
    found = []
    for name in fields:
        value = record.get(name)
        if not isinstance(value, str):
            what = f"is {type(value).__name__}, not a string" if value is not None or name in record else "is missing"
            raise DataError(f"{where}: field '{name}' {what.replace('NoneType', 'null')}")
        found.append(value)
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


def need(record: Mapping[str, Any], *fields: str, where: Path | str) -> list[Any]:
    """Values of required fields. Raises DataError that names the task and the field."""
    for name in fields:
        if name not in record:
            raise DataError(f"{where}: task {record.get('task_id', '?')}: field '{name}' is missing")
    return [record[name] for name in fields]
