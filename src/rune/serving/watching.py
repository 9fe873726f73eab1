"""Learning from sessions as an agent writes them: what `rune watch FOLDER` does.

A file is taken when it has not changed for a while, or when its last line is one with which its agent ends a session.
A session that goes on after that is learned again, and the adapter of its shorter self is archived. What was done with
each file stands in a ledger beside the adapters, written after the adapter was registered: a watcher that is killed
goes on where it was. In between it may learn one session again, which gives the same adapter and no second one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rune import config
from rune.adapters.registry.records import Place
from rune.corpus import files
from rune.errors import ConfigError, DataError
from rune.runs import store
from rune.serving.keys import OWNER
from rune.serving.memory import AdapterMemory, Learned
from rune.serving.refusals import Refusal

ENDING_LINES = {"cost-state", "result"}  # Claude Code: on its way out; `--output-format stream-json`
ENDING_EVENTS = {"task_complete", "turn_aborted"}  # Codex; a session may go on after them
TAIL = 1 << 20  # bytes of a file in which its last line is looked for
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A line of the ledger: what became of a file."""

    path: str  # below the folder
    sha256: str  # of what was read
    adapter: str  # id; "": none
    why: str  # why there is none
    time: str  # UTC


class _State(NamedTuple):
    """A file as it was found."""

    stamp: tuple[int, int]  # time of the last change in ns, size in bytes
    since: float  # when it was first found so, on this process's clock
    ended: bool


class Made(Protocol):
    """An adapter made from a session, here or by a server."""

    @property
    def id(self) -> str: ...

    @property
    def notes(self) -> Sequence[str]:
        """What was redacted and left out."""


class Learner(Protocol):
    """A memory, and where in it adapters go: this process's (`Here`), or a server's (`remote.ServedMemory`)."""

    @property
    def folder(self) -> Path:
        """What was done is written down below it; no session is looked for in it."""

    @property
    def identity(self) -> Sequence[object]:
        """What that is good for: the same sessions would make other adapters elsewhere."""

    def learn(self, data: bytes, *, name: str) -> Made:
        """Raises Refusal for a fault of the session, another RuneError for any other."""

    def retire(self, adapter: str) -> None:
        """Archive an adapter, unless that was done by hand."""


class Here:
    """The memory of this process."""

    def __init__(self, memory: AdapterMemory, where: Place, *, alias: str = "") -> None:
        """`alias` always names the newest adapter."""
        self._memory, self._where, self._alias = memory, where, alias

    @property
    def folder(self) -> Path:
        return self._memory.registry.folder

    @property
    def identity(self) -> Sequence[object]:
        return [self._where, self._memory.model.digest, self._memory.hypernet]

    def learn(self, data: bytes, *, name: str) -> Learned:
        return self._memory.learn(data, self._where, name=name, alias=self._alias)

    def retire(self, adapter: str) -> None:
        try:
            found = self._memory.named(adapter, OWNER)
        except Refusal:  # taken out of service by hand
            return
        self._memory.archive(found, reason="its session went on")


class Taken(NamedTuple):
    """A file that was looked at now."""

    path: Path
    made: Made | None  # None: nothing was learned
    why: str


class Ledger:
    """What was done with the files of one folder. One process at a time; whole after a kill."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if another process has it."""
        with store.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._held = path.with_suffix(".lock").open("w", encoding="utf-8")
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._held.close()
            raise ConfigError("another `rune watch` looks after this folder already; stop it first") from None
        self._file = store.Appender(path)  # cuts off what a kill has torn
        self._by_path = {one.path: one for one in store.read_jsonl(path, Done)}
        self._by_content = {one.sha256: one for one in self._by_path.values()}

    def of(self, path: str) -> Done | None:
        """What was last done with a file."""
        return self._by_path.get(path)

    def like(self, sha256: str) -> Done | None:
        """What was done with a file of the same content."""
        return self._by_content.get(sha256)

    def write(self, done: Done) -> None:
        self._file.write(done)
        self._by_path[done.path] = self._by_content[done.sha256] = done

    def in_use(self, adapter: str) -> bool:
        """Whether a file's last state made this adapter."""
        return any(one.adapter == adapter for one in self._by_path.values())

    def close(self) -> None:
        self._file.close()
        self._held.close()


