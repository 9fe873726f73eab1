"""The adapters that a server has, as its clients may see them: by name, by place, learned from trajectories.

Everything here is done for a client and looks at that client's projects only; what is somebody else's is not there.
An adapter that is made here is kept under its project (`intake.prepare(owner=…)`), so two clients with the same
trajectory have two adapters, and neither learns of the other's. Nothing of a trajectory is run.
"""

from __future__ import annotations

import gzip
import io
import os
import tempfile
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rune.adapters.registry import intake, operations
from rune.adapters.registry.records import Entry, MadeFrom, Place, Status, place
from rune.adapters.registry.registry import Registry, View
from rune.adapters.registry.selection import select
from rune.corpus import reading
from rune.corpus.redact import Redactor
from rune.errors import AdapterError, ConfigError, ContaminationError, DataError, RuneError
from rune.models import registry as names
from rune.runs import store
from rune.serving.keys import Client
from rune.serving.refusals import Refusal, no_model
from rune.serving.settings import NO_HYPERNET
from rune.types import AdapterRef, ModelRef, Trajectory

if TYPE_CHECKING:
    from rune.adapters.peft import Adapter
    from rune.hypernet.export import AdapterGenerator, Made

REFS = 4096  # verified adapters whose records are kept
DEFAULT_PROJECT = "default"


class Learned(NamedTuple):
    """An adapter made from trajectories."""

    entry: Entry
    new: bool  # False: the same was there already
    trajectories: tuple[str, ...]  # ids
    notes: tuple[str, ...]  # what was redacted and left out
    seconds: float

    @property
    def id(self) -> str:
        return self.entry.id


