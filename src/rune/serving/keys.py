"""API keys: who asks, and which projects they may see. Only the sha256 of a key is kept.

A key is "rune-<id>-<secret>" with 256 random bits in the secret, so that one plain hash is enough: there is nothing to
guess. The file is replaced in one step and readable by its owner alone; a server reads it again when it has changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune import console
from rune.errors import ConfigError, DataError
from rune.runs import store

_FORM = re.compile(r"rune-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_NOBODY = hashlib.sha256(b"nobody").hexdigest()
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who a request comes from. `projects` None: whoever runs the server, who may see and do everything."""

    name: str
    projects: tuple[str, ...] | None
    key: str = ""  # the id of its key: a name may be given again, to somebody else


OWNER = Client(name="", projects=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One line of the file."""

    id: str
    sha256: str
    name: str
    projects: tuple[str, ...]  # () with admin
    admin: bool
    created: str  # UTC

    @property
    def client(self) -> Client:
        return Client(name=self.name, projects=None if self.admin else self.projects, key=self.id)


class Keys:
    """The keys of a file, which need not be there: then there are none. Reads it again whenever it has changed."""

    def __init__(self, path: Path) -> None:
        """Raises DataError for a file that is not ours."""
        self.path = path
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}
        self._refresh()

    @property
    def required(self) -> bool:
        """Whether a request needs a key: from the moment that the file is there, and if it goes away again still."""
        self._refresh()
        return self._stamp is not None

    def find(self, token: str) -> Client | None:
        """Whose key this is. Takes as long for one that is nobody's."""
        self._refresh()
        form = _FORM.fullmatch(token)
        key = self._keys.get(form[1]) if form else None
        given = hashlib.sha256(token.encode()).hexdigest()
        same = hmac.compare_digest(given, key.sha256 if key else _NOBODY)
        return key.client if key and same else None

    def _refresh(self) -> None:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            self._keys = {}  # opens no door: see `required`
            return
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp == self._stamp:
            return
        first, self._stamp, self._keys = self._stamp is None, stamp, {}
        try:
            self._keys = {key.id: key for key in read(self.path)}
        except DataError as error:
            if first:
                raise
            console.warn(f"{error}; until then no key is accepted")


def read(path: Path) -> list[Key]:
    """All keys of a file, none if it is not there. Raises DataError."""
    if not path.is_file():
        return []
    raw = store.read_json(path)
    try:
        if raw["version"] != VERSION:
            raise ValueError(f"version {raw['version']}")
        return [_key(one) for one in raw["keys"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a file of API keys ({error!r}); write it with `rune keys add`") from None


def _key(raw: Any) -> Key:
    return Key(
        id=str(raw["id"]),
        sha256=str(raw["sha256"]),
        name=str(raw["name"]),
        projects=tuple(map(str, raw["projects"])),
        admin=bool(raw["admin"]),
        created=str(raw["created"]),
    )


def add(path: Path, name: str, projects: Sequence[str], *, admin: bool = False) -> str:
    """A new key; returns its text, which is kept nowhere. Raises ConfigError for a name that is taken or no name."""
    if not name.strip() or not name.isprintable():
        raise ConfigError(f"the key's name is {name!r}; give it a name, such as the team's")
    if admin == bool(projects):
        raise ConfigError("a key is for --project NAME (repeatable) or for --admin: give one of them")
    for project in projects:
        if not project.strip() or not project.isprintable():
            raise ConfigError(f"the project is {project!r}; give it a name")
    with _changing(path) as keys:
        if any(key.name == name for key in keys):
            raise ConfigError(f"{path}: there is a key named '{name}'; revoke it first: `rune keys revoke {name}`")
        number, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        token = f"rune-{number}-{secret}"
        keys.append(
            Key(
                id=number,
                sha256=hashlib.sha256(token.encode()).hexdigest(),
                name=name,
                projects=tuple(dict.fromkeys(projects)),
                admin=admin,
                created=store.now(),
            )
        )
    return token


def revoke(path: Path, name: str) -> None:
    """Take a key away; a running server refuses it from its next request on. Raises ConfigError if there is none."""
    with _changing(path) as keys:
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            names = ", ".join(key.name for key in keys) or "none"
            raise ConfigError(f"{path}: no key named '{name}'; there are: {names}")
        keys[:] = kept


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[list[Key]]:
    """The keys, to be changed by one process at a time; written in one step if the body does not raise."""
    with store.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.with_name(f".{path.name}.lock").open("w", encoding="utf-8")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        keys = read(path)
        yield keys
        before = os.umask(0o077)
        try:
            store.write_json(path, {"version": VERSION, "keys": keys})
        finally:
            os.umask(before)
