"""What runs in a Ray actor: one inner engine. Requests come in by short calls, what is drawn leaves by one stream."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rune import config as settings
from rune import plugins
from rune.adapters.folders import Folders
from rune.engines.shared.residency import Residency
from rune.engines.shared.streams import whole
from rune.errors import EngineError, RuneError
from rune.types import AdapterRef, Delta, Engine, ModelRef, Request, Ticket

GATHER_SECONDS = 0.005  # between two messages, so that a step's deltas travel together


class Wire(NamedTuple):
    """A request on its way to a replica."""

    number: int  # what events about it are named by
    request: Request
    folder: Path | None  # where its adapter was found; None: the base model, or an adapter that was not found


class Facts(NamedTuple):
    """What an engine is, once it is loaded."""

    reports_logprobs: bool
    window: int | None  # tokens of prompt and answer of a submitted request; None: it does not say


class Message(NamedTuple):
    """What has happened since the last one."""

    events: list[tuple[int, Delta | Exception]]  # (number of the wire, what its listener hears)
    residency: Residency | None  # None: the engine does not say
    waiting: int  # draws that have not begun


class Worker:
    """See the module's docstring. Its methods are called from several threads at once."""

    def __init__(self) -> None:
        self.engine: Any = None
        self._folders = Folders()
        self._events: queue.SimpleQueue[tuple[int, Delta | Exception]] = queue.SimpleQueue()
        self._lists: queue.SimpleQueue[list[Wire]] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}
        self._cancelled: set[int] = set()

    def load(
        self,
        name: str,
        raw: Mapping[str, Any],
        model: ModelRef,
        device: str,
        dtype: str,
        pins: Mapping[str, tuple[AdapterRef, Path]],
    ) -> Facts:
        """Build the engine. Raises what `build` raises."""
        module = plugins.load("engines", name)
        own = settings.build(module.Config, raw, where="engine.settings")
        engine: Engine = module.build(own, model=model, device=device, dtype=dtype, adapters=self._folders)
        self.engine = engine
        for ref, folder in pins.values():
            self.pin(ref, folder)
        threading.Thread(target=self._draw_lists, name="rune-lists", daemon=True).start()
        window = getattr(engine, "window", None)
        return Facts(bool(getattr(engine, "reports_logprobs", False)), None if window is None else int(window))

    def submit(self, wires: Sequence[Wire]) -> None:
        """Draw each beside what is under way."""
        for wire in wires:
            self._know(wire)
            try:
                ticket = self.engine.submit(wire.request, lambda what, n=wire.number: self._events.put((n, what)))
            except Exception as error:
                self._events.put((wire.number, own(error)))
                continue
            self._tickets[wire.number] = ticket
            if wire.number in self._cancelled:  # the call overtook this one
                self.cancel([wire.number])

    def draw(self, wires: Sequence[Wire]) -> None:
        """Draw them, named by their numbers, as one list after those before it: a draw is one event, when it ends."""
        self._lists.put(list(wires))

    def cancel(self, numbers: Sequence[int]) -> None:
        """Nobody waits for these any more."""
        for number in numbers:
            self._cancelled.add(number)
            if ticket := self._tickets.pop(number, None):
                self._cancelled.discard(number)
                ticket.cancel()

    def forget(self, numbers: Sequence[int]) -> None:
        """These have ended."""
        for number in numbers:
            self._tickets.pop(number, None)
            self._cancelled.discard(number)

    def pin(self, adapter: AdapterRef, folder: Path) -> None:
        """See the inner engine's `pin_adapter`. Raises what it raises."""
        self._folders.know(adapter.adapter_id, folder)
        self.engine.pin_adapter(adapter)

    def listen(self) -> Iterator[Message]:
        """All events, in order, for as long as the actor lives."""
        while True:
            events = [self._events.get()]
            time.sleep(GATHER_SECONDS)
            while True:
                try:
                    events.append(self._events.get_nowait())
                except queue.Empty:
                    break
            residency = getattr(self.engine, "residency", None)
            yield Message(events, residency, int(getattr(self.engine, "waiting", 0)))

    def _draw_lists(self) -> None:
        while True:
            wires = self._lists.get()
            left = {wire.number: wire.request.n for wire in wires if wire.number not in self._cancelled}
            last: tuple[int, Delta] | None = None  # told when the list has ended: whoever hears it may submit at once
            try:
                for wire in wires:
                    self._know(wire)
                wanted = [wire.request for wire in wires if wire.number in left]
                with contextlib.closing(self.engine.complete(wanted)) as drawn:
                    for completion in drawn:
                        number = int(completion.key)
                        left[number] -= 1
                        last = (number, whole(completion))
                        if any(left.values()):
                            self._events.put(last)
                        if not left.keys() - self._cancelled:
                            break
            except Exception as error:
                for number in [number for number, draws in left.items() if draws]:
                    self._events.put((number, own(error)))
            if last is not None and not any(left.values()):
                self._events.put(last)
            self._cancelled.difference_update(wire.number for wire in wires)

    def _know(self, wire: Wire) -> None:
        if wire.folder is not None and wire.request.adapter is not None:
            self._folders.know(wire.request.adapter.adapter_id, wire.folder)


def own(error: Exception) -> RuneError:
    """The error that the inner engine raised, as it raised it; anything else becomes an EngineError."""
    if isinstance(error, RuneError):
        return type(error)(str(error))
    said = (str(error) or "no message").splitlines()[0]
    return EngineError(f"an engine in a Ray actor failed: {type(error).__name__}: {said}")
