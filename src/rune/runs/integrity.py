"""Tamper evidence: what a run promised before it began, and whether a line was touched since.

`preregister` freezes the promise when the run folder is made; `seal` takes the digest of a stage's files when
that stage ends; `verify` names every line that was edited, deleted, inserted or moved. Digests of whole files
go into manifest.json and into the report, digests of single lines into seals.json. Of verdicts.jsonl the outcomes
are sealed (see `outcomes`), so that the file can be made again from the samples: `rune score RUN --again`.

Not covered: someone who rewrites the file, seals.json and the manifest together. Against that, keep the
manifest's `preregistration` digest elsewhere (a commit, an e-mail, the tracker) before the run ends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rune import config
from rune.errors import GateError, RuneError, StoreError
from rune.runs import outcomes, store
from rune.runs import preregistration as promise
from rune.runs.store import RunDir
from rune.types import Problem

PREREGISTRATION = "preregistration.json"
SEALS = "seals.json"
OPTIONAL = ("shown.jsonl",)  # written by some configs only
FROZEN = ("config.toml", "problems.jsonl")  # sealed when the folder is made
WRITES: Mapping[str, tuple[str, ...]] = {
    "collect": ("trajectories.jsonl", "shown.jsonl"),
    "adapt": ("treatments.jsonl",),
    "sample": ("samples.jsonl",),
    "score": (outcomes.FILE,),
}


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
    store.write_json(folder / PREREGISTRATION, frozen)
    _write(folder, {name: _fingerprint(folder, name) for name in (*FROZEN, PREREGISTRATION)})
    folder.update(preregistration=frozen["digest"], gate_digest=frozen["gate_digest"])


def current(folder: RunDir) -> dict[str, Any]:
    """The promise as the folder's config and problems make it now, with the analysis that it promised, if it has.

    Raises GateError if that analysis is not computed any more.
    """
    raw = config.parse((folder / "config.toml").read_text(encoding="utf-8"), where=str(folder / "config.toml"))
    return promise.freeze(raw, store.read_jsonl(folder / "problems.jsonl", Problem), version=analysis_of(folder))


def analysis_of(folder: RunDir) -> int | None:
    """The version of the analysis that a run promised; None before it promised anything."""
    frozen = folder / PREREGISTRATION
    return promise.version_in(store.read_json(frozen)) if frozen.exists() else None


def seal(folder: RunDir, stage: str) -> None:
    """Seal what `stage` wrote. A file sealed before may have grown, but no line of it may have changed.

    Raises StoreError if one did: a second run of a stage must not launder an edit.
    """
    demand_kept(folder, stage, grown=True)
    seals = _read(folder)
    for name in WRITES.get(stage, ()):
        if (folder / name).exists():
            seals[name] = _fingerprint(folder, name)
    _write(folder, seals)


def demand_kept(folder: RunDir, stage: str, *, grown: bool) -> None:
    """Raises StoreError if a sealed line of what `stage` writes has changed; `grown`: or is missing.

    Without `grown`, verdicts may be missing that the stage will find again.
    """
    seals = _read(folder)
    for name in WRITES.get(stage, ()):
        before = seals.get(name)
        if before is None or (not (folder / name).exists() and (grown or _by_outcome(before))):
            continue
        if what := _lost(folder, name, before, grown=grown):
            advice = _remedy(folder, [what], "put it back or start a new run")
            raise StoreError(f"{folder.path}: {what}, after it was sealed; {advice}")


def _lost(folder: RunDir, name: str, before: Mapping[str, Any], *, grown: bool) -> str:
    """What an addition does not explain, as a clause; "" if nothing."""
    if _by_outcome(before):
        found = outcomes.read(folder / name)
        changes = outcomes.changes(folder, found, before)._replace(added=())
        if not grown:  # a torn last line is cut off and its verdict found again
            torn = bool(found.raw) and not found.raw[-1].endswith(b"\n")
            changes = changes._replace(missing=(), unreadable=found.unreadable[:-1] if torn else found.unreadable)
        return changes.describe() if changes else ""
    now = _lines_of((folder / name).read_bytes() if (folder / name).exists() else b"")
    return "" if now["line_digests"].startswith(before["line_digests"]) else _describe(name, before, now)


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
        found = _fingerprint(folder, name, before)
        if before is None or before["sha256"] != digest:
            changes.append(f"{SEALS} was edited (entry {name})")
        if found["sha256"] != digest:
            changes.append(_difference(folder, name, before, found))
    for stage, names in WRITES.items():
        if manifest.get("stages", {}).get(stage, {}).get("status") == "done":
            sealed = manifest.get("seals", {})
            wanted = [name for name in names if name not in OPTIONAL or (folder / name).exists()]
            changes += [f"{name} was never sealed" for name in wanted if name not in sealed]
    changes += _promise_changes(folder, manifest)
    return changes


def demand_samples(folder: RunDir) -> None:
    """Raises GateError unless all that verdicts are made from is as it was sealed, samples included."""
    changes = [c for c in verify(folder) if not c.startswith(outcomes.FILE)]
    if changes:
        raise GateError(f"{_broken(folder, changes)}; only from what was sealed can verdicts be made again")
    if "samples.jsonl" not in folder.manifest().get("seals", {}):
        raise GateError(f"{folder.path}: samples.jsonl was never sealed; run `rune sample {folder.path}` first")


def demand_outcomes(folder: RunDir, made: Path) -> tuple[int, int]:
    """Hold the outcomes in `made` against the sealed ones: how many could be compared, of how many.

    Under a seal of version 1 those can be whose lines are there and unchanged. Raises StoreError if one differs.
    """
    before = _read(folder).get(outcomes.FILE)
    found = outcomes.read(made)
    if before is None:
        return 0, len(found.outcomes)
    if _by_outcome(before):
        changes = outcomes.changes(folder, found, before)
        compared = before["lines"]
    else:
        sealed = outcomes.of_sealed_lines(folder / outcomes.FILE, before["line_digests"])
        now = dict(found.outcomes)
        edited = tuple((k, o, now[k]) for k, o in sealed.items() if k in now and now[k] is not o)
        missing = tuple(str(k) for k in sealed if k not in now)
        changes = outcomes.Changes(edited, missing, (), ())
        compared = len(sealed)
    if changes:
        by = folder.manifest().get("stages", {}).get("score", {}).get("by", {})
        what = changes.describe().replace("edited", "other than sealed").removeprefix(f"{outcomes.FILE}: ")
        raise StoreError(
            f"{folder.path}: judged again, {what}; {outcomes.FILE} is left as it was, the new verdicts are in "
            f"{made.name}. Sealed by commit {by.get('commit', '?')}, Python {by.get('python', '?')}: "
            "judge with that again, or start a new run"
        )
    return compared, len(found.outcomes)


def forget_verdicts(folder: RunDir) -> None:
    """Lift the seal of verdicts.jsonl, which is then sealed anew when scoring ends."""
    seals = _read(folder)
    if seals.pop(outcomes.FILE, None) is not None:
        _write(folder, seals)


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
    advice = _remedy(folder, changes, "Put it back, or start a new run")
    return f"{folder.path}: changed since pre-registration: {shown}. {advice}"


def _remedy(folder: RunDir, changes: Sequence[str], otherwise: str) -> str:
    """What helps: verdicts can be made again, nothing else can."""
    if all(change.startswith(outcomes.FILE) for change in changes):
        return f"`rune score {folder.path} --again` makes {outcomes.FILE} again from the sealed samples"
    return otherwise


def _promise_changes(folder: RunDir, manifest: Mapping[str, Any]) -> list[str]:
    """Field by field: the promise on disk against the promise that config and split make today."""
    if "preregistration" not in manifest or not (folder / PREREGISTRATION).exists():
        return []
    before = store.read_json(folder / PREREGISTRATION)
    changes = []
    if before.get("digest") != manifest["preregistration"] or promise.digest(before) != before.get("digest"):
        changes.append(f"{PREREGISTRATION} does not match the digest in manifest.json")
    if manifest.get("gate_digest") != before.get("gate_digest"):
        changes.append("manifest.json: gate_digest differs from the pre-registered one")
    try:
        changes += promise.differences(before, current(folder))
    except GateError as error:
        changes.append(str(error))
    except (RuneError, OSError):
        pass  # a file that no longer reads has been named by its lines already
    return changes


# --------------------------------------------------------------------------- fingerprints


def _by_outcome(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("version", 1) >= outcomes.VERSION)


def _fingerprint(folder: RunDir, name: str, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An entry of seals.json, of the kind that `before` is."""
    if name == outcomes.FILE and (before is None or _by_outcome(before)):
        return outcomes.fingerprint(outcomes.read(folder / name))
    return _lines_of((folder / name).read_bytes())