class Watcher:
    """Takes the sessions of a folder, each once; `poll` looks through it."""

    def __init__(self, folder: Path, learner: Learner, *, still_seconds: float = 300.0) -> None:
        """Raises ConfigError for a folder that is not there or watched."""
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; give the one that the agent writes its sessions to")
        if not still_seconds >= 0:
            raise ConfigError(f"--still is {still_seconds:g}; give seconds, 0 or more")
        self.folder, self.learner, self.still_seconds = folder, learner, still_seconds
        self._own = learner.folder.resolve()
        name = config.digest([str(folder.resolve()), *learner.identity])[:16]
        self.ledger = Ledger(learner.folder / "watched" / f"{name}.jsonl")
        self._found: dict[Path, _State] = {}
        self._judged: dict[Path, tuple[int, int]] = {}  # file → the stamp that it had when it was looked at

    def close(self) -> None:
        self.ledger.close()

    def poll(self) -> Iterator[Taken]:
        """Take every session that is ready, the oldest first. Raises RuneError for what is no fault of a file."""
        for _, path, stamp in sorted(self._ready()):
            try:
                data = path.read_bytes()
                if _stamp(path) != stamp:
                    continue  # it goes on
            except OSError as error:
                self._judged[path] = stamp
                yield Taken(path, None, f"cannot read it: {error.strerror or error}")
                continue
            found = self._take(path, data)
            self._judged[path] = stamp
            if found is not None:
                yield found

    def _ready(self) -> Iterator[tuple[int, Path, tuple[int, int]]]:
        """(time of the last change, file, stamp) of what is still or has ended, and was not looked at as it is."""
        now, moment = time.time(), time.monotonic()
        inside = self._own.is_relative_to(self.folder.resolve())  # the ledger is no session
        for path in self.folder.rglob("*"):
            if not path.name.removesuffix(".gz").endswith(files.SUFFIXES):
                continue
            if inside and path.resolve().is_relative_to(self._own):
                continue
            try:
                stamp = _stamp(path)
            except OSError:  # gone, or not a file
                continue
            if self._judged.get(path) == stamp:
                continue
            state = self._found.get(path)
            if state is None or state.stamp != stamp:
                state = self._found[path] = _State(stamp, moment, ended(path))
            # Its own time may lie in the future, on a clock that was set back: then what was seen here counts.
            still = max(now - stamp[0] / 1e9, moment - state.since)
            if state.ended or still >= self.still_seconds:
                yield stamp[0], path, stamp

    def _take(self, path: Path, data: bytes) -> Taken | None:
        """Learn from a file, unless it was done as it is."""
        name, digest = str(path.relative_to(self.folder)), hashlib.sha256(data).hexdigest()
        before = self.ledger.of(name)
        if before is not None and before.sha256 == digest:
            return None
        made: Made | None = None
        adapter = why = ""
        like = self.ledger.like(digest)
        if like is not None:  # copied or moved
            adapter, why = like.adapter, like.why
        else:
            stem = _NOT_IN_NAMES.sub("-", path.name.removesuffix(".gz").partition(".")[0])[:100]
            try:
                made = self.learner.learn(data, name=stem or "session")
                adapter = made.id
            except Refusal as refusal:
                why = str(refusal)
        self.ledger.write(Done(path=name, sha256=digest, adapter=adapter, why=why, time=store.now()))
        if before is not None and before.adapter and not self.ledger.in_use(before.adapter):
            self.learner.retire(before.adapter)
        return Taken(path, made, why) if like is None else None


def _stamp(path: Path) -> tuple[int, int]:
    """(time of the last change in ns, size in bytes). Raises OSError for what is no file."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    return found.st_mtime_ns, found.st_size


def ended(path: Path) -> bool:
    """Whether a file ends as its agent ends a session: Claude Code, Codex, and agents that write an exit status.

    What cannot be read or is torn has not ended.
    """
    if path.suffix == ".gz":
        return True  # nobody packs a session that goes on
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - TAIL))
                *_, last = file.read().rstrip().split(b"\n")
            return _ends(files.parse(last.decode("utf-8")))
        value = files.parse(files.read_text(path))
    except (OSError, ValueError, DataError):
        return False
    info = value.get("info") if isinstance(value, dict) else None
    return isinstance(info, dict) and bool(info.get("exit_status"))


def _ends(line: Any) -> bool:
    if not isinstance(line, dict):
        return False
    kind, payload = line.get("type"), line.get("payload")
    if kind == "event_msg" and isinstance(payload, dict):
        return payload.get("type") in ENDING_EVENTS
    return kind in ENDING_LINES
