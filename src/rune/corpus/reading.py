"""Trajectories of any known format, from files and folders: found out, read, redacted, checked.

A format is a file in `importers/` with NAME, `claims(record)` and `read(record, where, name)`. A record is one JSON
value, or the list of all values of a file where a session is spread over its lines (messages, events).

What a session without an edit or a submission could teach is nothing: it is left out and counted; a file that holds
nothing else is refused. Everything else that is wrong is an error that names file, line and field.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from rune import plugins
from rune.corpus import exclusion as _exclusion
from rune.corpus import files
from rune.corpus.files import Item
from rune.corpus.redact import Redactor
from rune.corpus.session import NothingToLearn, Session, check, to_trajectory
from rune.errors import ContaminationError, DataError
from rune.types import Problem, Trajectory

FOLDER = "corpus.importers"
_CALLED = re.compile(r"\w+(?=\s*\()")


@dataclass(slots=True)
class Imported:
    """What came out of some files."""

    trajectories: list[Trajectory] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # "file:line" of each
    left_out: list[str] = field(default_factory=list)  # "file:line: why", sessions with nothing to learn
    strangers: list[str] = field(default_factory=list)  # files of a folder that hold no known format
    redactor: Redactor = field(default_factory=Redactor)

    def check_exclusion(self, held_out: Sequence[Problem], *, by: str = "domain") -> None:
        """Raises ContaminationError for the first that is for evaluation only, held out, or a relative of such.

        `by`: what the split keeps whole, "domain" or "task".
        """
        exclusion = _exclusion.Exclusion(held_out, by=by)
        for trajectory, place in zip(self.trajectories, self.places, strict=True):
            if reason := exclusion.why(trajectory):
                raise ContaminationError(
                    f"{place}: field 'task_id' {trajectory.task_id!r}, trajectory {trajectory.trajectory_id}: "
                    f"{reason}; remove it"
                )

    def check_asked(self, calls: Mapping[str, str]) -> None:
        """Raises ContaminationError for the first that shows a call whose value a task asks for, whatever the layout.

        `calls`: the call as text, "zib([1, 2])" → the task's id.
        """
        by_name: dict[str, list[str]] = {}
        for call in calls:
            by_name.setdefault(call.partition("(")[0], []).append(call)
        for trajectory, place in zip(self.trajectories, self.places, strict=True):
            tried = [part for a in trajectory.attempts for part in (a.code, a.error, a.reflection)]
            text = "\n".join([trajectory.prompt, *tried])
            bare = "".join(text.split())
            for name in sorted(by_name.keys() & set(_CALLED.findall(text))):
                if call := next((c for c in by_name[name] if "".join(c.split()) in bare), ""):
                    raise ContaminationError(
                        f"{place}: trajectory {trajectory.trajectory_id} shows {call}, whose value {calls[call]} asks "
                        "for; remove it, or ask for another input"
                    )

    def record(self) -> dict[str, Any]:
        """For corpus.json: how much was redacted, by kind, and how much was left out."""
        left_out = len(self.left_out) + len(self.strangers)
        return {"redacted": dict(self.redactor.counts), "left_out": left_out} if self.trajectories else {}

    def words(self) -> list[str]:
        """What the person should know beside the trajectories themselves: what was redacted, what was left out."""
        said = [self.redactor.summary()]
        if self.left_out:
            said.append(f"left out: {len(self.left_out)} sessions without an edit or a patch, first {self.left_out[0]}")
        if self.strangers:
            said.append(f"left out: {len(self.strangers)} files of no known format: {', '.join(self.strangers[:5])}")
        return said


def read(path: Path) -> list[Trajectory]:
    """All trajectories of a file or folder. Raises DataError that names file, line and field."""
    return read_all([path]).trajectories


def read_all(paths: Sequence[Path]) -> Imported:
    """All trajectories of several files and folders; an id that comes twice is refused over files as within one."""
    found = Imported()
    first: dict[str, int] = {}
    for path in paths:
        before = len(found.trajectories)
        for file, name, items in _sources(path):
            _take(file, files.shown(name), items, found, folder=path.is_dir())
        if len(found.trajectories) == before:
            raise _nothing(path, found)
        for number in range(before, len(found.trajectories)):
            earlier = first.setdefault(found.trajectories[number].trajectory_id, number)
            if earlier != number:
                here, there = found.places[number], found.places[earlier]
                same = here != there and here.rpartition(":")[0] == there.rpartition(":")[0]
                what = f"line {there.rpartition(':')[2]}" if same else there
                raise DataError(
                    f"{here}: field 'trajectory_id' repeats {what}; each line needs its own, and a file is given once"
                )
    return found


def _nothing(path: Path, found: Imported) -> DataError:
    mine = [reason for reason in found.left_out if reason.startswith(str(path))]
    if len(mine) == 1:
        return DataError(mine[0])
    if mine:
        return DataError(f"{path}: holds {len(mine)} sessions, none with an edit or a submission; first {mine[0]}")
    return DataError(f"{path}: holds no trajectory; known formats: {known()}")


def known() -> str:
    """The names of the formats that are read."""
    return ", ".join(m.NAME for m in importers().values())


def importers() -> dict[str, ModuleType]:
    """Every format by its file's name."""
    return {name: importlib.import_module(f"rune.{FOLDER}.{name}") for name in plugins.available(FOLDER)}