def _lines_of(data: bytes) -> dict[str, Any]:
    lines = data.splitlines(keepends=True)
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "lines": len(lines),
        "line_digests": "".join(map(outcomes.digest_of, lines)),
    }


def _difference(folder: RunDir, name: str, before: Mapping[str, Any] | None, found: Mapping[str, Any]) -> str:
    if before is None:
        return f"{name} changed"
    if not _by_outcome(before):
        return _describe(name, before, found)
    changes = outcomes.changes(folder, outcomes.read(folder / name), before)
    return changes.describe() if changes else f"{name} changed"


def _describe(name: str, before: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Name the lines: edited, deleted, inserted or moved."""
    old, new = outcomes.split(before["line_digests"]), outcomes.split(found["line_digests"])
    first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))) + 1
    if len(new) < len(old):
        return f"{name}: {len(old) - len(new)} of {len(old)} lines deleted, from line {first}"
    if len(new) > len(old):
        return f"{name}: {len(new) - len(old)} lines added, from line {first}"
    if sorted(old) == sorted(new):
        return f"{name}: lines reordered, from line {first}"
    edited = [i + 1 for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    shown = ", ".join(map(str, edited[:5])) + (", …" if len(edited) > 5 else "")
    return f"{name}: line {shown} edited"


def _read(folder: RunDir) -> dict[str, Any]:
    return dict(store.read_json(folder / SEALS)) if (folder / SEALS).exists() else {}


def _write(folder: RunDir, seals: Mapping[str, Any]) -> None:
    store.write_json(folder / SEALS, seals)
    folder.update(seals={name: entry["sha256"] for name, entry in seals.items()})
