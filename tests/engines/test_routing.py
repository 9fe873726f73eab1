"""Who draws a request, and how a draw goes on that was begun anew: without Ray."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Iterator

import pytest

from rune.engines.replicas import fleet, routing
from rune.engines.replicas.routing import Router
from rune.engines.replicas.worker import Facts, Wire, Worker
from rune.errors import EngineError
from rune.types import Completion, Delta, Request, Sampling
from tests.engines.engine_helpers import World, torch_engine
from tests.engines.test_session import until


def router(count: int, *, slack: int = 4) -> Router:
    found = Router(slack)
    for number in range(count):
        found.join(number)
    return found


def test_a_cold_adapter_goes_to_the_idlest_and_stays_there() -> None:
    two = router(2)
    assert [two.choose(name, 1) for name in ("a", "b", "a", "b", "a")] == [0, 1, 0, 1, 0]


def test_a_replica_that_is_clearly_busier_shares_its_adapter_and_both_keep_it() -> None:
    two = router(2, slack=4)
    assert [two.choose("a", 1) for _ in range(5)] == [0] * 5
    assert two.choose("a", 1) == 1  # 5 draws ahead: one more than slack
    assert [two.choose("a", 1) for _ in range(4)] == [1] * 4  # both hold it: the one with less to do
    for _ in range(5):
        two.end(1, "a", 1, over=True)
    assert two.choose("a", 1) == 1


def test_slack_counts_draws_not_requests() -> None:
    two = router(2, slack=4)
    assert [two.choose("a", n) for n in (5, 1)] == [0, 1]
    two = router(2, slack=5)
    assert [two.choose("a", n) for n in (5, 1)] == [0, 0]


def test_the_base_model_goes_to_the_idlest() -> None:
    three = router(3)
    assert [three.choose("", 2) for _ in range(4)] == [0, 1, 2, 0]


def test_what_a_device_let_go_is_cold_again_unless_a_request_for_it_is_under_way() -> None:
    two = router(2)
    assert two.choose("a", 1) == 0
    two.report(0, [])  # from before the request arrived there
    two.begin(0, "", 1)
    assert two.choose("a", 1) == 0
    for _ in range(2):
        two.end(0, "a", 1, over=True)
    assert two.choose("a", 1) == 1  # nobody holds it, and 1 is the idlest


def test_a_replica_that_left_gets_nothing_and_one_that_joins_again_holds_nothing() -> None:
    two = router(2)
    assert two.choose("a", 1) == 0
    two.leave(0)
    assert two.live == [1] and [two.choose("a", 1) for _ in range(9)] == [1] * 9
    two.end(0, "a", 1, over=True)  # of a request that died with it
    two.join(0)
    assert two.idle(0) and not two.idle(1)
    assert two.choose("b", 1) == 0 and two.choose("a", 1) == 0  # 1 is 9 ahead


def test_an_engine_that_does_not_say_what_it_holds_is_thought_to_hold_the_last_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routing, "REMEMBERED", 2)
    two = router(2, slack=0)
    for name in "abc":
        two.begin(0, name, 1)
        two.end(0, name, 1, over=True)
    two.begin(0, "", 0)
    two.begin(1, "a", 0)
    assert two._loads[0].holds("c") and two._loads[0].holds("b") and not two._loads[0].holds("a")


def test_no_replica_is_ever_ahead_of_another_by_more_than_slack_and_a_request() -> None:
    rng = random.Random(1)
    four = router(4, slack=6)
    under_way: list[tuple[int, str, int]] = []
    for _ in range(3000):
        name, draws = rng.choice(["", *(f"a{int(rng.paretovariate(1))}" for _ in range(3))]), rng.randint(1, 4)
        under_way.append((four.choose(name, draws), name, draws))
        loads = [load.draws for load in four._loads.values()]
        chosen = under_way[-1][0]
        assert four._loads[chosen].draws - draws <= min(loads) + 6
        if len(under_way) > 40:
            number, name, draws = under_way.pop(rng.randrange(len(under_way)))
            four.end(number, name, draws, over=True)


def delta(text: str, finish: str = "") -> Delta:
    return Delta(draw=0, seed=1, text=text, num_tokens=len(text), finish_reason=finish)


def test_a_draw_begun_anew_is_silent_until_it_goes_on() -> None:
    told = fleet.Retelling()
    assert [told.hear(delta(text)) for text in ("ab", "c")] == [delta("ab"), delta("c")]
    told.anew()
    assert told.hear(delta("a")) is None and told.hear(delta("bc")) is None
    news = told.hear(delta("cd"[1:]))
    assert news is not None and news.text == "d"
    assert told.hear(delta("e", "stop")) == delta("e", "stop")


def test_an_end_that_was_not_heard_comes_when_the_text_is_told_again() -> None:
    told = fleet.Retelling()
    told.hear(delta("abc"))
    told.anew()
    news = told.hear(delta("abc", "stop"))
    assert news is not None and (news.text, news.finish_reason) == ("", "stop")


def test_a_draw_that_had_said_nothing_begins_as_if_nothing_had_been() -> None:
    told = fleet.Retelling()
    told.anew()
    assert told.hear(delta("xyz")) == delta("xyz")


@pytest.mark.parametrize("again", [("abX",), ("ab", "X"), ("abXdef",)])
def test_another_text_than_before_is_an_error_and_is_not_told(again: tuple[str, ...]) -> None:
    told = fleet.Retelling()
    told.hear(delta("abc"))
    told.anew()
    with pytest.raises(EngineError, match="ask again"):
        for text in again:
            assert told.hear(delta(text)) is None


def test_a_text_that_ends_before_what_was_told_is_an_error() -> None:
    told = fleet.Retelling()
    told.hear(delta("abc"))
    told.anew()
    with pytest.raises(EngineError, match="ask again"):
        told.hear(delta("ab", "stop"))


def test_missing_draws_are_asked_for_in_runs() -> None:
    assert fleet._runs([0, 1, 2]) == [range(3)]
    assert fleet._runs([0, 2, 3, 6]) == [range(1), range(2, 4), range(6, 7)]


@pytest.mark.parametrize("order", ["submit, cancel", "cancel, submit"])
def test_a_replica_remembers_nothing_of_a_request_that_was_cancelled(world: World, order: str) -> None:
    """The two calls may overtake each other."""
    worker = Worker()
    worker.engine = torch_engine(world, max_rows=1)
    worker.engine.decoder.ends = frozenset()
    request = Request(key="k", prompt="x", sampling=Sampling(temperature=1.0, max_new_tokens=3000), seed=0)
    calls = {"submit": lambda: worker.submit([Wire(1, request, None)]), "cancel": lambda: worker.cancel([1])}
    for call in order.split(", "):
        calls[call]()
    until(lambda: not worker.engine.decoder.busy and not worker.engine.waiting)
    assert not worker._tickets and not worker._cancelled
    worker.engine.close()


class Slow:
    """An engine whose lists end a while after their last draw."""

    def __init__(self) -> None:
        self.drawing = False

    def complete(self, requests: list[Request]) -> Iterator[Completion]:
        self.drawing = True
        try:
            for request in requests:
                for draw in range(request.n):
                    yield Completion(key=request.key, draw=draw, seed=0, text="", num_tokens=1, finish_reason="stop")
            time.sleep(0.05)
        finally:
            self.drawing = False


def test_who_hears_the_last_draw_of_a_list_may_submit_at_once() -> None:
    worker = Worker()
    worker.engine = engine = Slow()
    threading.Thread(target=worker._draw_lists, daemon=True).start()
    request = Request(key="1", prompt="x", sampling=Sampling(temperature=1.0, max_new_tokens=8), seed=0, n=3)
    worker.draw([Wire(1, request, None), Wire(2, dataclasses.replace(request, key="2", n=1), None)])
    heard = [worker._events.get(timeout=60)[0] for _ in range(3)]
    assert engine.drawing and heard == [1, 1, 1]
    assert worker._events.get(timeout=60)[0] == 2
    assert not engine.drawing


class Deaf(fleet.Fleet):
    """Two replicas that are there, and draw nothing; what they are told is written down."""

    told: list[tuple[int, str]]

    def _keep(self, replica: fleet._Replica) -> None:
        self._joined(replica, Facts(reports_logprobs=False, window=None), {})

    def _call(self, number: int, method: str, *arguments: object) -> None:
        self.told = [*getattr(self, "told", []), (number, method)]


def test_a_list_that_lost_its_replica_goes_on_where_the_last_request_was_given_up() -> None:
    """The other replica has nothing to do then, and so nothing to say that the list could begin after."""
    two = Deaf(2, (), {}, restarts=3, slack=4, start_seconds=60)
    request = Request(key="k", prompt="x", sampling=Sampling(temperature=1.0, max_new_tokens=8), seed=0)
    (listed,) = two.send([(request, print, None)], listed=True)
    (other,) = two.send([(request, print, None)])
    assert two.told == [(0, "draw"), (1, "submit")]
    two._left(two.replicas[0], EngineError("gone"))
    assert two.told[2:] == [] and two.waiting == 1
    other.cancel()
    assert (1, "draw") in two.told and two.waiting == 0
    listed.cancel()
    two.close()
