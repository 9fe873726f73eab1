"""Which adapters stay resident, which leave, and that a slot's next tenant finds nothing of the last one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rune.adapters import peft
from rune.engines.local.torch_engine import TorchEngine
from rune.errors import AdapterError
from rune.types import AdapterRef, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, World, random_adapter, torch_engine

GREEDY = Sampling(temperature=0.0, max_new_tokens=16)


@pytest.fixture(scope="module")
def folders(world: World) -> list[AdapterRef]:
    """Five adapters in folders."""
    root = world.root / "five"
    model = torch_engine(world).network.model
    return [
        peft.write_peft(root / str(i), random_adapter(model, seed=40 + i, rank=2, base_model=world.model.digest))
        for i in range(5)
    ]


def say(engine: TorchEngine, *adapters: AdapterRef | None) -> list[str]:
    requests = [
        Request(key=f"{i:03}", prompt=PROMPTS[2], sampling=GREEDY, seed=0, adapter=a) for i, a in enumerate(adapters)
    ]
    return [answer.text for answer in sorted(engine.complete(requests), key=lambda a: a.key)]


def test_an_adapter_handed_over_as_tensors_stays_however_many_folders_come(
    world: World, folders: list[AdapterRef]
) -> None:
    """There is nothing to read it from again; only `drop_adapter` makes it go."""
    engine = torch_engine(world, max_adapters=2)
    own = engine.put_adapter("own", random_adapter(engine.network.model, seed=7))
    (before,) = say(engine, own)
    for ref in (*folders, folders[0]):
        say(engine, ref)
        assert "own" in engine.pool and ref.adapter_id in engine.pool
        assert len(engine.pool.slots) == 2
    assert say(engine, own) == [before]
    engine.drop_adapter("own")
    assert "own" not in engine.pool
    with pytest.raises(AdapterError, match="unknown adapter own"):
        say(engine, own)


def test_a_dropped_adapters_name_has_no_privilege_left(world: World, folders: list[AdapterRef]) -> None:
    """What comes from a folder later under the same id may leave as others do."""
    engine = torch_engine(world, max_adapters=1)
    engine.put_adapter(folders[0].adapter_id, random_adapter(engine.network.model, seed=7))
    engine.drop_adapter(folders[0].adapter_id)
    say(engine, folders[0])
    say(engine, folders[1])
    assert list(engine.pool.slots) == [folders[1].adapter_id]


def test_the_folder_unused_for_longest_leaves_first(world: World, folders: list[AdapterRef]) -> None:
    engine = torch_engine(world, max_adapters=3)
    a, b, c, d, e = folders
    for ref in (a, b, c):
        say(engine, ref)
    say(engine, a)  # used again: b is the oldest now
    say(engine, d)
    assert set(engine.pool.slots) == {r.adapter_id for r in (a, c, d)}
    say(engine, e)
    assert set(engine.pool.slots) == {r.adapter_id for r in (a, d, e)}


def test_what_a_call_wears_never_leaves_during_it(world: World, folders: list[AdapterRef]) -> None:
    """More adapters in one call than may stay resident: all are worn, none is answered by another's weights."""
    expected = [say(torch_engine(world), ref)[0] for ref in folders]
    engine = torch_engine(world, max_adapters=2)
    say(engine, folders[4])
    assert say(engine, *folders) == expected
    assert len(set(expected)) == len(folders)


def test_the_next_tenant_of_a_slot_wears_nothing_of_the_last(world: World) -> None:
    """A full adapter leaves, one of two modules and a smaller rank takes its slot."""
    engine = torch_engine(world)
    model = engine.network.model
    small = random_adapter(model, seed=9, rank=2)
    few = replace(small, pairs={n: p for n, p in small.pairs.items() if n.endswith(("q_proj", "up_proj"))})
    fresh = torch_engine(world)
    expected = say(fresh, fresh.put_adapter("few", few))
    engine.put_adapter("full", random_adapter(model, seed=8, rank=8))
    slot = engine.pool.slots["full"]
    engine.drop_adapter("full")
    ref = engine.put_adapter("few", few)
    assert engine.pool.slots["few"] == slot
    assert say(engine, ref) == expected


def test_a_name_given_anew_wears_the_new_weights(world: World) -> None:
    engine = torch_engine(world)
    model = engine.network.model
    texts = []
    for seed in (1, 2):
        ref = engine.put_adapter("x", random_adapter(model, seed=seed))
        texts.append(say(engine, ref)[0])
        other = torch_engine(world)
        assert texts[-1:] == say(other, other.put_adapter("y", random_adapter(model, seed=seed)))
    assert texts[0] != texts[1] and len(engine.pool.slots) == 1


def test_the_bank_grows_past_its_first_room_and_every_adapter_keeps_its_own(world: World) -> None:
    engine = torch_engine(world)
    model = engine.network.model
    refs = [engine.put_adapter(str(i), random_adapter(model, seed=i, rank=2)) for i in range(20)]
    together = say(engine, *refs, None)
    for i in (0, 7, 8, 19):
        other = torch_engine(world)
        assert say(other, other.put_adapter("alone", random_adapter(model, seed=i, rank=2))) == [together[i]]
    assert say(torch_engine(world), None) == together[-1:]


def test_an_adapters_norm_is_that_of_its_weight_change(world: World) -> None:
    """In whatever slot and beside whatever rank: ‖scale · BA‖ over all modules, from dense matrices."""
    engine = torch_engine(world)
    model = engine.network.model
    engine.put_adapter("wide", random_adapter(model, seed=1, rank=16))
    adapter = random_adapter(model, seed=2, rank=3, scale=0.5)
    ref = engine.put_adapter("x", adapter)
    squared = sum(float((0.5 * pair.a.double() @ pair.b.double()).square().sum()) for pair in adapter.pairs.values())
    assert ref.delta_w_norm == pytest.approx(squared**0.5, rel=1e-6)
    assert ref.rank == 3


def test_an_adapter_made_for_another_base_is_refused_as_tensors_and_as_a_folder(world: World) -> None:
    engine = torch_engine(world)
    foreign = random_adapter(engine.network.model, seed=1, base_model="f" * 64)
    with pytest.raises(AdapterError, match="adapter x was made for base model ffffffffffff"):
        engine.put_adapter("x", foreign)
    # The record says the right base, the folder another one.
    ref = replace(peft.write_peft(world.root / "foreign", foreign), base_model=world.model.digest)
    with pytest.raises(AdapterError, match="was made for base model ffffffffffff"):
        say(engine, ref)
    assert not engine.pool.slots
