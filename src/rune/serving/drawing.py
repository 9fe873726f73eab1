"""From the server's event loop to an engine and back: admission, deltas, time, and clients that hang up."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from rune.errors import AdapterError, RuneError
from rune.serving.keys import Client
from rune.serving.refusals import Refusal
from rune.types import Delta, Engine, Request, Ticket

SHORTEST_RETRY, LONGEST_RETRY = 1, 60  # seconds

Heard = asyncio.Queue[tuple[int, Delta | Exception]]  # (number of the request, what its draws have gained)


class Admission:
    """How much may be under way at once, of all clients together and of each."""

    def __init__(self, most: int, most_each: int, what: str) -> None:
        """`what` is counted: "draws"; `most_each` 0: no limit of its own."""
        self._most, self._most_each, self._what = most, most_each or most, what
        self._each: Counter[str] = Counter()
        self._seconds = 1.0  # of a request, a running mean: how long to wait before another try
        self.under_way = 0

    @contextlib.contextmanager
    def enter(self, client: Client, count: int) -> Iterator[None]:
        """Hold `count` places. Raises Refusal: 400 if they are more than there are, 429 if they are not free."""
        if count > min(self._most, self._most_each):
            raise Refusal(
                400, f"{count} {self._what} in one request, at most {min(self._most, self._most_each)} may be"
            )
        full = self.under_way + count > self._most
        if full or self._each[client.name] + count > self._most_each:
            whose = "the server is" if full else "your key has all that it may have"
            raise Refusal(
                429,
                f"{whose} busy; try again in {self.retry_after} s",
                code="rate_limit_exceeded",
                retry_after=self.retry_after,
            )
        self.under_way += count
        self._each[client.name] += count
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds += 0.1 * (time.monotonic() - started - self._seconds)
            self.under_way -= count
            self._each[client.name] -= count
            if not self._each[client.name]:
                del self._each[client.name]

    @property
    def retry_after(self) -> int:
        return max(SHORTEST_RETRY, min(LONGEST_RETRY, math.ceil(self._seconds)))


class Post:
    """What an engine's thread has to say, brought to the event loop in one go however many draws it is about.

    Waking a loop costs a system call, at which the thread also hands on the interpreter; an engine that has drawn a
    token of each of its rows would do so for each row.
    """

    def __init__(self) -> None:
        self._said: deque[tuple[Heard, int, Delta | Exception]] = deque()
        self._woken = False

    def put(self, loop: asyncio.AbstractEventLoop, heard: Heard, index: int, what: Delta | Exception) -> None:
        """From any thread. All that goes through one post belongs to one loop."""
        self._said.append((heard, index, what))
        if not self._woken:
            self._woken = True
            loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False  # first: what is said from now on wakes the loop again
        for _ in range(len(self._said)):
            heard, index, what = self._said.popleft()
            heard.put_nowait((index, what))


class _Late(Exception):
    """The time that a request may take is over."""


class Drawing:
    """Requests under way in an engine: `streams.stream` for an event loop, for several at once."""

    def __init__(self, heard: Heard, requests: Sequence[Request]) -> None:
        self._heard = heard
        self._tickets: list[Ticket] = []
        self._unfinished = sum(request.n for request in requests)

    @classmethod
    async def start(cls, engine: Engine, requests: Sequence[Request], post: Post) -> Drawing:
        """Submit all of them. Raises Refusal: 409 for an adapter that cannot be used, 503 for an engine that fails."""
        loop = asyncio.get_running_loop()
        heard: Heard = asyncio.Queue()
        drawing = cls(heard, requests)

        def submit() -> None:
            for index, request in enumerate(requests):
                drawing._tickets.append(engine.submit(request, lambda what, index=index: hear(index, what)))  # type: ignore[misc]

        def hear(index: int, what: Delta | Exception) -> None:
            post.put(loop, heard, index, what)

        submitting = loop.run_in_executor(None, submit)  # it tokenises
        try:
            await asyncio.shield(submitting)
        except asyncio.CancelledError:
            submitting.add_done_callback(lambda _: drawing.close())
            raise
        except RuneError as error:
            drawing.close()
            raise refused(error) from None
        return drawing

    async def deltas(self, seconds: float) -> AsyncIterator[tuple[int, Delta]]:
        """(number of the request, delta) until all draws have ended. Raises Refusal: 408 after `seconds`."""
        # One timer for all of them: waiting for each delta with a limit of its own takes a task a delta.
        late = asyncio.get_running_loop().call_later(max(0.0, seconds), self._heard.put_nowait, (0, _Late()))
        try:
            while self._unfinished:
                index, what = await self._heard.get()
                if isinstance(what, _Late):
                    raise Refusal(408, f"no answer within {seconds:g} s; ask for fewer tokens or draws", code="timeout")
                if isinstance(what, Exception):
                    raise refused(what)
                self._unfinished -= bool(what.finish_reason)
                yield index, what
        finally:
            late.cancel()

    def close(self) -> None:
        """Nobody listens any more: what is not finished is cancelled."""
        if self._unfinished:
            self._unfinished = 0
            for ticket in self._tickets:
                with contextlib.suppress(RuneError):  # an engine that has stopped
                    ticket.cancel()


def refused(error: Exception) -> Refusal:
    """An engine's error as an answer."""
    if isinstance(error, AdapterError):
        return Refusal(409, str(error), code="adapter_unusable", param="model")
    if isinstance(error, RuneError):
        return Refusal(503, str(error), code="engine_failed", retry_after=LONGEST_RETRY)
    return Refusal(503, f"the engine failed ({type(error).__name__})", code="engine_failed", retry_after=LONGEST_RETRY)


class HungUp(Exception):
    """The client is gone; there is nobody to answer."""


async def unless_gone(receive: Any, work: Any) -> Any:
    """The result of a coroutine, unless the client hangs up first. Raises HungUp; the work is then cancelled."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise HungUp
    finally:
        for task in (working, watching):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def gone(receive: Any) -> None:
    """Returns when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
