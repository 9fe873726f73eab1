"""Files: JSONL that survives a kill, atomic writes, and the run folder with its manifest and lock.

The rules, written once:
* a record is one line; a line is either whole or not there (a torn last line is cut off when the file is
  next opened for appending, and ignored by readers);
* every other file appears complete under its name or not at all (written beside, fsynced, renamed);
* a full disk or a read-only folder is one clear line, and what was written before stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import gzip
import hashlib
import json
import os
import shlex
import sys
import time
import typing
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from rune import config, interrupt, strict
from rune.errors import DataError, StoreError

T = TypeVar("T")
SCHEMA_VERSION = 2
READABLE = (1, 2)  # 1: one config has no [design], problems have a family; read by `study/version1.py` and `decode`
_RENAMED = {"family": "domain"}  # fields of version 1's Problem and Trajectory
_DROPPED = {"AdapterRef": ("path",)}  # record → fields of before: an adapter is found by its content


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns OSError on the way to `path` into a StoreError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(f"{path}: the disk is full; free some space and run again with --resume") from None
        raise StoreError(f"{path}: cannot write: {error.strerror or error}") from None


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` in one step. Raises StoreError; the old content stays on failure.

    A device or a pipe (`/dev/stdout`) is written to as it is: a file put in its place would break the machine.
    """
    data = content.encode() if isinstance(content, str) else content
    if _stream(path):
        own = str(path) in ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")  # opened anew it would begin at its start
        with writing(path), contextlib.nullcontext(sys.stdout.buffer) if own else path.open("wb") as file:
            file.write(data)
            file.flush()
        return
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(path)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


def _stream(path: Path) -> bool:
    """Whether the path is no file's: a device, a pipe, a socket, or what a process has open (`/dev/stdout > file`)."""
    try:
        opened = (path.is_symlink() and path.is_relative_to("/dev")) or path.is_relative_to("/proc")
        return path.exists() and (opened or not (path.is_file() or path.is_dir()))
    except OSError:
        return False


def replace_block(path: Path, name: str, block: str) -> None:
    """Put `block` between the lines <!-- rune:NAME:begin --> and <!-- rune:NAME:end -->. Raises DataError if none."""
    begin, end = f"<!-- rune:{name}:begin -->", f"<!-- rune:{name}:end -->"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if begin not in text or end not in text or text.index(begin) > text.index(end):
        raise DataError(f"{path}: needs the lines {begin} and {end}, in this order, around the result")
    before, rest = text.split(begin, 1)
    _, after = rest.split(end, 1)
    write_atomic(path, f"{before}{begin}\n{block}\n{end}{after}")


def sweep(folder: Path) -> None:
    """Remove what `write_atomic` left anywhere below `folder` in a process that was killed."""
    for scratch in folder.rglob(".*.tmp"):
        pid = scratch.name.removesuffix(".tmp").rpartition(".")[2]
        if pid.isdigit() and not _alive(int(pid)):
            with contextlib.suppress(OSError):
                scratch.unlink()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, sorted only as given."""
    write_atomic(path, json.dumps(config.plain(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises DataError if the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None


def sha256_file(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """Hex sha256 of a file, read in 1 MiB blocks; `progress` gets each block's size."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
            if progress:
                progress(len(block))
    return hasher.hexdigest()


# --------------------------------------------------------------------------- records


def encode(record: Any) -> str:
    """A dataclass as one JSON line, without the newline. Lone surrogates and NULs are escaped, never lost."""
    return json.dumps(config.plain(record), ensure_ascii=True, separators=(",", ":"))


