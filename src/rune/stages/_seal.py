"""Tamper evidence: what a run promised before it began, and whether a line was touched since.

`preregister` freezes the promise when the run folder is made; `seal` takes the digest of a stage's files when
that stage ends; `verify` names every line that was edited, deleted, inserted or moved. Digests of whole files
go into manifest.json and into the report, digests of single lines into seals.json.

Not covered: someone who rewrites the file, seals.json and the manifest together. Against that, keep the
manifest's `preregistration` digest elsewhere (a commit, an e-mail, the tracker) before the run ends.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from rune import config, store
from rune.errors import GateError, RuneError, StoreError
from rune.stages import preregister as promise
from rune.store import RunDir
from rune.types import Problem

PROMISE = "preregistration.json"
SEALS = "seals.json"
FROZEN = ("config.toml", "problems.jsonl")  # sealed when the folder is made
WRITES: Mapping[str, tuple[str, ...]] = {
    "collect": ("trajectories.jsonl",),
    "adapt": ("treatments.jsonl",),
    "sample": ("samples.jsonl",),
    "score": ("verdicts.jsonl",),
}
_DIGITS = 8  # hex digits kept of each line's digest: enough to name the line, the whole file has its sha256


def preregister(folder: RunDir) -> None:
    """Freeze the promise of a new run; for one that has it already, check that it was kept.

    Raises GateError naming what changed.
    """
    if "preregistration" in folder.manifest():
        changes = verify(folder)
        if changes:
            raise GateError(_broken(folder, changes))
        return
    frozen = current(folder)
    store.write_json(folder / PROMISE, frozen)
    _write(folder, {name: _fingerprint(folder, name) for name in (*FROZEN, PROMISE)})
    folder.update(preregistration=frozen["digest"], gate_digest=frozen["gate_digest"])


def current(folder: RunDir) -> dict[str, Any]:
    """The promise as the folder's config and problems would make it now."""
    raw = config.parse((folder / "config.toml").read_text(), where=str(folder / "config.toml"))
    return promise.freeze(raw, store.read_jsonl(folder / "problems.jsonl", Problem))


def seal(folder: RunDir, stage: str) -> None:
    """Seal what `stage` wrote. A file sealed before may have grown, but no line of it may have changed.

    Raises StoreError if one did: a second run of a stage must not launder an edit.
    """
    seals = _read(folder)
    for name in WRITES.get(stage, ()):
        if not (folder / name).exists():
            continue
        found, before = _fingerprint(folder, name), seals.get(name)
        if before and not found["line_digests"].startswith(before["line_digests"]):
            what = "; ".join(_describe(name, before, found))
            raise StoreError(f"{folder.path}: {what}, after it was sealed; put it back or start a new run")
        seals[name] = found
    _write(folder, seals)


def verify(folder: RunDir) -> list[str]:
    """What changed since it was promised or sealed, one clause each; empty if nothing did."""
    manifest = folder.manifest()
    seals = _read(folder)
    changes: list[str] = []
    for name, digest in manifest.get("seals", {}).items():
        before = seals.get(name)
        if not (folder / name).exists():
            changes.append(f"{name} is gone")
            continue
        found = _fingerprint(folder, name)
        if before is None or before["sha256"] != digest:
            changes.append(f"{SEALS} was edited (entry {name})")
        if found["sha256"] != digest:
            changes += _describe(name, before, found)
    for stage, names in WRITES.items():
        if manifest.get("stages", {}).get(stage, {}).get("status") == "done":
            changes += [f"{name} was never sealed" for name in names if name not in manifest.get("seals", {})]
    changes += _promise_changes(folder, manifest)
    return changes


def demand_config(folder: RunDir) -> None:
    """Raises StoreError if config.toml is not the one the run was made with."""
    sealed = folder.manifest().get("seals", {}).get("config.toml")
    if sealed and sealed != store.sha256_file(folder / "config.toml"):
        raise StoreError(
            f"{folder / 'config.toml'}: edited after the run was made; put it back, or start another run from it: "
            f"`rune run {folder / 'config.toml'}`"
        )


def demand(folder: RunDir) -> None:
    """Raises GateError if the run has no pre-registration, or if anything under seal changed."""
    if "preregistration" not in folder.manifest():
        raise GateError(
            f"{folder.path}: no pre-registration in the manifest, so nothing can be decided; "
            "`rune run CONFIG` writes one when it makes the folder"
        )
    changes = verify(folder)
    if changes:
        raise GateError(_broken(folder, changes))


def _broken(folder: RunDir, changes: Sequence[str]) -> str:
    shown = "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")
    return f"{folder.path}: changed since pre-registration: {shown}. Put it back, or start a new run"


def _promise_changes(folder: RunDir, manifest: Mapping[str, Any]) -> list[str]:
    """Field by field: the promise on disk against the promise that config and split make today."""
    if "preregistration" not in manifest or not (folder / PROMISE).exists():
        return []
    before = store.read_json(folder / PROMISE)
    changes = []
    if before.get("digest") != manifest["preregistration"] or promise.digest(before) != before.get("digest"):
        changes.append(f"{PROMISE} does not match the digest in manifest.json")
    if manifest.get("gate_digest") != before.get("gate_digest"):
        changes.append("manifest.json: gate_digest differs from the pre-registered one")
    # A file that no longer reads has been named by its lines already.
    with contextlib.suppress(RuneError, OSError):
        changes += promise.differences(before, current(folder))
    return changes


# --------------------------------------------------------------------------- fingerprints


def _fingerprint(folder: RunDir, name: str) -> dict[str, Any]:
    data = (folder / name).read_bytes()
    lines = data.splitlines(keepends=True)
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "lines": len(lines),
        "line_digests": "".join(hashlib.sha256(line).hexdigest()[:_DIGITS] for line in lines),
    }


def _describe(name: str, before: Mapping[str, Any] | None, found: Mapping[str, Any]) -> list[str]:
    """Name the lines: edited, deleted, inserted or moved."""
    if before is None:
        return [f"{name} changed"]
    old, new = _split(before["line_digests"]), _split(found["line_digests"])
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))) + 1
    if len(new) < len(old):
        return [f"{name}: {len(old) - len(new)} of {len(old)} lines deleted, from line {first}"]
    if len(new) > len(old):
        return [f"{name}: {len(new) - len(old)} lines added, from line {first}"]
    if sorted(old) == sorted(new):
        return [f"{name}: lines reordered, from line {first}"]
    edited = [i + 1 for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    shown = ", ".join(map(str, edited[:5])) + (", …" if len(edited) > 5 else "")
    return [f"{name}: line {shown} edited"]


def _split(digests: str) -> list[str]:
    return [digests[i : i + _DIGITS] for i in range(0, len(digests), _DIGITS)]


def _read(folder: RunDir) -> dict[str, Any]:
    return dict(store.read_json(folder / SEALS)) if (folder / SEALS).exists() else {}


def _write(folder: RunDir, seals: Mapping[str, Any]) -> None:
    store.write_json(folder / SEALS, seals)
    folder.update(seals={name: entry["sha256"] for name, entry in seals.items()})
