"""From an adapter's id to its PEFT folder. Loads no torch.

An id is the sha256 of the weights file, so a folder that is found holds the adapter that was asked for, wherever it
was moved to; one whose weights were changed is found no more.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from rune.adapters.layout import WEIGHTS_FILE
from rune.errors import AdapterError
from rune.runs.store import sha256_file
from rune.types import AdapterRef

_EARLIER = 32  # digits of an id in records of before the weights file's own sha256 named an adapter


class AdapterSource(Protocol):
    """Where an engine finds the adapters that requests name."""

    def folder(self, ref: AdapterRef) -> Path:
        """Its PEFT folder. Raises AdapterError if it is not there, or not what its id says."""


class _State(NamedTuple):
    """Of a weights file: another one under the same name has another."""

    changed: int
    size: int
    number: int


class Folders:
    """An `AdapterSource`: all PEFT folders at any depth below some roots."""

    def __init__(self, *roots: Path) -> None:
        """Roots are looked through in this order, when an adapter is asked for; one may not be there yet."""
        self._roots = list(roots)
        self._seen: dict[Path, tuple[_State, str]] = {}  # folder → its weights file as it was, its id
        self._known: dict[str, Path] = {}  # id → folder

    def first(self, root: Path) -> None:
        """Look here before anywhere else."""
        self._roots = [root, *(other for other in self._roots if other != root)]

    def know(self, adapter_id: str, folder: Path) -> None:
        """Spare the search for an adapter that was just written, or found by another process."""
        state = _state(folder)
        if state is not None:
            self._seen[folder], self._known[adapter_id] = (state, adapter_id), folder

    def folder(self, ref: AdapterRef) -> Path:
        """Raises AdapterError if no folder holds this adapter."""
        wanted = ref.adapter_id
        known = self._known.get(wanted)
        if known is not None and self._is(known, wanted):
            return known
        for root in self._roots:
            for weights in sorted(root.rglob(WEIGHTS_FILE)):
                if self._is(weights.parent, wanted):
                    self._known[wanted] = weights.parent
                    return weights.parent
        where = ", ".join(str(root) for root in self._roots) or "none was named"
        raise AdapterError(
            f"unknown adapter {wanted}: it was not handed over as tensors, and no folder holds these weights "
            f"(looked below: {where}); make it again with `rune adapt`"
        )

    def _is(self, folder: Path, wanted: str) -> bool:
        state = _state(folder)
        if state is None:
            return False
        before, found = self._seen.get(folder, (None, ""))
        if before != state:
            found = sha256_file(folder / WEIGHTS_FILE)
            self._seen[folder] = state, found
        return found == wanted or (len(wanted) == _EARLIER and _earlier(folder) == wanted)


def _state(folder: Path) -> _State | None:
    try:
        found = (folder / WEIGHTS_FILE).stat()
    except OSError:
        return None
    return _State(found.st_mtime_ns, found.st_size, found.st_ino)


def _earlier(folder: Path) -> str:
    """The id that an earlier rune gave to what is in a folder; "" if it cannot be read."""
    from rune.adapters import peft

    try:
        return peft.earlier_id(peft.read_peft(folder))
    except AdapterError:
        return ""