def decode(cls: type[T], raw: Any, *, where: str) -> T:
    """A mapping → dataclass `cls`, strictly: no missing field without default, no unknown field, no wrong type.

    Raises DataError naming `where` ("file:line") and the field.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"{where}: expected an object with fields, found {type(raw).__name__}")
    hints, fields = _fields(cls)  # type: ignore[arg-type]
    for old, now in _RENAMED.items():
        if old in raw and now in fields and now not in raw:
            raw = {(now if name == old else name): value for name, value in raw.items()}
    extra = sorted(set(raw) - set(fields) - set(_DROPPED.get(cls.__name__, ())))
    if extra:
        raise DataError(f"{where}: unknown field '{extra[0]}' for {cls.__name__}; known: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, spec in fields.items():
        if name in raw:
            values[name] = strict.value(hints[name], raw[name], f"{where}: field '{name}'", _RECORDS)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}: field '{name}' is missing ({cls.__name__} needs it)")
    return cls(**values)


@functools.cache
def _fields(cls: type) -> tuple[Mapping[str, Any], Mapping[str, dataclasses.Field[Any]]]:
    """Types and fields of a dataclass. Annotations are text: read once a class, not once a record."""
    return typing.get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "…"


_RECORDS = strict.Dialect(
    DataError, "an object", _short, finite=False, record=lambda cls, raw, where: decode(cls, raw, where=where)
)


def read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, parsed JSON) of each whole line. A torn last line is ignored.

    Raises DataError with file and line for a line that is not JSON.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from None
    with file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                if not line.endswith(b"\n"):
                    return
                raise DataError(f"{path}:{number}: not valid JSON: {error}") from None


def read_text(path: Path) -> str:
    """A user's file, plain or gzipped, a byte order mark left out. Raises DataError with its name."""
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot read it: {getattr(error, 'strerror', None) or error}") from None


def read_foreign(path: Path) -> list[tuple[int, Any]]:
    """(line, or place in the list, from 1; value) of what someone else wrote: JSON Lines or a JSON list, all of it.

    A torn line is an error here: in our own records (`read_lines`) the next write repairs it. Raises DataError.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            listed = json.loads(text)
            if isinstance(listed, list) and (len(listed) != 1 or "\n" in text.strip() or path.suffix == ".json"):
                return list(enumerate(listed, start=1))
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}:{number}: not valid JSON: {_first(error)}") from None
    return found


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def read_jsonl(path: Path, cls: type[T]) -> list[T]:
    """All records of a file; empty if the file does not exist yet."""
    if not path.exists():
        return []
    return [decode(cls, raw, where=f"{path}:{number}") for number, raw in read_lines(path)]


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Replace a whole file of records in one step."""
    write_atomic(path, "".join(encode(r) + "\n" for r in records))


class Appender:
    """Appends records; each is on its way to the disk when `write` returns. Cuts off a torn tail first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            repair(path)
            self._file: IO[bytes] = path.open("ab", buffering=0)

    def write(self, record: Any) -> None:
        self.write_raw(encode(record))

    def write_raw(self, line: str) -> None:
        data = line.encode() + b"\n"
        with writing(self.path):
            done = self._file.write(data)
            if done != len(data):
                raise OSError(errno.ENOSPC, "short write")

    def close(self) -> None:
        if not self._file.closed:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def repair(path: Path) -> int:
    """Cut a torn last line (no newline) off a JSONL file. Returns the number of bytes removed."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 4096)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n")
            if cut >= 0:
                end = start + cut + 1
                break
            end = start
        if end != size:
            file.truncate(end)
        return size - end


# --------------------------------------------------------------------------- run folder


def instead_of_a_run(path: Path) -> str:
    """What to do with a folder that is no run: unpack its run, read what was found, or make a run."""
    packed = path / "run.tar.xz"
    if packed.is_file():
        return f"its records are packed: mkdir -p runs && tar xf {shlex.quote(str(packed))} -C runs"
    if (path / "result.md").is_file():
        return f"what was found is in {path / 'result.md'}"
    if any(path.glob("*.md")):
        return "what was found is in its .md files"
    return "`rune run CONFIG` makes one"


