"""Verdicts by content hash: the same program against the same test under the same limits is judged once, ever.

The key covers program, test, entry point, prelude, backend, limits, interpreter and scorer, so a change of any
of them judges anew. One line a verdict, appended; two processes may share the file. What the scorer could not
settle (a wall-clock timeout, whose cause may be the machine) is not kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rune import config, store
from rune.types import Execution, Program, Sandbox

SCORER = 3  # raise it when a change of the scorer can change a verdict


class Cached:
    """A Sandbox in front of another. `hits` counts what came from the file since it was made."""

    def __init__(self, inner: Sandbox, folder: Path, *, backend: str, settings: Any) -> None:
        self.inner = inner
        self.hits = 0
        limits = config.plain(settings)
        for name in ("workers", "allow_weak", "output_kb"):  # these change no verdict
            limits.pop(name, None)
        context = {"backend": backend, "limits": limits, "python": platform.python_version(), "scorer": SCORER}
        self._context = config.digest(context)
        self._path = folder / "verdicts.jsonl"
        self._known: dict[str, Execution] = {}
        if self._path.exists():
            for execution in _read(self._path):
                self._known[execution.key] = execution
        self._log = store.Appender(self._path)

    def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
        """As the inner sandbox, but known verdicts come at once."""
        # Two programs may have one key; those that the inner sandbox is given have keys of their own.
        keys: dict[str, tuple[str, str]] = {}
        numbers = itertools.count(2)
        ready: list[Execution] = []

        def unknown() -> Iterator[Program]:
            for program in programs:
                name = self._name(program)
                found = self._known.get(name)
                if found is None:
                    own = program.key
                    while own in keys:
                        own = f"{program.key} ({next(numbers)})"
                    keys[own] = program.key, name
                    yield dataclasses.replace(program, key=own)
                else:
                    self.hits += 1
                    ready.append(dataclasses.replace(found, key=program.key))

        for execution in self.inner.judge(unknown()):
            yield from _drain(ready)
            key, name = keys.pop(execution.key)
            execution = dataclasses.replace(execution, key=key)
            if name not in self._known and execution.settled:
                self._known[name] = dataclasses.replace(execution, key=name)
                self._log.write(self._known[name])
            yield execution
        yield from _drain(ready)

    def close(self) -> None:
        self._log.close()
        self.inner.close()

    def _name(self, program: Program) -> str:
        parts = (program.code, program.test, program.entry_point, program.prelude, self._context)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _drain(ready: list[Execution]) -> Iterator[Execution]:
    while ready:
        yield ready.pop()


def _read(path: Path) -> Iterator[Execution]:
    """A line that another version wrote is worth nothing, and no reason to stop."""
    for number, raw in store.read_lines(path):
        try:
            yield store.decode(Execution, raw, where=f"{path}:{number}")
        except Exception:
            continue
