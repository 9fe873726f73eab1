"""What a user's file holds, whatever its container: JSON, a JSON list, JSON Lines; plain or gzip; BOM, CRLF.

Unlike our own records (`store`), which a kill may tear and which are repaired, a torn line in a user's file is an
error: what was lost cannot be known.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rune.errors import DataError

SUFFIXES = (".traj", ".json", ".jsonl", ".ndjson")  # what is looked at in a folder; each may end in .gz
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # PowerShell's `>` writes UTF-16


class Item(NamedTuple):
    """One JSON value of a file and the line it begins on."""

    line: int
    value: Any


def expand(path: Path) -> list[Path]:
    """The files of a folder that may hold trajectories, folder by folder; any other path is itself.

    Raises DataError for a folder that holds none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(
        (p for p in path.rglob("*") if p.is_file() and p.name.removesuffix(".gz").endswith(SUFFIXES)), key=_order
    )
    if not found:
        raise DataError(f"{path}: no file in this folder ends in {', '.join(SUFFIXES)} (or one of these and .gz)")
    return found


def _order(path: Path) -> list[tuple[str, int, str]]:
    """Folder by folder, numbers in names by their value: 2.json before 10.json."""
    parts = re.split(r"(\d+)", path.name)
    return [(str(path.parent), int(part) if part.isdecimal() else -1, part) for part in parts]


def shown(name: str) -> str:
    """A file's name as text that any record may hold: names are bytes, and Python keeps those that the locale cannot
    read as halves of surrogate pairs."""
    return os.fsencode(name).decode("utf-8", "replace")


def read_text(path: Path) -> str:
    """The text of a file, unpacked, without byte order mark, lines ended by \\n. Raises DataError."""
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: a damaged gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror or error}") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        return data.decode(encoding).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def parse(text: str) -> Any:
    """JSON → value, with U+FFFD for halves of surrogate pairs: no tokenizer and no UTF-8 file takes those.

    Raises ValueError for text that is no JSON, or nested too deeply.
    """
    try:
        return sound(json.loads(text)) if _HALF.search(text) else json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply to read") from None


def sound(value: Any) -> Any:
    """A JSON value whose texts hold no halves of surrogate pairs."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [sound(one) for one in value]
    return {sound(k): sound(v) for k, v in value.items()} if isinstance(value, dict) else value


def read(path: Path) -> list[Item]:
    """Every value of a file: the elements of a JSON list, the lines of JSON Lines, or the one value that it is.

    Raises DataError that names file and line.
    """
    text = read_text(path)
    start = len(text) - len(text.lstrip())
    if start == len(text):
        raise DataError(f"{path}: is empty")
    try:
        value = parse(text)
    except ValueError as error:
        return _lines(path, text, error)
    if isinstance(value, list):
        return list(_elements(text, start))
    return [Item(text.count("\n", 0, start) + 1, value)]


def _elements(text: str, start: int) -> Iterator[Item]:
    """The elements of a list that is known to be valid JSON, with their lines."""
    decoder = json.JSONDecoder()
    at, line, counted = start + 1, 1, 0
    while True:
        while text[at] in " \t\n\r,":
            at += 1
        if text[at] == "]":
            return
        value, end = decoder.raw_decode(text, at)
        line += text.count("\n", counted, at)
        counted = at
        yield Item(line, sound(value) if _HALF.search(text, at, end) else value)
        at = end


def _lines(path: Path, text: str, whole: ValueError) -> list[Item]:
    """JSON Lines; the error of the whole file where not even its first line is JSON of its own."""
    found: list[Item] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(Item(number, parse(line)))
        except ValueError as error:
            if not found and isinstance(whole, json.JSONDecodeError):
                raise DataError(f"{path}:{whole.lineno}: not valid JSON: {whole}") from None
            raise DataError(f"{path}:{number}: not valid JSON: {error}") from None
    return found