class RunDir:
    """One experiment on disk. The layout is in ARCHITECTURE.md; all of it reads with `less` and `jq`.

    `create` makes or resumes one; it refuses a folder that another configuration made. `open` is for stages
    that read a finished or running one. While a process works in it, it holds `lock()`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @classmethod
    def create(cls, root: Path, name: str, settings: Any, *, extra: Mapping[str, Any], resume: bool) -> RunDir:
        """`runs/<name>-<digest8>`, with config.toml and manifest.json written.

        Raises StoreError if it exists and `resume` is false, or if its config digest differs.
        """
        return cls.make(cls.place(root, name, settings), name, settings, extra=extra, resume=resume)

    @classmethod
    def make(cls, path: Path, name: str, settings: Any, *, extra: Mapping[str, Any], resume: bool) -> RunDir:
        """The same at a given place."""
        digest = config.digest(settings)
        run = cls(path)
        if run.manifest_path.exists():
            found = run.manifest().get("config_digest")
            if found != digest:
                raise StoreError(
                    f"{run.path}: made by another config (digest {str(found)[:8]}, this one {digest[:8]}); "
                    "use another [run] name"
                )
            if not resume:
                raise StoreError(f"{run.path}: exists already; add --resume to go on, or use another [run] name")
            return run
        write_atomic(run / "config.toml", config.dump_toml(settings))
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "status": "created",
            "name": name,
            "config_digest": digest,
            "created": now(),
            **extra,
            "stages": {},
        }
        write_json(run.manifest_path, manifest)
        return run

    @staticmethod
    def place(root: Path, name: str, settings: Any) -> Path:
        """Where a run of these settings lives."""
        return root / f"{name}-{config.digest(settings)[:8]}"

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run folder. Raises StoreError if `path` is none."""
        run = cls(path)
        if not run.manifest_path.is_file():
            raise StoreError(f"{path}: no run folder (manifest.json is missing); {instead_of_a_run(path)}")
        if run.version is None:
            why = "its manifest.json names no schema version"
            raise StoreError(f"{path}: no run folder: {why}; {instead_of_a_run(path)}")
        if run.version not in READABLE:
            known = " and ".join(map(str, READABLE))
            raise StoreError(f"{path}: schema version {run.version}, this rune reads {known}")
        return run

    @property
    def version(self) -> Any:
        """Of the records' layout, as the manifest says."""
        return self.manifest().get("schema_version")

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    def manifest(self) -> dict[str, Any]:
        """Raises DataError if it is none."""
        manifest: dict[str, Any] = read_json(self.manifest_path)
        if not isinstance(manifest, dict):
            raise DataError(f"{self.manifest_path}: not a run's manifest: expected an object")
        stages = manifest.get("stages", {})
        for name, part in {"stages": stages, "seals": manifest.get("seals", {})}.items():
            if not isinstance(part, dict):
                raise DataError(f"{self.manifest_path}: not a run's manifest: field '{name}' is no object")
        for name, part in stages.items():
            if not isinstance(part, dict):
                raise DataError(f"{self.manifest_path}: not a run's manifest: field 'stages.{name}' is no object")
        return manifest

    def told(self) -> dict[str, Any]:
        """The manifest; of an experiment of several cells with what its first cell says of model, device and dtype."""
        manifest = self.manifest()
        first = next(iter(manifest.get("cells", ())), None)
        if first is None or not (cell := RunDir(self.path / "cells" / str(first))).manifest_path.is_file():
            return manifest
        return {**{k: v for k, v in cell.manifest().items() if k in ("model", "device", "dtype")}, **manifest}

    def update(self, **fields: Any) -> None:
        """Set top-level manifest fields."""
        write_json(self.manifest_path, {**self.manifest(), **fields})

    def stage_done(self, stage: str) -> bool:
        return bool(self.manifest().get("stages", {}).get(stage, {}).get("status") == "done")

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Records one stage's start, end, seconds and whatever the body puts into the yielded dict.

        An interrupted or failed stage is left as "interrupted"/"failed" and adds up its seconds when resumed.
        One that was done starts afresh, and what was recorded of it moves to its "earlier" list.
        """
        manifest = self.manifest()
        entry: dict[str, Any] = dict(manifest["stages"].get(name, {}))
        if entry.get("status") == "done":
            earlier = entry.pop("earlier", [])
            entry = {"earlier": [*earlier, entry]}
        before = float(entry.get("seconds", 0.0))
        started = time.monotonic()
        entry.update(status="running", started=entry.get("started", now()))
        self._put_stage(name, entry)
        status = "failed"
        try:
            interrupt.check()
            yield entry
            status = "done"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            entry.update(status=status, ended=now(), seconds=round(before + time.monotonic() - started, 3))
            self._put_stage(name, entry)

    def _put_stage(self, name: str, entry: Mapping[str, Any]) -> None:
        manifest = self.manifest()
        manifest["stages"][name] = dict(entry)
        manifest["status"] = f"{name}: {entry['status']}"
        write_json(self.manifest_path, manifest)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Only one process works in a run folder; the lock ends with the process, however it dies."""
        with writing(self.path):
            handle = (self.path / ".lock").open("w", encoding="utf-8")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StoreError(f"{self.path}: another rune process works here; wait for it or stop it") from None
            sweep(self.path)
            yield


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