class AdapterMemory:
    """See the module's docstring. Safe to call from several threads."""

    def __init__(
        self,
        registry: Registry,
        model: ModelRef,
        generator: AdapterGenerator | None,
        *,
        strength: float = 1.0,
        keep: Path | None = None,
        most_bytes: int = 16 << 20,
    ) -> None:
        """`keep`: folder for redacted trajectories. `most_bytes`: of what a gzip file of trajectories unpacks to."""
        self.registry, self.model = registry, model
        self._generator, self._strength, self._keep, self._most_bytes = generator, strength, keep, most_bytes
        self.hypernet = generator.digest if generator else ""  # sha256 of its weights
        self._making = threading.Lock()  # one pass at a time: it has all the cores that it can use
        self._refs: OrderedDict[str, AdapterRef] = OrderedDict()
        self._refs_guard = threading.Lock()

    # ------------------------------------------------------------------ look

    def named(self, name: str, client: Client) -> Entry:
        """The active adapter of this name. Raises Refusal: 404 if this model has none, 400 if two are meant."""
        # Aliases are kept as project/alias: whoever may see all projects may leave any of them out.
        found = self.registry.named(name, self.registry.projects() if client.projects is None else client.projects)
        if len(found) > 1:
            raise Refusal(
                400,
                "several adapters are called so; name one by project/alias or by more of its id",
                code="ambiguous_model",
                param="model",
            )
        if not found or found[0].status is not Status.ACTIVE or found[0].base != self.model.digest:
            raise no_model(name)
        return found[0]

    def chosen(self, where: Place, client: Client) -> Entry:
        """The adapter that serves a place: the most specific level that has one. Raises Refusal: 404 if none has."""
        nothing = Refusal(
            404,
            f"no adapter for {where} or above it; GET /v1/adapters lists those that are yours, and a request without "
            "project is answered by the base model",
            code="adapter_not_found",
            param="metadata",
        )
        if client.projects is not None and where.project not in client.projects:
            # Looked for all the same, so that an answer takes as long as for a place with nothing in it.
            nowhere = Place(project=f"\0{where.project}", domain=where.domain, task=where.task)
            select(self.registry, nowhere, base=self.model.digest)
            raise nothing
        found = select(self.registry, where, base=self.model.digest).chosen
        if found is None:
            raise nothing
        return found

    def listed(self, client: Client, *, project: str = "", after: int = 0, limit: int = 100) -> list[Entry]:
        """A page of the client's active adapters for this model, in the order in which they came."""
        return self.registry.page(self._view(client, project), after=after, limit=limit)

    def count(self, client: Client, *, project: str = "") -> int:
        return self.registry.count(self._view(client, project))

    def parents(self, entry: Entry, client: Client) -> list[str]:
        """Ids of the adapters that one was made from, as far as the client may see them."""
        edges = self.registry.lineage(entry.id).ancestors
        found = [self.registry.get(edge.parent) for edge in edges if edge.child == entry.id]
        return [one.id for one in found if client.projects is None or one.place.project in client.projects]

    def aliases(self, entries: Sequence[Entry]) -> dict[str, list[str]]:
        """Id → its aliases as clients of its project write them: without the project in front."""
        projects = {entry.id: entry.place.project for entry in entries}
        found: dict[str, list[str]] = {}
        for digest, name in self.registry.aliases_of(projects):
            found.setdefault(digest, []).append(name.removeprefix(f"{projects[digest]}/"))
        return found

    def ref(self, found: Entry) -> AdapterRef:
        """An adapter as engines take it; its bytes are verified when it is first asked for. Raises AdapterError."""
        with self._refs_guard:
            if found.id in self._refs:
                self._refs.move_to_end(found.id)
                return self._refs[found.id]
        ref = self.registry.ref(found, base=self.model.digest)
        with self._refs_guard:
            self._refs[found.id] = ref
            while len(self._refs) > REFS:
                self._refs.popitem(last=False)
        return ref

    def place_asked(self, project: str | None, domain: str | None, task: str | None, client: Client) -> Place:
        """The place that a request names. Raises Refusal: 400 if it is none; whose it is, `chosen` looks at."""
        if not project and client.projects is not None and len(client.projects) == 1:
            project = client.projects[0]
        try:
            return place(project or DEFAULT_PROJECT, domain or None, task or None)
        except ConfigError as error:
            raise Refusal(400, str(error).replace("--", ""), param="metadata") from None

    def place_for(self, client: Client, project: str | None, domain: str | None, task: str | None) -> Place:
        """Where a client's adapter goes. Raises Refusal: 400 for a name that is none, 403 for a project not its own."""
        projects = client.projects
        if not project:
            if projects is not None and len(projects) != 1:
                raise Refusal(
                    400, f"your key is for {len(projects)} projects; say which: project=NAME", param="project"
                )
            project = projects[0] if projects else DEFAULT_PROJECT
        if projects is not None and project not in projects:
            raise Refusal(403, "your key is not for this project", code="not_your_project", param="project")
        try:
            where = place(project, domain or None, task or None)
        except ConfigError as error:
            raise Refusal(400, str(error).replace("--", ""), param="project") from None
        if any(len(part) > 200 for part in (where.project, where.domain, where.task)):
            raise Refusal(400, "project, domain and task may have 200 characters each", param="project")
        return where

    # ------------------------------------------------------------------ in

    @property
    def learns(self) -> bool:
        """Whether there is a hypernetwork."""
        return self._generator is not None

    def learn(self, data: bytes, where: Place, *, name: str = "session", alias: str = "") -> Learned:
        """One adapter from a file of trajectories in any known format, registered. `name`: of a session without one.

        Raises Refusal: 400 for what is no trajectory, 409 if the same adapter is kept at another place of the project.
        """
        self._can_learn()
        found, notes = read(data, name, most=self._most_bytes)
        return self.learn_from(found.trajectories, where, alias=alias, notes=notes)

    def learn_from(
        self, trajectories: Sequence[Trajectory], where: Place, *, alias: str = "", notes: Sequence[str] = ()
    ) -> Learned:
        """The same from trajectories that were read, redacted and checked. Raises Refusal as `learn` does."""
        started = time.perf_counter()
        self._can_learn()
        ids = tuple(trajectory.trajectory_id for trajectory in trajectories)
        with self._making:
            adapter, made_from = self._make(trajectories)
        hub_id, revision = names.hub_name(self.model.name)
        entry, new = self._enter(
            adapter, where, made_from, base_name=hub_id, base_revision=revision, alias=alias, trajectories=trajectories
        )
        return Learned(entry, new, ids, tuple(notes), time.perf_counter() - started)

    def load(self, folder: Path, where: Place, *, alias: str = "") -> Entry:
        """A PEFT folder of the server's own disk, registered. Raises Refusal: 400 for a folder that is refused."""
        from rune.adapters import peft

        try:
            adapter = peft.read_peft(folder)
            if adapter.base_model not in ("", self.model.digest):
                raise AdapterError(f"{folder}: made for another base model than {self.model.name}")
        except AdapterError as error:
            raise Refusal(400, str(error), code="adapter_refused", param="lora_path") from None
        adapter = peft.Adapter(pairs=adapter.pairs, scale=adapter.scale, base_model=self.model.digest)
        entry, _ = self._enter(adapter, where, MadeFrom(how="imported"), alias=alias)
        return entry

    def archive(self, found: Entry, *, reason: str = "DELETE") -> None:
        """Take an adapter out of service. It is kept, and comes back when it is learned or loaded again."""
        operations.forget(self.registry, [found], reason=reason)
        with self._refs_guard:
            self._refs.pop(found.id, None)

    # ------------------------------------------------------------------ inside

    def _view(self, client: Client, project: str) -> View:
        return View(project=project, base=self.model.digest, projects=client.projects)

    def _can_learn(self) -> None:
        if self._generator is None:
            raise Refusal(404, "there is no hypernetwork here: it takes --checkpoint DIR", code="no_hypernetwork")

    def _make(self, trajectories: Sequence[Trajectory]) -> Made:
        from rune.hypernet import export

        assert self._generator is not None
        try:
            return export.adapter_from(self._generator, trajectories, strength=self._strength)
        except DataError as error:  # a kind that reads solutions, and there is none
            raise Refusal(400, str(error), code="no_trajectory") from None

    def _enter(
        self,
        adapter: Adapter,
        where: Place,
        made_from: MadeFrom,
        *,
        base_name: str = "",
        base_revision: str = "",
        alias: str = "",
        trajectories: Sequence[Trajectory] = (),
    ) -> tuple[Entry, bool]:
        check_alias(alias)
        try:
            ready = intake.prepare(
                adapter,
                where,
                made_from,
                base_name=base_name,
                base_revision=base_revision,
                max_rank=self.registry.max_rank,
                owner=where.project,
            )
        except AdapterError as error:
            raise Refusal(400, str(error).replace("--", ""), code="adapter_refused") from None
        if self._keep is not None and trajectories:  # before the entry: whoever finds that finds them too
            store.write_jsonl(self._keep / f"{ready.draft.id}.jsonl", trajectories)
        full = f"{where.project}/{alias}" if alias else ""
        try:
            entry, new = self.registry.insert(ready.draft, ready.config, ready.weights, alias=full)
        except (AdapterError, DataError) as error:
            raise Refusal(409, str(error).replace("--", ""), code="adapter_exists") from None
        if entry.status is not Status.ACTIVE:
            operations.restore(self.registry, [entry], reason="learned or loaded again")
            entry = self.registry.get(entry.id)
        return entry, new