# --------------------------------------------------------------------------- files


def _sources(path: Path) -> Iterator[tuple[Path, str, list[Item]]]:
    """(file, name for what has none of its own, values), one for each session log of a folder."""
    if not path.is_dir():
        requests = path.resolve().parent.parent.name == "llm_completions"
        yield path, path.resolve().parent.name if requests else _stem(path), files.read(path)
        return
    openhands, completions = (importers()[name] for name in ("openhands", "openhands_completions"))
    for folder, inside in itertools.groupby(files.expand(path), key=lambda file: file.parent):
        events: list[Item] = []
        longest: tuple[int, Path, list[Item]] | None = None
        for file in inside:
            items = files.read(file)
            alone = items[0].value if len(items) == 1 else None
            if folder.name == "events" and openhands.event(alone):
                events.append(Item(1, alone))  # a log of one file an event
            elif completions.claims(alone):
                # A folder of requests is one session, and its longest request holds all of it.
                length = len(completions.messages_of(alone, str(file)))
                if longest is None or length > longest[0]:
                    longest = (length, file, items)
            else:
                yield file, _stem(file), items
        if events:
            yield folder, folder.parent.name, events
        if longest:
            yield longest[1], folder.name, longest[2]


def _stem(path: Path) -> str:
    """A file's name without what says only how it is stored."""
    name = path.name.removesuffix(".gz")
    for suffix in (".traj.json", *files.SUFFIXES):
        if name.endswith(suffix) and name != suffix:
            return name.removesuffix(suffix)
    return name or "stdin"


def _take(path: Path, name: str, items: list[Item], found: Imported, *, folder: bool) -> None:
    """Read the values of one source into `found`."""
    formats = importers()
    whole = [item.value for item in items]
    if module := _claimant(formats, whole):
        _sessions(module, whole, f"{path}:{items[0].line}", name, path, found)
        return
    for number, item in enumerate(items, start=1):
        where = f"{path}:{item.line}"
        if (module := _claimant(formats, item.value)) is None:
            if folder and number == 1:
                found.strangers.append(str(path))
                return
            raise DataError(f"{where}: {_shape(item.value)} is no trajectory of a known format: {known()}")
        _sessions(module, item.value, where, name if len(items) == 1 else f"{name}:{number}", path, found)


def _claimant(formats: dict[str, ModuleType], record: Any) -> ModuleType | None:
    return next((module for module in formats.values() if module.claims(record)), None)


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with the fields {', '.join(map(str, list(value)[:6]))}" if value else "an empty object"
    if isinstance(value, list):
        inner = type(value[0]).__name__ if value else "nothing"
        return f"expected an object with fields, found a list of {inner}; that"
    return f"expected an object with fields, found {type(value).__name__}; that"


def _sessions(module: ModuleType, record: Any, where: str, name: str, path: Path, found: Imported) -> None:
    for number, one in enumerate(module.read(record, where, name)):
        if isinstance(one, Session):
            try:
                trajectory = to_trajectory(replace(one, where=where, source=files.shown(path.name)), found.redactor)
            except NothingToLearn as error:
                found.left_out.append(str(error))
                continue
        else:
            trajectory = redacted(one, found.redactor)
        found.trajectories.append(check(trajectory, where))
        found.places.append(where if not number else f"{where} (session {number + 1})")


def redacted(trajectory: Trajectory, redact: Redactor) -> Trajectory:
    """A finished trajectory with every text redacted; its own id stays."""
    attempts = tuple(
        replace(a, code=redact(a.code), error=redact(a.error), reflection=redact(a.reflection))
        for a in trajectory.attempts
    )
    # The solution is the code of the passing attempt: counted once, and the same afterwards.
    solution = trajectory.solution
    if solution and trajectory.attempts and trajectory.attempts[-1].code == solution:
        solution = attempts[-1].code
    return replace(
        trajectory,
        task_id=redact(trajectory.task_id),
        prompt=redact(trajectory.prompt),
        attempts=attempts,
        solution=redact(solution) if solution is trajectory.solution else solution,
        source=redact(trajectory.source),
    )
