"""Whether an experiment may begin: the decision its phase waits for, verified and made again. Loads no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rune import config
from rune.errors import PhaseError, RuneError
from rune.runs.store import RunDir
from rune.study import combine, phases, reading
from rune.study.cells import cells, settings_of
from rune.study.config import RunConfig, raw_in

# What of a decision follows from verdicts and config alone, whatever version of the program wrote the words beside it.
_FOLLOWS = ("passed", "answer", "effect_points", "threshold_points")
_OF_AN_ARM = ("condition", "num_tasks", "num_samples", "num_passed", "pass_at_1")


def demand(settings: RunConfig, base: Path) -> dict[str, Any]:
    """What opened this experiment's phase, for its manifest. `base`: the folder that its paths are relative to.

    Raises PhaseError where the phase may not begin: a quantised base in phase 1; later no verified, unedited, passed
    decision of the phase before and no override; an override of nothing.
    """
    phase = settings.phase
    _check_bases(settings)
    record: dict[str, Any] = {"number": phase.number, "title": phases.TITLES[phase.number]}
    if phase.number == 1:
        return record
    try:
        after = _passed(phase, base)
    except PhaseError as error:
        if not phase.override:
            raise PhaseError(
                f"{phases.name(phase.number)} waits for a passed decision of phase {phase.number - 1}: {error}; "
                "or give --override REASON, which then stands in everything that the run writes"
            ) from None
        own = {"phase": phase.number, "reason": phase.override, "instead_of": str(error)}
        return {**record, "overrides": [*_inherited(phase, base), own]}
    if phase.override:
        raise PhaseError(f"{phases.name(phase.number)} needs no override: {phase.after} passed; leave --override out")
    inherited = after.pop("overrides", [])
    return {**record, "after": after, **({"overrides": inherited} if inherited else {})}


def _check_bases(settings: RunConfig) -> None:
    """Raises PhaseError for a quantised base in phase 1, in whatever cell."""
    if settings.phase.number > 1:
        return
    for cell in cells(settings):
        own = settings_of(settings, cell)
        for where, found in {"[model] quantize": own.model.quantize, "[sample] quantize": own.sample.quantize}.items():
            if found not in ("", "none"):
                raise PhaseError(
                    f"{where} = '{found}': {phases.name(1)} does not take a quantised base; leave it out, or set "
                    "[phase] number = 2"
                )


def _passed(phase: phases.Config, base: Path) -> dict[str, Any]:
    """The decision that the config names, after it was verified. Raises PhaseError saying what is wrong with it."""
    if not phase.after:
        raise PhaseError("none is named; set [phase] after to the folder of its run, and decision to its digest")
    path = base / Path(phase.after).expanduser()
    try:
        found = verify(path, number=phase.number - 1)
    except RuneError as error:
        raise PhaseError(str(error)) from None
    if not phase.decision:
        raise PhaseError(
            f'{phase.after} passed, but [phase] decision does not name it; set it to "{found["decision"]}"'
        )
    if phase.decision != found["decision"]:
        raise PhaseError(
            f"{phase.after}: its decision is {found['decision'][:12]}…, [phase] decision names "
            f"{phase.decision[:12]}…; put that decision back, or name this one"
        )
    return found


def _inherited(phase: phases.Config, base: Path) -> list[Any]:
    """What the run before was overridden with, as far as it can be read."""
    path = base / Path(phase.after).expanduser()
    if not phase.after or not (path / "manifest.json").is_file():
        return []
    try:
        return list(RunDir.open(path).manifest().get("phase", {}).get("overrides", []))
    except (RuneError, AttributeError, TypeError):
        return []


def verify(path: Path, *, number: int) -> dict[str, Any]:
    """A run of phase `number` that passed: its name, answer, effect and digests.

    Seals and promise are checked, and the decision is made again from the verdicts. Raises PhaseError if the run is of
    another phase, undecided, edited or failed, and whatever opening and deciding it raises.
    """
    folder = RunDir.open(path)
    manifest, file = folder.manifest(), folder / "decision.json"
    had = int(raw_in(folder).get("phase", {}).get("number", 1))
    if had != number:
        raise PhaseError(f"{path} is of phase {had}, not of phase {number}")
    if not file.is_file() and not (folder / "result.json").is_file():
        raise PhaseError(f"{path} is not decided; run `rune gate {path}`")
    source = reading.source(path)
    source.verify()
    stands = config.plain(reading.decision(folder))
    again = config.plain(combine.made_again(source))
    if changed := _differences(stands, again):
        raise PhaseError(f"{path}: its decision was edited ({changed}); run `rune gate {path}` to make it again")
    digest = combine.digest_of(folder)
    sealed = manifest.get("stages", {}).get("gate", {}).get("decision")
    if sealed and sealed != digest:
        raise PhaseError(f"{path}: its decision was edited after it was made; run `rune gate {path}` to make it again")
    if not stands["passed"]:
        raise PhaseError(f"{path} did not pass: {stands['answer']}")
    return {
        "run": folder.path.resolve().name,
        "phase": number,
        "decision": digest,
        "preregistration": manifest.get("preregistration", ""),
        "answer": stands["answer"],
        "effect_points": stands["effect_points"],
        **({"overrides": o} if (o := manifest.get("phase", {}).get("overrides")) else {}),
    }


def _differences(stands: Mapping[str, Any], again: Mapping[str, Any]) -> str:
    """The first figure of a decision that its verdicts do not give; "" if there is none."""
    for name in _FOLLOWS:
        if stands[name] != again[name]:
            return f"{name} is {stands[name]}, its verdicts give {again[name]}"
    if len(stands["arms"]) != len(again["arms"]):
        return f"{len(stands['arms'])} arms, its verdicts have {len(again['arms'])}"
    for one, other in zip(stands["arms"], again["arms"], strict=True):
        for name in _OF_AN_ARM:
            if one[name] != other[name]:
                return f"{one['condition']}: {name} is {one[name]}, its verdicts give {other[name]}"
    return ""
