"""Verdicts by content hash: the same program against the same test under the same limits is judged once, ever.

The key covers program, test, entry point, prelude, backend, its walls, limits, interpreter, lent packages and scorer,
so a change of any of them judges anew. One line a verdict, appended; two processes may share the file. What the scorer
could not settle (a wall-clock timeout, whose cause may be the machine) is not kept. A damaged line is left out, and
said once: a cache is only a cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rune import config, console
from rune.errors import DataError
from rune.runs import store
from rune.types import Command, Execution, Finished, Program, Sandbox

SCORER = 4  # raise it when a change of the scorer can change a verdict


class Cached:
    """A Sandbox in front of another. `hits` counts what came from the file since it was made."""

    def __init__(self, inner: Sandbox, folder: Path, *, backend: str, settings: Any) -> None:
        self.inner = inner
        self.hits = 0
        limits = config.plain(settings)
        for name in ("workers", "allow_weak", "output_kb"):  # these change no verdict
            limits.pop(name, None)
        context = {"backend": backend, "limits": limits, "python": platform.python_version(), "scorer": SCORER}
        # A program that imports numpy failed while there was none; one that writes a file needs a folder of its own.
        context |= {"packages": _versions(limits.get("packages", ())), "layers": list(getattr(inner, "layers", ()))}
        self._context = config.digest(context)
        self._path = folder / "verdicts.jsonl"
        self._known = _read(self._path) if self._path.exists() else {}
        self._log = store.Appender(self._path)

    def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
        """As the inner sandbox, but known verdicts come at once. Two programs may have one key."""
        asked: dict[str, tuple[str, str]] = {}  # by the key that the inner sandbox is given: name and the caller's key
        ready: list[Execution] = []

        def unknown() -> Iterator[Program]:
            for program in programs:
                name = self._name(program)
                found = self._known.get(name)
                if found is None:
                    key = program.key
                    while key in asked:
                        key += "'"
                    asked[key] = name, program.key
                    yield dataclasses.replace(program, key=key)
                else:
                    self.hits += 1
                    ready.append(dataclasses.replace(found, key=program.key))

        for execution in self.inner.judge(unknown()):
            yield from _drain(ready)
            name, key = asked.pop(execution.key)
            if name not in self._known and execution.settled:
                self._known[name] = dataclasses.replace(execution, key=name)
                self._log.write(self._known[name])
            yield dataclasses.replace(execution, key=key)
        yield from _drain(ready)

    def run(self, commands: Iterable[Command]) -> Iterator[Finished]:
        """Commands are never cached: what they find depends on an interpreter's packages too."""
        return self.inner.run(commands)

    def close(self) -> None:
        self._log.close()
        self.inner.close()

    def _name(self, program: Program) -> str:
        parts = (program.code, program.test, program.entry_point, program.prelude, self._context)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _drain(ready: list[Execution]) -> Iterator[Execution]:
    while ready:
        yield ready.pop()


def _read(path: Path) -> dict[str, Execution]:
    """Executions by name. What is no JSON object is damage; an object of other fields is another version's."""
    found: dict[str, Execution] = {}
    damaged = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # torn by a kill: cut off before the next is appended
            try:
                raw = json.loads(line)
            except ValueError:
                raw = None
            if not isinstance(raw, dict):
                damaged.append(number)
                continue
            try:
                execution = store.decode(Execution, raw, where=f"{path}:{number}")
            except DataError:
                continue
            found[execution.key] = execution
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines, the first {damaged[0]}, are"
        console.warn(f"{path}: {which} damaged and left out; delete the file to be rid of this, or pass --no-cache")
    return found
