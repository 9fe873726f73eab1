"""The decoding loop kept running in a thread of its own: requests enter and leave while others are drawn.

    submit ──inbox──▶ pending, in order of arrival
                        │  its adapter is resident, or takes the place of one that no row wears; while it is read
                        │  from the disk the others are drawn
                        ▼
                      the decoder's waiting rows ──turn──▶ deltas to whoever listens

One thread owns the decoder and the adapters; others speak to it through the inbox. First come, first served: a request
whose adapter finds no place holds up those behind it, so that none waits for ever. What a request's rows may reach is
fixed when the session begins (`window` tokens a row). What prompts begin with is kept for others, block by block
(`prefixes.py`).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import torch

from rune.engines.local.batch import Row
from rune.engines.local.decode import Decoder, out_of_memory
from rune.engines.local.text import Detokenizer, Unfolding
from rune.errors import EngineError, RuneError
from rune.types import AdapterRef, Delta, Listener, TokenLogprob

T = TypeVar("T")


class Adapters(Protocol):
    """What the session asks of the engine's resident adapters."""

    def ready(self, adapter: AdapterRef) -> bool:
        """Whether `place` would not wait for the disk."""

    def place(self, adapter: AdapterRef, in_use: Collection[str | None]) -> bool:
        """Make one resident; False: every place is taken by one that is in use. Raises AdapterError."""


class _Draw:
    """One row of a request on its way to a listener."""

    def __init__(self, row: Row, ticket: SessionTicket, detokenizer: Detokenizer) -> None:
        self.row, self.ticket = row, ticket
        self._detokenizer = detokenizer
        self._unfolding = Unfolding(detokenizer, row.request.sampling.stop)
        self._taken = 0  # tokens that the unfolding has
        self._told = 0  # tokens whose probabilities were delivered

    def delta(self, ends: frozenset[int]) -> Delta | None:
        """What is new; None if nothing can be shown yet, or the row started over and has not caught up."""
        row = self.row
        if not row.done and len(row.tokens) <= self._taken:
            return None
        fresh = [token for token in row.tokens[self._taken :] if token not in ends]
        shown = self._unfolding.push(fresh, last=row.done)
        self._taken = max(self._taken, len(row.tokens))
        if not shown.text and not row.done:
            return None
        reports = logprobs(row, self._detokenizer, self._told, shown.tokens)
        self._told = max(self._told, shown.tokens)
        return Delta(
            draw=row.draw,
            seed=row.seed,
            text=shown.text,
            num_tokens=len(row.tokens),
            finish_reason=row.finish if row.done else "",
            logprobs=reports,
        )


def logprobs(row: Row, detokenizer: Detokenizer, first: int, last: int) -> tuple[TokenLogprob, ...]:
    """Reports of the row's tokens `first` … `last` − 1, if its request asks for them."""
    most = row.request.logprobs
    if most is None:
        return ()
    pairs = zip(row.tokens[first:last], row.reports[first:last], strict=True)
    return tuple(
        TokenLogprob(
            token=detokenizer.name_of(token),
            logprob=report.logprob,
            top=tuple((detokenizer.name_of(other), value) for other, value in report.top[:most]),
        )
        for token, report in pairs
    )


class SessionTicket:
    """A submitted request."""

    def __init__(self, session: Session, rows: Sequence[Row], adapter: AdapterRef | None, listen: Listener) -> None:
        self.rows, self.adapter, self.listen = tuple(rows), adapter, listen
        self.over = False  # nothing more is said to the listener
        self._session = session

    def cancel(self) -> None:
        """See `types.Ticket`."""
        self.over = True
        self._session.leave(self)


