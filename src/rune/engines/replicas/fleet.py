"""Replicas of an engine in Ray actors: requests handed to them, what they draw heard, dead ones started again.

    send ──router──▶ a replica's actor ──stream──▶ its keeper's thread ──▶ whoever listens
                        │ dies
                        ▼
           a fresh actor; what it had under way goes to the others, or waits for it

Every replica has a thread that keeps it: starts its actor, hears it, and starts another when it dies. A draw that is
begun anew has the same seed and so the same text: its listener is told nothing until the text goes beyond what it has
heard, and if another text comes (in bf16 a batch of another size may round differently) it hears an error instead.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rune import console
from rune.engines.replicas.routing import Router
from rune.engines.replicas.worker import Facts, Message, Wire, Worker, own
from rune.engines.shared.cluster import one_line
from rune.engines.shared.residency import Residency
from rune.errors import EngineError, RuneError
from rune.types import AdapterRef, Delta, Listener, Request

PAUSE_SECONDS = 1.0  # before a replica that did not come up is tried again
START_TRIES = 5  # in a row; then it is given up
END_SECONDS = 30  # that a replica's keeper has to notice that the fleet was closed
THREADS = 8  # of an actor: calls that may be under way at once


class ReplicaLost(EngineError):
    """A request whose replicas died more often than it may be begun anew."""


class Retelling:
    """One draw as its listener knows it. Begun anew, it says nothing until it goes beyond that."""

    def __init__(self) -> None:
        self.text = ""
        self._again: str | None = None

    def anew(self) -> None:
        self._again = "" if self.text else None

    def hear(self, delta: Delta) -> Delta | None:
        """What of a delta is news; None: nothing. Raises EngineError where it is not the text that was told before."""
        if self._again is None:
            self.text += delta.text
            return delta
        self._again += delta.text
        if self._again.startswith(self.text):
            news = replace(delta, text=self._again[len(self.text) :])
            self.text, self._again = self._again, None
            return news if news.text or news.finish_reason else None
        if self.text.startswith(self._again) and not delta.finish_reason:
            return None
        raise EngineError(
            "the replica that drew this answer died, and another one draws another text; what was sent is not to be "
            "continued, ask again"
        )


class Job:
    """A request that was sent. `cancel` as in `types.Ticket`."""

    def __init__(self, fleet: Fleet, request: Request, listen: Listener, folder: Path | None, *, listed: bool) -> None:
        self.request, self.listen, self.folder, self.listed = request, listen, folder, listed
        self.draws = {draw: Retelling() for draw in range(request.n)}  # those that have not ended
        self.deaths = 0
        self.over = False  # nothing more is said
        self._fleet = fleet

    @property
    def adapter_id(self) -> str:
        return self.request.adapter.adapter_id if self.request.adapter else ""

    def cancel(self) -> None:
        self._fleet.cancel([self])

    def say(self, what: Delta | Exception) -> None:
        if self.over:
            return
        self.over = isinstance(what, Exception)
        try:
            self.listen(what)
        except Exception:  # a listener that is gone
            self.cancel()


class Part(NamedTuple):
    """Some draws of a job, in order."""

    job: Job
    draws: tuple[int, ...]


class _Post:
    """Draws of a job in a row, at a replica, under one number."""

    def __init__(self, job: Job, replica: int, draws: range) -> None:
        self.job, self.replica, self.draws = job, replica, draws
        self.left = len(draws)

    def part(self) -> Part:
        """What of it has not ended."""
        return Part(self.job, tuple(draw for draw in self.draws if draw in self.job.draws))


@dataclass
class _Replica:
    """One place of the fleet: an actor, or the next one."""

    number: int
    actor: Any = None  # None: there is none that could be asked
    facts: Facts | None = None
    residency: Residency | None = None
    waiting: int = 0
    starts: int = 0
    gone: str = ""  # why it is not tried again
    settled: threading.Event = field(default_factory=threading.Event)  # it has come up once, or is gone


class Fleet:
    """See the module's docstring."""

    def __init__(
        self,
        count: int,
        engine: Sequence[Any],
        options: Mapping[str, Any],
        *,
        restarts: int,
        slack: int,
        start_seconds: float,
    ) -> None:
        """`engine`: the first arguments of `Worker.load`; `options` of the actors.

        Raises the engine's own error if it cannot be built, EngineError if no replica is there after `start_seconds`.
        """
        self._engine, self._options, self._restarts = engine, options, restarts
        self._router = Router(slack)
        self._guard = threading.RLock()
        self._numbers = itertools.count()
        self._posts: dict[int, _Post] = {}
        self._homeless: list[Part] = []  # no replica is there; or lists of one that died, until one is idle
        self._pins: dict[str, tuple[AdapterRef, Path]] = {}
        self._failure: RuneError | None = None  # of the engine itself
        self._closed = threading.Event()
        self.replicas = [_Replica(number) for number in range(count)]
        self._threads = [
            threading.Thread(target=self._keep, args=(replica,), name=f"rune-replica-{replica.number}", daemon=True)
            for replica in self.replicas
        ]
        for thread in self._threads:
            thread.start()
        try:
            self._await(start_seconds)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------ from any thread

    def send(self, requests: Sequence[tuple[Request, Listener, Path | None]], *, listed: bool = False) -> list[Job]:
        """Hand requests over, `listed` ones to be drawn as lists. Raises EngineError if no replica is left."""
        jobs = [Job(self, request, listen, folder, listed=listed) for request, listen, folder in requests]
        with self._guard:
            if self._closed.is_set():
                raise EngineError("the engine was closed; build it again")
            if self.broken:
                raise EngineError(self._why())
            self._place(Part(job, tuple(job.draws)) for job in jobs)
        return jobs

    def cancel(self, jobs: Sequence[Job]) -> None:
        with self._guard:
            for job in jobs:
                job.over = True
            self._homeless = [part for part in self._homeless if not part.job.over]
            chosen = {id(job) for job in jobs}
            ends = [number for number, post in self._posts.items() if id(post.job) in chosen]
            by_replica: dict[int, list[int]] = {}
            for number in ends:
                post = self._posts.pop(number)
                self._router.end(post.replica, post.job.adapter_id, post.left, over=True)
                by_replica.setdefault(post.replica, []).append(number)
            for replica, numbers in by_replica.items():
                self._call(replica, "cancel", numbers)
            self._settle()  # a replica may have nothing to do now, and so nothing to say

    def pin(self, adapter: AdapterRef, folder: Path) -> None:
        """Resident in every replica, those that are started later too. Raises what the engine raises."""
        import ray

        with self._guard:
            self._pins[adapter.adapter_id] = adapter, folder  # for those that are being loaded
            actors = [self.replicas[number].actor for number in self._router.live]
        try:
            ray.get([actor.pin.remote(adapter, folder) for actor in actors])
        except ray.exceptions.RayTaskError as error:
            self._pins.pop(adapter.adapter_id)
            raise own(error.cause) from None
        except ray.exceptions.RayError:
            pass  # one died: it pins when it is loaded again

    @property
    def live(self) -> int:
        """Replicas that can be asked now."""
        return len(self._router.live)

    @property
    def broken(self) -> bool:
        """Whether no replica is there, nor will be."""
        return all(replica.gone for replica in self.replicas)

    @property
    def waiting(self) -> int:
        """Draws that have not begun."""
        with self._guard:
            return sum(len(part.draws) for part in self._homeless) + sum(r.waiting for r in self.replicas if r.actor)

    @property
    def residency(self) -> Residency | None:
        """Of all replicas together; None if their engine does not say."""
        found = [replica.residency for replica in self.replicas if replica.residency is not None]
        if not found:
            return None
        return Residency(
            places=sum(one.places for one in found),
            resident=tuple(dict.fromkeys(name for one in found for name in one.resident)),
            pinned=frozenset().union(*(one.pinned for one in found)),
            loads=sum(one.loads for one in found),
            evictions=sum(one.evictions for one in found),
            load_seconds=sum(one.load_seconds for one in found),
        )

    def close(self) -> None:
        """End the actors; whoever still listens hears an EngineError."""
        import ray

        self._closed.set()
        with self._guard:
            actors = [replica.actor for replica in self.replicas if replica.actor is not None]
        for actor in actors:
            with contextlib.suppress(Exception):  # it is gone, or Ray is
                ray.kill(actor)
        for thread in self._threads:
            thread.join(END_SECONDS)
        with self._guard:
            jobs = [part.job for part in self._homeless] + [post.job for post in self._posts.values()]
            self._homeless, self._posts = [], {}
        for job in jobs:  # one that is there twice hears it once
            job.say(EngineError("the engine was closed; build it again"))

    # ------------------------------------------------------------------ one replica, in its own thread

    def _keep(self, replica: _Replica) -> None:
        import ray

        failures = 0
        while not self._closed.is_set():
            pins = dict(self._pins)
            try:
                actor = self._start(replica)
                facts = ray.get(actor.load.remote(*self._engine, pins))
            except ray.exceptions.RayTaskError as error:  # the engine's own: another try would end alike
                self._give_up(replica, own(error.cause))
                return
            except Exception as error:  # the actor or its node
                failures += 1
                if self._closed.is_set():
                    return
                if failures == START_TRIES:
                    self._give_up(replica, EngineError(f"a replica did not start {failures} times: {one_line(error)}"))
                    return
                self._closed.wait(PAUSE_SECONDS)
                continue
            failures = 0
            self._joined(replica, facts, pins)
            died: Exception = EngineError("its stream ended")
            try:
                for message in actor.listen.options(num_returns="streaming").remote():
                    self._hear(replica, ray.get(message))
            except Exception as error:
                died = error
            if not self._closed.is_set():
                with contextlib.suppress(Exception):
                    ray.kill(actor)  # one that was only unreachable must not draw on
                self._left(replica, died)

    def _start(self, replica: _Replica) -> Any:
        import ray

        remote: Any = ray.remote(Worker)
        actor = remote.options(
            max_restarts=0, max_concurrency=THREADS, scheduling_strategy="SPREAD", **self._options
        ).remote()
        with self._guard:
            replica.actor, replica.starts = actor, replica.starts + 1
            if self._closed.is_set():
                ray.kill(actor)
        return actor

    def _await(self, seconds: float) -> None:
        """Until every replica has come up or is gone; those that are late join when they can."""
        ends = time.monotonic() + seconds
        for replica in self.replicas:
            replica.settled.wait(max(0.0, ends - time.monotonic()))
        if self._failure is not None:
            raise self._failure
        if self.broken:
            raise EngineError(self._why())
        if not self.live:
            raise EngineError(
                f"no replica came up within {seconds:g} s; `ray status` says what the cluster has free, and "
                "engine.settings.start_seconds how long to wait"
            )
        if self.live < len(self.replicas):
            console.warn(f"{self.live} of {len(self.replicas)} replicas are there; the others join when they can")

    def _joined(self, replica: _Replica, facts: Facts, pins: Mapping[str, Any]) -> None:
        with self._guard:
            replica.facts, replica.residency, replica.waiting = facts, None, 0
            self._router.join(replica.number)
            for name in self._pins.keys() - pins.keys():  # pinned while it was being loaded
                self._call(replica.number, "pin", *self._pins[name])
            homeless, self._homeless = self._homeless, []
            self._place(homeless)
        replica.settled.set()

    def _give_up(self, replica: _Replica, why: RuneError) -> None:
        with self._guard:
            replica.actor, replica.gone = None, str(why)
            if replica.starts == 1:
                self._failure = why
            lost = self._homeless if self.broken else []
            self._homeless = [] if lost else self._homeless
            told = self._why() if self.broken else ""
        replica.settled.set()
        if not self.broken:
            console.warn(f"replica {replica.number} is given up: {why}")
        for part in lost:
            part.job.say(EngineError(told))

    def _left(self, replica: _Replica, error: Exception) -> None:
        """Its actor has died: what it had under way goes elsewhere, or ends."""
        lost: dict[int, Job] = {}
        again: list[Part] = []
        with self._guard:
            replica.actor, replica.residency = None, None
            self._router.leave(replica.number)
            numbers = [number for number, post in self._posts.items() if post.replica == replica.number]
            parts = [self._posts.pop(number).part() for number in numbers]
            for job in {id(part.job): part.job for part in parts}.values():
                job.deaths += 1
            for part in parts:
                job = part.job
                begun = any(job.draws[draw].text for draw in part.draws)
                if job.deaths > self._restarts or (begun and job.request.logprobs is not None):
                    lost[id(job)] = job
                    continue
                for draw in part.draws:
                    job.draws[draw].anew()
                again.append(part)
            self._homeless += [part for part in again if part.job.listed]
            self._place(part for part in again if not part.job.listed)
            self._settle()
        console.warn(
            f"replica {replica.number} died ({one_line(error)}); {len(again)} requests are drawn again, "
            f"{len(lost)} end with an error; it is started again"
        )
        for job in lost.values():
            job.say(ReplicaLost(f"the replica that drew this died ({one_line(error)}); ask again"))
            job.cancel()  # its other parts

    def _hear(self, replica: _Replica, message: Message) -> None:
        told: list[tuple[Job, Delta | Exception]] = []
        ended: list[int] = []
        with self._guard:
            replica.residency, replica.waiting = message.residency, message.waiting
            if message.residency is not None:
                self._router.report(replica.number, message.residency.resident)
            for number, what in message.events:
                post = self._posts.get(number)
                if post is None:
                    continue  # cancelled
                news = self._news(post, what)
                if isinstance(news, Exception) or not post.left:
                    del self._posts[number]
                    ended.append(number)
                if isinstance(news, Exception):
                    self._router.end(post.replica, post.job.adapter_id, post.left, over=True)
                if news is not None:
                    told.append((post.job, news))
            self._settle()
            if ended:
                self._call(replica.number, "forget", ended)
        for job, news in told:
            job.say(news)
            if isinstance(news, Exception):
                job.cancel()  # its other parts

    def _news(self, post: _Post, what: Delta | Exception) -> Delta | Exception | None:
        if isinstance(what, Exception):
            return what
        draw = post.draws[what.draw]
        try:
            news = post.job.draws[draw].hear(replace(what, draw=draw))
        except EngineError as error:
            return error
        if what.finish_reason:
            del post.job.draws[draw]
            post.left -= 1
            self._router.end(post.replica, post.job.adapter_id, 1, over=not post.left)
        return news

    # ------------------------------------------------------------------ with the guard held

    def _place(self, parts: Iterable[Part]) -> None:
        """Each to the replica that the router chooses; where there is none, they wait."""
        wires: dict[tuple[int, bool], list[Wire]] = {}
        for part in parts:
            job = part.job
            if not self._router.live:
                self._homeless.append(part)
                continue
            for draws in _runs(part.draws):
                number = self._router.choose(job.adapter_id, len(draws))
                name = next(self._numbers)
                self._posts[name] = _Post(job, number, draws)
                request = replace(job.request, seed=job.request.seed + draws.start, n=len(draws))
                if job.listed:
                    request = replace(request, key=str(name))
                wires.setdefault((number, job.listed), []).append(Wire(name, request, job.folder))
        for (number, listed), some in wires.items():
            self._call(number, "draw" if listed else "submit", some)

    def _settle(self) -> None:
        """Lists that lost their replica are drawn by the first one that has nothing else to do."""
        if self._homeless and any(self._router.idle(number) for number in self._router.live):
            homeless, self._homeless = self._homeless, []
            self._place(homeless)

    def _call(self, number: int, method: str, *arguments: Any) -> None:
        actor = self.replicas[number].actor
        if actor is not None:
            with contextlib.suppress(Exception):  # it is dying, and its keeper will hear of it
                getattr(actor, method).remote(*arguments)

    def _why(self) -> str:
        return f"no replica is left: {next(replica.gone for replica in self.replicas)}; start again"


def _runs(draws: Sequence[int]) -> list[range]:
    """Draws in a row are asked for together: draw i of a request has seed + i."""
    found: list[range] = []
    for draw in draws:
        if found and found[-1].stop == draw:
            found[-1] = range(found[-1].start, draw + 1)
        else:
            found.append(range(draw, draw + 1))
    return found
