"""A memory that somebody else serves: sessions are handed to a running `rune serve`, which has the model loaded.

What is sent was read and redacted here, and travels in Rune's own format. The API key is $RUNE_KEY, if the server has
keys.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from rune.adapters.registry.records import place
from rune.adapters.registry.registry import default_folder
from rune.errors import ConfigError, EngineError
from rune.runs import store
from rune.serving import memory as memories
from rune.serving.refusals import Refusal
from rune.types import Trajectory

KEY = "RUNE_KEY"  # environment variable
SECONDS = 300.0  # of silence
_OF_THE_SESSION = {"no_trajectory", "too_large", "adapter_refused", "adapter_exists"}  # codes of errors
_PASSING = {408, 425, 429}


class Away(EngineError):
    """The server cannot be reached, or has no room now; it may later."""


class Told(NamedTuple):
    """An adapter that the server made."""

    id: str
    new: bool
    where: str  # project/domain/task
    rank: int
    delta_w_norm: float
    trajectories: tuple[str, ...]  # ids
    notes: tuple[str, ...]  # what was redacted and left out
    seconds: float


class ServedMemory:
    """A place in the memory of a server."""

    def __init__(self, url: str, *, project: str = "", domain: str = "", task: str = "", alias: str = "") -> None:
        """Asks the server who it is. Raises ConfigError for what cannot be meant, and Away."""
        place(project or memories.DEFAULT_PROJECT, domain or None, task or None)
        try:
            memories.check_alias(alias)
        except Refusal as refusal:
            raise ConfigError(str(refusal)) from None
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"--server {url}: give an address, such as http://127.0.0.1:8000")
        named = {"project": project, "domain": domain, "task": task, "alias": alias}
        self._where = {name: value for name, value in named.items() if value}
        key = os.environ.get(KEY, "")
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"${KEY} is no API key: it has characters that none has; `rune keys add` prints one")
        try:
            self._http = httpx.Client(
                base_url=self.url, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=SECONDS
            )
        except httpx.InvalidURL as error:
            raise ConfigError(f"--server {url!r}: {error}; give an address, such as http://127.0.0.1:8000") from None
        models = self._call("GET", "/v1/models")
        try:
            self._base = {name: str(models["data"][0][name]) for name in ("id", "digest", "hypernet")}
        except (KeyError, IndexError, TypeError):
            raise ConfigError(f"{self.url} is no `rune serve`, or one of another version: it names no model") from None
        if not self._base["hypernet"]:
            raise ConfigError(f"{self.url} has no hypernetwork to learn with; start it with --checkpoint DIR")

    def close(self) -> None:
        self._http.close()

    @property
    def folder(self) -> Path:
        """Of this machine: where what was done for the server is written down."""
        return default_folder()

    @property
    def identity(self) -> Sequence[object]:
        return [self.url, self._base, self._where]

    def learn(self, data: bytes, *, name: str) -> Told:
        """As `AdapterMemory.learn`. Raises Refusal for a fault of the session; Away, or ConfigError, for any other."""
        found, notes = memories.read(data, name)
        return self.learn_from(found.trajectories, notes=notes)

    def learn_from(self, trajectories: Sequence[Trajectory], *, notes: Sequence[str] = ()) -> Told:
        """The same from trajectories that were read and redacted."""
        body = "".join(f"{store.encode(trajectory)}\n" for trajectory in trajectories)
        made = self._call("POST", "/v1/trajectories", params=self._where, content=body.encode())
        try:
            levels = (made["project"], made["domain"], made["task"])
            return Told(
                id=made["id"],
                new=made["new"],
                where="/".join(level for level in levels if level),
                rank=made["rank"],
                delta_w_norm=made["delta_w_norm"],
                trajectories=tuple(made["trajectories"]),
                notes=tuple(notes),
                seconds=made["seconds"],
            )
        except (KeyError, TypeError):
            raise ConfigError(f"{self.url} answers with something else than an adapter") from None

    def retire(self, adapter: str) -> None:
        """Take an adapter out of service, if it still is in it."""
        self._call("DELETE", f"/v1/adapters/{adapter}", absent=True)

    def _call(self, method: str, path: str, *, absent: bool = False, **how: Any) -> Any:
        try:
            answer = self._http.request(method, path, **how)
        except httpx.HTTPError as error:
            words = " ".join(str(error).split()) or type(error).__name__
            raise Away(f"{self.url}: no answer ({words}); is `rune serve` running there?") from None
        if answer.is_success:
            try:
                return answer.json() | ({"new": answer.status_code == 201} if method == "POST" else {})
            except (ValueError, TypeError):
                raise ConfigError(f"{self.url}{path} does not answer in JSON; is it a `rune serve`?") from None
        if absent and answer.status_code == 404:
            return None
        try:
            told = answer.json()["error"]
            words, code = " ".join(str(told["message"]).split())[:500], told["code"]
        except (ValueError, KeyError, TypeError):
            words, code = f"HTTP {answer.status_code}", None
        if code in _OF_THE_SESSION:
            raise Refusal(answer.status_code, words)
        if answer.status_code in _PASSING or answer.status_code >= 500:
            raise Away(f"{self.url}: {words}")
        hint = f"; its key is read from ${KEY}" if answer.status_code == 401 else ""
        raise ConfigError(f"{self.url}: {words}{hint}")