def read(data: bytes, name: str, *, most: int = 16 << 20) -> tuple[reading.Imported, tuple[str, ...]]:
    """A file of trajectories in any known format, plain or gzip: read, redacted, checked; and what to say of that.

    `name`: of a session without one. `most`: bytes that a gzip file may unpack to. Raises Refusal: 400, 413.
    """
    plain = _unpacked(data, most)
    # In memory, under a name that readers can open: what is not redacted yet never touches the disk, and a server
    # that is killed leaves a link to nothing.
    with (
        tempfile.TemporaryDirectory(prefix="rune-upload-") as folder,
        os.fdopen(os.memfd_create("trajectory"), "wb", buffering=0) as held,
    ):
        held.write(plain)
        path = Path(folder) / f"{name}.jsonl"
        path.symlink_to(f"/proc/self/fd/{held.fileno()}")
        try:
            found = reading.read_all([path])
            found.check_exclusion([])
        except (DataError, ContaminationError) as error:
            raise Refusal(400, _clean(str(error), path), code="no_trajectory") from None
        return found, tuple(_clean(words, path) for words in found.words())


def check_alias(alias: str) -> None:
    """Raises Refusal for a name that no request could use."""
    if alias and (len(alias) > 200 or not alias.isprintable() or any(c.isspace() or c in "/:" for c in alias)):
        raise Refusal(400, "an alias is one word without '/' and ':', of at most 200 characters", param="alias")


def _clean(text: str, path: Path) -> str:
    """A reader's message as one short line; it may quote names out of the file, so secrets are taken out of it."""
    line = " ".join(Redactor()(text.replace(str(path), path.stem)).split())
    return line if len(line) <= 500 else f"{line[:499]}…"


def _unpacked(data: bytes, most: int) -> bytes:
    """A body as it is, or unpacked if it is gzip: no further than `most` bytes."""
    if data[:2] != b"\x1f\x8b":
        return data
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            plain = file.read(most + 1)
    except (OSError, EOFError, zlib.error):
        raise Refusal(400, "a damaged gzip file; send it again, or unpacked", code="no_trajectory") from None
    if len(plain) > most:
        raise Refusal(413, f"the gzip file unpacks to more than {most} bytes; send less", code="too_large")
    return plain


def opened(
    folder: Path, model: ModelRef, checkpoint: Path | None, *, device: str
) -> tuple[Registry, AdapterGenerator | None]:
    """The registry, made if it is not there, and the hypernetwork. Raises RuneError in one line."""
    registry = Registry(folder, create=True)
    if checkpoint is None:
        return registry, None
    from rune.hypernet import export

    try:
        return registry, export.outside(checkpoint, model, device=device)
    except RuneError as error:
        raise ConfigError(f"{error}; {NO_HYPERNET}") from None
