"""Two local replicas: requests go where their adapter is, and a death costs time only."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rune.engines import ray as ray_engine
from rune.engines.shared.streams import joined, stream
from rune.errors import ConfigError, EngineError, ModelError
from rune.types import Completion, Delta, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, World, torch_engine

SAMPLING = Sampling(temperature=1.0, max_new_tokens=60)


def requests(world: World) -> list[Request]:
    wearers = [None, *world.adapters]
    return [
        Request(key=f"{i}/{j}", prompt=prompt, sampling=SAMPLING, seed=9 * i, n=4, adapter=wearer)
        for i, prompt in enumerate(PROMPTS)
        for j, wearer in enumerate(wearers)
    ]


def test_a_list_is_handed_out_adapter_by_adapter_and_the_base_last(world: World) -> None:
    some = requests(world)[0]
    first, second = world.adapters
    worn = [None, first, second, second, None, first]
    work = [replace(some, key=str(i), n=1 + (ref is second), adapter=ref) for i, ref in enumerate(worn)]
    assert ray_engine.in_order(work) == [2, 3, 1, 5, 0, 4]


def test_settings_of_the_inner_engine_are_checked_before_ray_starts(world: World) -> None:
    with pytest.raises(ConfigError, match="max_rows"):
        ray_engine.build(
            ray_engine.Config(actors=1, settings={"maxrows": 3}), model=world.model, device="cpu", dtype="float32"
        )


def test_more_gpus_than_this_machine_has_are_refused() -> None:
    """Ray itself would wait for them for ever."""
    here = torch.cuda.device_count()
    assert ray_engine._gpus(ray_engine.Config(actors=here + 1), "cpu") == 0
    assert ray_engine._fitting(ray_engine.Config(), "cpu") == 1
    for config in (ray_engine.Config(actors=here + 1), ray_engine.Config(actors=2 * here + 1, gpus_per_actor=0.5)):
        wanted = f"{config.actors * config.gpus_per_actor:g}"
        with pytest.raises(EngineError, match=rf"need {wanted}, this machine has {here}; lower engine.actors"):
            ray_engine._gpus(config, "cuda")
    if here:
        assert ray_engine._gpus(ray_engine.Config(actors=here), "cuda") == here


def test_an_engine_that_cannot_be_built_says_why_and_leaves_no_cluster(world: World) -> None:
    import ray

    was_there = ray.is_initialized()
    nowhere = replace(world.model, path=f"{world.model.path}/nowhere")
    with pytest.raises(ModelError, match="nowhere") as caught:
        ray_engine.build(ray_engine.Config(actors=2, cpus_per_actor=0.5), model=nowhere, device="cpu", dtype="float32")
    assert "\n" not in str(caught.value)
    assert ray.is_initialized() is was_there


def test_a_cluster_that_is_not_there_is_one_line_at_once(world: World) -> None:
    """Ray itself tries for three minutes and then ends the process."""
    config = ray_engine.Config(actors=1, address="127.0.0.1:1")
    with pytest.raises(EngineError, match=r"no Ray cluster answers at '127\.0\.0\.1:1'"):
        ray_engine.build(config, model=world.model, device="cpu", dtype="float32")


@pytest.fixture
def strict(engine: ray_engine.RayEngine, monkeypatch: pytest.MonkeyPatch) -> ray_engine.RayEngine:
    """No request survives a death."""
    monkeypatch.setattr(engine.fleet, "_restarts", 0)
    return engine


def kill(engine: ray_engine.RayEngine, *numbers: int) -> None:
    """And wait until it is known."""
    import ray

    killed = [(engine.fleet.replicas[number], engine.fleet.replicas[number].actor) for number in numbers]
    for _, actor in killed:
        ray.kill(actor)
    until(lambda: all(replica.actor is not actor for replica, actor in killed))


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 120  # seconds; only a hang reaches it
    while not condition():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.01)


@pytest.mark.check
@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_replicas_that_die_too_often_are_one_error_that_counts_what_is_missing(
    strict: ray_engine.RayEngine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = requests(world)
    found: list[Completion] = []
    with pytest.raises(EngineError) as caught:
        for completion in strict.complete(work):
            if not found:
                kill(strict, 0, 1)
            found.append(completion)
    missing = sum(request.n for request in work) - len(found)
    assert missing > 0 and f"{missing} draws are missing" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    again = {(c.key, c.draw) for c in strict.complete(work)}  # the engine is not lost with its actors
    assert len(again) == sum(request.n for request in work)


@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_a_dead_replicas_list_is_done_again(engine: ray_engine.RayEngine, world: World) -> None:
    work = requests(world)
    found: dict[tuple[str, int], Completion] = {}
    for completion in engine.complete(work):
        assert (completion.key, completion.draw) not in found
        if not found:
            kill(engine, 0)
        found[completion.key, completion.draw] = completion
    assert found == {(c.key, c.draw): c for c in torch_engine(world).complete(work)}
    until(lambda: engine.fleet.live == 2)


@pytest.mark.check
@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_streams_of_a_replica_that_dies_go_on_where_they_were(engine: ray_engine.RayEngine, world: World) -> None:
    long = replace(requests(world)[1], sampling=replace(SAMPLING, max_new_tokens=400), n=2)
    alone = torch_engine(world)
    work, expected = [], {}
    for i, wearer in enumerate((*world.adapters, None)):
        tried = [replace(long, key=str(i), seed=seed, adapter=wearer) for seed in range(40)]
        drawn = [{(c.key, c.draw): c for c in alone.complete([request])} for request in tried]
        best = max(range(40), key=lambda at: min(c.num_tokens for c in drawn[at].values()))
        work.append(tried[best])  # draws for long: none may have ended before all have begun
        expected |= drawn[best]
    assert min(c.num_tokens for c in expected.values()) >= 60
    heard: queue.SimpleQueue[tuple[str, Delta | Exception]] = queue.SimpleQueue()
    for request in work:
        engine.submit(request, lambda what, key=request.key: heard.put((key, what)))  # type: ignore[misc]
    parts: dict[tuple[str, int], list[Delta]] = {}
    ended: dict[tuple[str, int], Completion] = {}
    killed = False
    while len(ended) < len(expected):
        key, what = heard.get(timeout=120)
        assert isinstance(what, Delta), what
        parts.setdefault((key, what.draw), []).append(what)
        if what.finish_reason:
            ended[key, what.draw] = joined(key, parts[key, what.draw])
        if not killed and len(parts) == len(expected):  # every draw has begun
            killed = True
            assert not ended
            kill(engine, 0, 1)
    assert killed and ended == expected
    until(lambda: engine.fleet.live == 2)


@pytest.mark.check
@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_adapters_stay_where_they_are(engine: ray_engine.RayEngine, world: World) -> None:
    """Twelve requests one after the other: each adapter is read once, by one replica."""
    until(lambda: engine.fleet.live == 2)
    kill(engine, 0, 1)
    until(lambda: engine.fleet.live == 2 and engine.fleet.residency is None)
    for i in range(6):
        for ref in world.adapters:
            list(stream(engine, replace(requests(world)[0], key=str(i), seed=i, adapter=ref)))
    residency = engine.residency
    assert residency is not None and residency.loads == 2
    assert set(residency.resident) == {ref.adapter_id for ref in world.adapters}


@pytest.mark.check
@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_a_pinned_adapter_is_in_every_replica_also_after_a_death(
    engine: ray_engine.RayEngine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.fleet, "_pins", {})
    until(lambda: engine.fleet.live == 2)
    engine.pin_adapter(world.adapters[0])
    kill(engine, 0)
    until(lambda: engine.fleet.live == 2)
    base = replace(requests(world)[0], n=1)
    list(stream(engine, base))  # to the idlest of the lowest number
    found = engine.fleet.replicas[0].residency
    assert found is not None and found.pinned == {world.adapters[0].adapter_id} == set(found.resident)
