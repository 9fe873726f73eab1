"""Random schedules of a session: whatever it keeps, evicts, gives up or lacks room for, answers are those had alone.

Whole distributions are drawn from, or the best token: where `top_k` cuts a flat distribution, the last bits of a sum
say which token is the last one in.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rune.adapters import peft
from rune.engines.local.torch_engine import TorchEngine
from rune.engines.shared.streams import joined
from rune.types import AdapterRef, Completion, Delta, Request, Sampling, Ticket
from tests.engines.engine_helpers import World, random_adapter, torch_engine
from tests.engines.test_paging import spent
from tests.engines.test_session import until

WINDOW = 192  # tokens
RANKS = (2, 2, 2, 4, 8)


class Heard:
    """What one request was told; it may hang up after so many deltas."""

    def __init__(self, engine: TorchEngine, request: Request, hangs_up_after: int | None) -> None:
        self.engine, self.request, self.hangs_up_after = engine, request, hangs_up_after
        self.spent = 0  # bytes on the device, at most
        self.deltas: list[Delta] = []
        self.errors: list[Exception] = []
        self.ticket: Ticket | None = None

    def __call__(self, what: Delta | Exception) -> None:
        self.spent = max(self.spent, sum(spent(self.engine)))
        if isinstance(what, Exception):
            self.errors.append(what)
            return
        self.deltas.append(what)
        if self.hangs_up_after is not None and len(self.deltas) > self.hangs_up_after:
            raise ConnectionError

    @property
    def over(self) -> bool:
        ended = sum(bool(delta.finish_reason) for delta in self.deltas) == self.request.n
        gone = self.hangs_up_after is not None and len(self.deltas) > self.hangs_up_after
        return bool(self.errors) or ended or gone

    @property
    def completions(self) -> list[Completion]:
        """Of the draws that have ended."""
        found = []
        for draw in range(self.request.n):
            deltas = [delta for delta in self.deltas if delta.draw == draw]
            if deltas and deltas[-1].finish_reason:
                found.append(joined(self.request.key, deltas))
        return found


class Schedule(NamedTuple):
    """Requests in the order in which they come, and the settings of the engine that draws them."""

    waves: Sequence[Sequence[tuple[Request, int | None, bool]]]  # …, deltas after which it hangs up, cancelled at once
    settings: dict[str, Any]


def schedule(rng: random.Random, refs: Sequence[AdapterRef]) -> Schedule:
    """Prompts that begin alike, up to a few tokens below the window."""
    stems = ["".join(rng.choice("abcde \n") for _ in range(170)) for _ in range(2)]
    waves = []
    for wave in range(rng.randrange(1, 4)):
        requests = []
        for number in range(rng.randrange(1, 9)):
            most = rng.choice((1, 2, 5, 12))
            prompt = stems[rng.randrange(len(stems))][: rng.randrange(1, 160)]
            if rng.random() < 0.6:
                prompt += "".join(rng.choice("abc \n") for _ in range(rng.randrange(1, 12)))
            sampling = Sampling(temperature=rng.choice((0.0, 1.0)), max_new_tokens=most)
            request = Request(
                key=f"{wave}.{number}",
                prompt=prompt,
                sampling=sampling,
                seed=rng.randrange(5),
                n=rng.choice((1, 1, 2, 5)),
                adapter=rng.choice((None, *refs)),
                logprobs=rng.choice((None, None, 0, 3)),
                salt=rng.choice(("", "", "b")),
            )
            hangs = rng.randrange(4) if rng.random() < 0.2 else None
            requests.append((request, hangs, rng.random() < 0.1))
        waves.append(requests)
    settings: dict[str, Any] = {"max_rows": rng.choice((1, 3, 8, 20)), "window": WINDOW}
    settings["prefill_tokens"] = rng.choice((1, 200, 2048))
    settings["kv_layout"] = rng.choice(("paged", "static"))
    settings["max_adapters"] = rng.choice((1, 2, 20))
    settings["burst"] = rng.choice((1, 1, 3))
    settings["prefix_bytes"] = rng.choice((0, 70_000, 200_000, 1 << 30))
    settings["host_bytes"] = rng.choice((0, 300_000, 1 << 30))
    if rng.random() < 0.5:
        settings["device_bytes"] = rng.choice((2, 3, 8)) << 20
    return Schedule(waves, settings)


def played(engine: TorchEngine, plan: Schedule) -> list[Heard]:
    """Who listened, but those who were gone at once."""
    heard: list[Heard] = []
    for wave in plan.waves:
        came = []
        for request, hangs, cancelled in wave:
            one = Heard(engine, request, hangs)
            one.ticket = engine.submit(request, one)
            if cancelled:
                one.ticket.cancel()
            else:
                came.append(one)
        until(lambda came=came: all(one.over for one in came))
        heard += came
    until(lambda: not engine.decoder.busy and not engine.waiting)
    assert not engine._session._draws  # type: ignore[union-attr]
    return heard


@pytest.fixture(scope="module")
def refs(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[AdapterRef]]:
    root: Path = tmp_path_factory.mktemp("schedules")
    model = torch_engine(world).network.model
    made = [random_adapter(model, seed=i, rank=r, base_model=world.model.digest) for i, r in enumerate(RANKS)]
    return replace(world, root=root), [peft.write_peft(root / str(i), one) for i, one in enumerate(made)]


@pytest.fixture(scope="module")
def alone(refs: tuple[World, list[AdapterRef]]) -> Alone:
    return Alone(refs[0])


class Alone:
    """Answers of requests drawn alone, one at a time, with nothing kept."""

    def __init__(self, where: World) -> None:
        self._engine = torch_engine(where)
        self._known: dict[Request, dict[int, Completion]] = {}

    def __call__(self, request: Request) -> dict[int, Completion]:
        asked = replace(request, key="", salt="")
        if asked not in self._known:
            self._known[asked] = {one.draw: one for one in self._engine.complete([asked])}
        return self._known[asked]


def check(one: Heard, alone: Alone) -> None:
    expected = alone(one.request)
    for got in one.completions:
        want = expected[got.draw]
        assert (got.text, got.num_tokens, got.seed, got.finish_reason) == (
            want.text, want.num_tokens, want.seed, want.finish_reason,
        )  # fmt: skip
        assert [report.token for report in got.logprobs] == [report.token for report in want.logprobs]
        for report, other in zip(got.logprobs, want.logprobs, strict=True):
            assert report.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert len(report.top) == len(other.top)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_and_leaves_an_answer_is_the_one_it_has_alone(
    refs: tuple[World, list[AdapterRef]], alone: Alone, seed: int
) -> None:
    where, adapters = refs
    rng = random.Random(seed)
    hits = evictions = ended = 0
    for _ in range(12):
        plan = schedule(rng, adapters)
        engine = torch_engine(where, **plan.settings)
        engine.decoder.limits = replace(engine.decoder.limits, pass_cost=rng.choice((0, 64, 1 << 20)))
        try:
            for one in played(engine, plan):
                assert not one.errors
                check(one, alone)
                assert one.spent <= plan.settings.get("device_bytes", 1 << 40)
                ended += len(one.completions)
            if engine.prefixes is not None:
                hits += engine.prefixes.hits
                assert engine.prefixes.bytes <= plan.settings["prefix_bytes"]
            found = engine.residency
            assert len(found.resident) <= found.places and found.held_hits <= found.loads
            assert found.held_bytes <= plan.settings["host_bytes"]
            evictions += found.evictions
        finally:
            engine.close()
    assert min(hits, ended) > 100 and evictions > 5
