"""Two local actors: work is sharded by adapter, and a death costs time only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rune.engines import ray as ray_engine
from rune.errors import ConfigError, EngineError
from rune.types import Completion, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, World, torch_engine

SAMPLING = Sampling(temperature=1.0, max_new_tokens=60)


def requests(world: World) -> list[Request]:
    wearers = [None, *world.adapters]
    return [
        Request(key=f"{i}/{j}", prompt=prompt, sampling=SAMPLING, seed=9 * i, n=4, adapter=wearer)
        for i, prompt in enumerate(PROMPTS)
        for j, wearer in enumerate(wearers)
    ]


def test_requests_of_one_adapter_stay_together_and_the_rest_evens_out(world: World) -> None:
    few = replace(requests(world)[0], n=1)
    ref = world.adapters[0]
    applied = [replace(few, key=f"{a}{i}", adapter=replace(ref, adapter_id=a)) for a in "abcdef" for i in range(3)]
    shards = ray_engine.shard([*applied, *[few] * 6], 3)
    assert sorted(index for shard in shards for index in shard) == list(range(24))
    assert [len(shard) for shard in shards] == [8, 8, 8]
    for first in range(0, 18, 3):
        assert any({first, first + 1, first + 2} <= set(shard) for shard in shards)


def test_one_adapter_for_everything_is_shared_out(world: World) -> None:
    applied = [replace(requests(world)[1], key=str(i)) for i in range(10)]
    assert [len(shard) for shard in ray_engine.shard(applied, 2)] == [5, 5]


def test_settings_of_the_inner_engine_are_checked_before_ray_starts(world: World) -> None:
    with pytest.raises(ConfigError, match="max_rows"):
        ray_engine.build(
            ray_engine.Config(actors=1, settings={"maxrows": 3}), model=world.model, device="cpu", dtype="float32"
        )


def test_more_gpus_than_this_machine_has_are_refused() -> None:
    """Ray itself would wait for them for ever."""
    here = torch.cuda.device_count()
    assert ray_engine._gpus(ray_engine.Config(actors=here + 1), "cpu") == 0
    for config in (ray_engine.Config(actors=here + 1), ray_engine.Config(actors=2 * here + 1, gpus_per_actor=0.5)):
        wanted = f"{config.actors * config.gpus_per_actor:g}"
        with pytest.raises(EngineError, match=rf"need {wanted}, this machine has {here}; lower engine.actors"):
            ray_engine._gpus(config, "cuda")
    if here:
        assert ray_engine._gpus(ray_engine.Config(actors=here), "cuda") == here


@pytest.mark.check
@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_actors_that_die_too_often_are_one_error_that_counts_what_is_missing(
    engine: ray_engine.RayEngine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(engine, "config", replace(engine.config, restarts=0))
    work = requests(world)
    found: list[Completion] = []
    with pytest.raises(EngineError) as caught:
        for completion in engine.complete(work):
            if not found:
                ray.kill(engine.actors[0])
            found.append(completion)
    missing = sum(request.n for request in work) - len(found)
    assert missing > 0 and f"{missing} draws are missing" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.undo()
    again = {(c.key, c.draw) for c in engine.complete(work)}  # the engine is not lost with its actor
    assert len(again) == sum(request.n for request in work)


@pytest.mark.parametrize("engine", ["ray"], indirect=True)
def test_a_dead_actors_work_is_done_again(engine: ray_engine.RayEngine, world: World) -> None:
    import ray

    work = requests(world)
    found: dict[tuple[str, int], Completion] = {}
    for completion in engine.complete(work):
        assert (completion.key, completion.draw) not in found
        if not found:
            ray.kill(engine.actors[0])
        found[completion.key, completion.draw] = completion
    assert found == {(c.key, c.draw): c for c in torch_engine(world).complete(work)}
