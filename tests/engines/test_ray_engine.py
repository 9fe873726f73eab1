"""Two local actors: work is sharded by adapter, and a death costs time only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_helpers import PROMPTS, World, torch_engine

from rune.engines import ray as ray_engine
from rune.errors import ConfigError
from rune.types import Completion, Request, Sampling

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
    worn = [replace(few, key=f"{a}{i}", adapter=replace(ref, adapter_id=a)) for a in "abcdef" for i in range(3)]
    shards = ray_engine.shard([*worn, *[few] * 6], 3)
    assert sorted(index for shard in shards for index in shard) == list(range(24))
    assert [len(shard) for shard in shards] == [8, 8, 8]
    for first in range(0, 18, 3):
        assert any({first, first + 1, first + 2} <= set(shard) for shard in shards)


def test_one_adapter_for_everything_is_shared_out(world: World) -> None:
    worn = [replace(requests(world)[1], key=str(i)) for i in range(10)]
    assert [len(shard) for shard in ray_engine.shard(worn, 2)] == [5, 5]


def test_settings_of_the_inner_engine_are_checked_before_ray_starts(world: World) -> None:
    with pytest.raises(ConfigError, match="max_rows"):
        ray_engine.build(
            ray_engine.Config(actors=1, settings={"maxrows": 3}), model=world.model, device="cpu", dtype="float32"
        )


@pytest.mark.xdist_group("ray")
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
    assert found == {(c.key, c.draw): c for c in torch_engine(world.model).complete(work)}