class Session:
    """See the module's docstring."""

    def __init__(
        self,
        decoder: Decoder,
        adapters: Adapters,
        detokenizer: Detokenizer,
        *,
        window: int,
        rows: int,
        max_adapters: int,
        blocks: int = 0,
    ) -> None:
        """`rows` of `window` tokens at most are drawn at once, under `max_adapters` adapters at most.

        `blocks`: see `Decoder.open`.
        """
        self._decoder, self._adapters, self._detokenizer = decoder, adapters, detokenizer
        self._window, self._rows, self._max_adapters, self._blocks = window, rows, max_adapters, blocks
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pending: deque[SessionTicket] = deque()
        self._draws: dict[int, _Draw] = {}  # by the row's identity, of the rows that the decoder has
        self._broken: Exception | None = None
        self._ending = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="rune-engine", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------ from any thread

    def submit(self, rows: Sequence[Row], adapter: AdapterRef | None, listen: Listener) -> SessionTicket:
        """Raises EngineError if the session has ended."""
        ticket = SessionTicket(self, rows, adapter, listen)
        self._post(lambda: self._pending.append(ticket))
        return ticket

    def leave(self, ticket: SessionTicket) -> None:
        """Its rows end as soon as they can."""
        self._inbox.put(lambda: self._leave(ticket))

    def call(self, work: Callable[[], T]) -> T:
        """Run something in the session's thread, between two turns; its result or its exception."""
        future: Future[T] = Future()

        def done() -> None:
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._post(done)
        return future.result()

    @property
    def broken(self) -> bool:
        return self._broken is not None

    @property
    def in_use(self) -> set[str | None]:
        """Adapters that rows wear, None the base; for the session's own thread."""
        return {draw.row.adapter_id for draw in self._draws.values()}

    @property
    def waiting(self) -> int:
        """Draws that have not begun."""
        return sum(len(ticket.rows) for ticket in list(self._pending)) + len(self._decoder.waiting)

    def close(self) -> None:
        """End the thread; whoever still listens hears an EngineError."""
        self._inbox.put(None)
        self._thread.join()

    def _post(self, work: Callable[[], None]) -> None:
        with self._ending:  # what is in the inbox before the session breaks is answered
            if self._broken is not None:
                raise EngineError(f"the engine has stopped: {_first_line(self._broken)}; start it again")
            self._inbox.put(work)

    # ------------------------------------------------------------------ in its own thread

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._read_inbox():
                    self._serve()
            self._stop(EngineError("it was closed"))
        except Exception as error:  # a fault of the device or of ours: nobody may wait for ever
            self._stop(error)

    def _read_inbox(self) -> bool:
        """Do what others asked for; waits where there is nothing to decode. False: it is time to end."""
        busy = self._decoder.busy or self._pending
        try:
            while True:
                work = self._inbox.get(block=not busy)
                if work is None:
                    return False
                work()
                busy = True
        except queue.Empty:
            return True

    def _serve(self) -> None:
        self._admit()
        if not self._decoder.busy:
            return
        try:
            moved = self._decoder.turn()
        except EngineError as error:  # not even one row fits: those that were under way hear it, and it goes on
            self._fail(error)
            return
        for row in moved:
            self._tell(row)
        if not self._decoder.busy and not self._pending:
            self._decoder.rest()

    def _admit(self) -> None:
        """Requests in order, as long as the decoder has use for more rows and their adapters find a place."""
        while self._pending:
            ticket = self._pending[0]
            if ticket.over:
                self._pending.popleft()
                continue
            if not self._decoder.busy and not self._draws:
                self._decoder.open(
                    self._rows,
                    length=self._window,
                    steps=self._window,
                    adapters=min(self._max_adapters, self._rows),
                    blocks=self._blocks,
                )
            if len(self._decoder.waiting) >= self._rows:
                return
            if ticket.adapter is not None and self._decoder.busy and not self._adapters.ready(ticket.adapter):
                return  # it is being read while the others are drawn
            try:
                if ticket.adapter is not None and not self._adapters.place(ticket.adapter, self.in_use):
                    return
            except (RuneError, RuntimeError, MemoryError) as error:
                if not isinstance(error, RuneError) and not out_of_memory(error):
                    raise
                self._pending.popleft()
                self._say(ticket, error if isinstance(error, RuneError) else EngineError(_first_line(error)))
                continue
            self._pending.popleft()
            for row in ticket.rows:
                self._draws[id(row)] = _Draw(row, ticket, self._detokenizer)
            self._decoder.waiting.extend(ticket.rows)

    def _tell(self, row: Row) -> None:
        draw = self._draws.get(id(row))
        if draw is None:
            return
        if row.done:
            del self._draws[id(row)]
        delta = draw.delta(self._decoder.ends)
        if delta is not None:
            self._say(draw.ticket, delta)

    def _say(self, ticket: SessionTicket, what: Delta | Exception) -> None:
        if ticket.over:
            return
        if isinstance(what, Exception):
            ticket.over = True
        try:
            ticket.listen(what)
        except Exception:  # a listener that is gone; its draws have no use
            ticket.over = True
            self._leave(ticket)

    def _leave(self, ticket: SessionTicket) -> None:
        unfinished = [row for row in ticket.rows if self._draws.pop(id(row), None) is not None]
        self._decoder.drop(unfinished)
        if ticket in self._pending:
            self._pending.remove(ticket)
        if not self._draws and not self._pending:
            self._decoder.rest()

    def _fail(self, error: Exception) -> None:
        """All that is under way ends with this error."""
        tickets = {id(draw.ticket): draw.ticket for draw in self._draws.values()}
        self._draws.clear()
        self._decoder.rest()
        for ticket in tickets.values():
            self._say(ticket, error)

    def _stop(self, error: Exception) -> None:
        with self._ending:
            self._broken = error
        told = error if isinstance(error, RuneError) else EngineError(f"the engine has stopped: {_first_line(error)}")
        self._fail(told)
        while True:  # what came meanwhile
            while self._pending:
                self._say(self._pending.popleft(), told)
            try:
                work: Any = self._inbox.get_nowait()
            except queue.Empty:
                return
            if work is not None:
                work()


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
