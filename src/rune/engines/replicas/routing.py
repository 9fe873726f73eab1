"""Which replica draws a request: one that holds its adapter, unless that one is clearly busier than the idlest.

Reading an adapter into a device costs a few milliseconds and a place that another one leaves; a queue costs more. So an
adapter stays where it is until its replica is ahead of the idlest by more than `slack` draws; then the idlest gets a
copy, and the two share what comes next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

REMEMBERED = 1024  # adapters that a replica is thought to hold, where its engine does not say


class _Load:
    """What one replica has to do, and what it is thought to hold."""

    def __init__(self) -> None:
        self.draws = 0
        self.sent: OrderedDict[str, None] = OrderedDict()  # adapters by last use; the device may have let some go
        self.under_way: dict[str, int] = {}  # adapter → requests
        self.reported: frozenset[str] | None = None  # what the engine said it holds

    def holds(self, adapter_id: str) -> bool:
        if adapter_id in self.under_way or self.reported is None:
            return adapter_id in self.sent
        return adapter_id in self.reported


class Router:
    """Requests under way on each live replica. Not for several threads at once."""

    def __init__(self, slack: int) -> None:
        self.slack = slack
        self._loads: dict[int, _Load] = {}

    @property
    def live(self) -> list[int]:
        return sorted(self._loads)

    def join(self, number: int) -> None:
        """A replica is there, with nothing to do and no adapter."""
        self._loads[number] = _Load()

    def leave(self, number: int) -> None:
        self._loads.pop(number, None)

    def choose(self, adapter_id: str, draws: int) -> int:
        """The replica for a request, which is counted as under way there; one must be live.

        `adapter_id` "": the base model, which every replica holds.
        """
        idlest = min(self._loads, key=lambda number: (self._loads[number].draws, number))
        holders = [number for number, load in self._loads.items() if load.holds(adapter_id)] if adapter_id else []
        chosen = min(holders, key=lambda number: (self._loads[number].draws, number), default=idlest)
        if self._loads[chosen].draws > self._loads[idlest].draws + self.slack:
            chosen = idlest
        self.begin(chosen, adapter_id, draws)
        return chosen

    def begin(self, number: int, adapter_id: str, draws: int) -> None:
        load = self._loads[number]
        load.draws += draws
        if adapter_id:
            load.under_way[adapter_id] = load.under_way.get(adapter_id, 0) + 1
            load.sent[adapter_id] = None
            load.sent.move_to_end(adapter_id)
            while len(load.sent) > REMEMBERED:
                load.sent.popitem(last=False)

    def end(self, number: int, adapter_id: str, draws: int, *, over: bool) -> None:
        """`draws` of a request have ended; `over`: they were the last. Nothing if the replica has left."""
        load = self._loads.get(number)
        if load is None:
            return
        load.draws -= draws
        if over and adapter_id in load.under_way:
            load.under_way[adapter_id] -= 1
            if not load.under_way[adapter_id]:
                del load.under_way[adapter_id]

    def report(self, number: int, resident: Iterable[str]) -> None:
        """What a replica's device holds now, where its engine says so."""
        if number in self._loads:
            self._loads[number].reported = frozenset(resident)

    def idle(self, number: int) -> bool:
        return number in self._loads and not self._loads[number].draws
