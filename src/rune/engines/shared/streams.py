"""Submitted requests: drawn in turns by engines that only know lists, waited for in the caller's thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from rune.errors import EngineError
from rune.types import Completion, Delta, Engine, Listener, Request, Ticket, TokenLogprob


def stream(engine: Engine, request: Request) -> Iterator[Delta]:
    """Submit a request and yield its deltas, those of all draws mixed, until each has ended.

    Raises what the engine raises. A consumer that stops early cancels the request.
    """
    heard: queue.SimpleQueue[Delta | Exception] = queue.SimpleQueue()
    ticket = engine.submit(request, heard.put)
    unfinished = request.n
    try:
        while unfinished:
            what = heard.get()
            if isinstance(what, Exception):
                raise what
            unfinished -= bool(what.finish_reason)
            yield what
    finally:
        if unfinished:
            ticket.cancel()


def gather(engine: Engine, requests: Sequence[Request]) -> Iterator[Completion]:
    """`complete` by way of `submit`: every draw of every request as it finishes. Raises what the engine raises."""
    heard: queue.SimpleQueue[tuple[int, Delta | Exception]] = queue.SimpleQueue()
    tickets: list[Ticket] = []
    unfinished = sum(request.n for request in requests)
    parts: dict[tuple[int, int], list[Delta]] = {}
    try:
        for index, request in enumerate(requests):
            tickets.append(engine.submit(request, _to(heard, index)))
        while unfinished:
            index, what = heard.get()
            if isinstance(what, Exception):
                raise what
            deltas = parts.setdefault((index, what.draw), [])
            deltas.append(what)
            if what.finish_reason:
                unfinished -= 1
                yield joined(requests[index].key, parts.pop((index, what.draw)))
    finally:
        if unfinished:
            for ticket in tickets:
                with suppress(EngineError):  # it has stopped, and said so
                    ticket.cancel()


def joined(key: str, deltas: Sequence[Delta]) -> Completion:
    """All deltas of one draw, the last one among them, as its completion."""
    last = deltas[-1]
    found: tuple[TokenLogprob, ...] = tuple(one for delta in deltas for one in delta.logprobs)
    return Completion(
        key=key,
        draw=last.draw,
        seed=last.seed,
        text="".join(delta.text for delta in deltas),
        num_tokens=last.num_tokens,
        finish_reason=last.finish_reason,
        logprobs=found,
    )


def no_logprobs(engine: str, requests: Sequence[Request]) -> None:
    """Raises EngineError where a request asks for what the engine does not report."""
    if any(request.logprobs is not None for request in requests):
        raise EngineError(
            f"the engine '{engine}' reports no log-probabilities; leave them out, or use the engine 'torch'"
        )


def _to(heard: queue.SimpleQueue[tuple[int, Delta | Exception]], index: int) -> Listener:
    return lambda what: heard.put((index, what))


class TurnTicket:
    """A request submitted to `Turns`."""

    def __init__(self, request: Request, listen: Listener) -> None:
        self.request, self.listen = request, listen
        self.over = False
        self.ended: set[int] = set()  # draws that were delivered

    def cancel(self) -> None:
        """See `types.Ticket`. A draw that is with the engine already is drawn to its end, for nobody."""
        self.over = True

    def say(self, what: Delta | Exception) -> None:
        if self.over:
            return
        self.over = isinstance(what, Exception)
        if isinstance(what, Delta):
            self.ended.add(what.draw)
        try:
            self.listen(what)
        except Exception:  # a listener that is gone
            self.over = True


class Turns:
    """Submitted requests for an engine that draws lists: whatever has come meanwhile is the next list.

    A draw is one delta, when it is finished; a request waits until the list before it is drawn. Where a list fails, its
    requests are drawn one by one, so that each hears of its own fault and of no other's.
    """

    def __init__(self, complete: Callable[[Sequence[Request]], Iterator[Completion]]) -> None:
        self._complete = complete
        self._inbox: queue.SimpleQueue[TurnTicket | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self._closed = False

    def submit(self, request: Request, listen: Listener) -> TurnTicket:
        """Raises EngineError if the engine was closed."""
        ticket = TurnTicket(request, listen)
        with self._guard:
            if self._closed:
                raise EngineError("the engine was closed; build it again")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="rune-engine", daemon=True)
                self._thread.start()
            self._inbox.put(ticket)
        return ticket

    def close(self) -> None:
        """No more turns; what waits hears an EngineError after the list that is being drawn."""
        with self._guard:
            self._closed = True
            thread, self._thread = self._thread, None
            self._inbox.put(None)
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            tickets: list[TurnTicket] = []
            closed = False
            with suppress(queue.Empty):
                while True:
                    ticket = self._inbox.get(block=not tickets and not closed)
                    closed = closed or ticket is None
                    if ticket is not None:
                        tickets.append(ticket)
            if closed:
                for ticket in tickets:
                    ticket.say(EngineError("the engine was closed; build it again"))
                return
            self._turn([ticket for ticket in tickets if not ticket.over])

    def _turn(self, tickets: Sequence[TurnTicket]) -> None:
        if not tickets:
            return
        try:
            self._draw(tickets)
        except Exception as error:
            if len(tickets) == 1:
                tickets[0].say(error)
                return
            for ticket in tickets:
                if not ticket.over and len(ticket.ended) < ticket.request.n:
                    self._turn([ticket])

    def _draw(self, tickets: Sequence[TurnTicket]) -> None:
        requests = [replace(ticket.request, key=str(index)) for index, ticket in enumerate(tickets)]
        for completion in self._complete(requests):
            ticket = tickets[int(completion.key)]
            if completion.draw not in ticket.ended:
                ticket.say(whole(completion))


def whole(completion: Completion) -> Delta:
    """A finished draw as one delta."""
    return Delta(
        draw=completion.draw,
        seed=completion.seed,
        text=completion.text,
        num_tokens=completion.num_tokens,
        finish_reason=completion.finish_reason,
        logprobs=completion.logprobs,
    )
