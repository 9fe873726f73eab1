"""Keys and values of rows in blocks: more rows where answers are short, the same texts where none are left, no leak."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from rune.engines.local.blocks import BLOCK, Blocks, Cached, needed, plan_room
from rune.engines.local.kv_cache import BlockCache
from rune.engines.local.torch_engine import TorchEngine
from rune.engines.shared.streams import gather, stream
from rune.errors import EngineError
from rune.types import Completion, Delta, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, World, random_adapter, torch_engine
from tests.engines.test_session import LONG, until

DRAWN = Sampling(temperature=1.0, max_new_tokens=60)
TIGHT = 12  # blocks: two long answers of those below fill them
WINDOW = 192


def asks(world: World, count: int = 8, sampling: Sampling = DRAWN) -> list[Request]:
    """Three prompts, of two lengths; base and two adapters; one and two draws; one asks for log-probabilities."""
    wears = [None, *world.adapters]
    return [
        Request(
            key=f"r{i}", prompt=PROMPTS[i % 3] * (1 + i % 4), sampling=sampling, seed=10 * i, n=1 + i % 2,
            adapter=wears[i % 3], logprobs=2 if i == 4 else None,
        )
        for i in range(count)
    ]  # fmt: skip


def tight(world: World, blocks: int = TIGHT, **settings: object) -> TorchEngine:
    """An engine whose rows find so many blocks, lists and submitted requests alike."""
    engine = torch_engine(world, **{"max_rows": 16, "window": WINDOW, **settings})
    opens = engine.decoder.open

    def opened(rows: int, **how: int) -> None:
        opens(rows, **{**how, "blocks": max(blocks, needed(-(-how["length"] // 64) * 64))})

    engine.decoder.open = opened  # type: ignore[method-assign]
    return engine


def behind(engine: TorchEngine) -> TorchEngine:
    """Its host looks at tokens one burst behind the device, as on a GPU."""
    engine.decoder.device.asynchronous = True
    return engine


def said(completions: Iterator[Completion] | Sequence[Completion]) -> dict[tuple[str, int], Completion]:
    return {(one.key, one.draw): one for one in completions}


def the_same(found: dict[tuple[str, int], Completion], expected: dict[tuple[str, int], Completion]) -> bool:
    """Texts and numbers; log-probabilities up to the last bits, since sums differ with the batch."""
    assert found.keys() == expected.keys()
    for place, one in found.items():
        other = expected[place]
        assert replace(one, logprobs=()) == replace(other, logprobs=())
        assert [o.token for o in one.logprobs] == [o.token for o in other.logprobs]
        assert [o.logprob for o in one.logprobs] == pytest.approx([o.logprob for o in other.logprobs], abs=1e-3)
    return True


def all_free(engine: TorchEngine) -> bool:
    """No block is held but by the prefix cache, and without that by nobody; true where there is no pool any more."""
    blocks = engine.decoder.device.blocks
    if blocks is None:
        return True
    assert blocks.free + blocks.spare == blocks.count
    assert blocks.spare == len(engine.decoder.prefixes or ())
    return True


@pytest.fixture
def expected(world: World) -> dict[tuple[str, int], Completion]:
    engine = torch_engine(world, kv_layout="static")
    found = said(engine.complete(asks(world)))
    assert engine.decoder.device.blocks is None and any(one.logprobs for one in found.values())
    return found


# ---------------------------------------------------------------------------- as many rows as find blocks


def test_under_one_number_of_bytes_short_answers_run_more_at_once_than_static_rows(world: World) -> None:
    short = replace(DRAWN, max_new_tokens=12)
    requests = [Request(key=str(i), prompt=PROMPTS[i % 3], sampling=short, seed=i) for i in range(48)]
    rows, texts = {}, {}
    for layout in ("static", "paged"):
        engine = torch_engine(world, kv_layout=layout, window=2048, max_rows=64, device_bytes=24 << 20)
        texts[layout] = said(gather(engine, requests))
        rows[layout] = engine.stats.most_rows
        device = engine.decoder.device
        assert device.bytes + device.rows * engine.decoder.row_bytes(0) <= 24 << 20
        engine.close()
    assert texts["paged"] == texts["static"]
    assert rows["paged"] >= 3 * rows["static"] > 0


def test_rows_and_blocks_that_are_planned_take_no_more_than_the_bytes() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        row, block, longest = rng.randrange(1, 5000), rng.randrange(1, 900), rng.randrange(1, 130)
        most, beside, free = rng.randrange(1, 70), rng.choice((0, 50)), rng.randrange(10**6)
        rows, blocks = plan_room(free, row_bytes=row, block_bytes=block, longest=longest, most_rows=most, beside=beside)
        assert 1 <= rows <= most and longest <= blocks <= max(longest, rows * longest + beside)
        least = row + (longest + 1) * block
        assert rows * row + (blocks + 1) * block <= max(free, least)
        if free >= most * (row + longest * block) + (beside + 1) * block:
            assert (rows, blocks) == (most, most * longest + beside)  # enough for all that there may be


def test_draws_of_one_prompt_hold_the_blocks_that_it_fills_once(world: World) -> None:
    engine = torch_engine(world, kv_layout="paged")
    prompt = PROMPTS[0] * 12
    whole = len(engine.tokenizer(prompt)["input_ids"]) // BLOCK
    drawing = engine.complete([Request(key="x", prompt=prompt, sampling=LONG, seed=0, n=8)])
    engine.decoder.limits = replace(engine.decoder.limits)
    engine.decoder.ends = frozenset()
    held: list[int] = []
    turn = engine.decoder.turn

    def turned() -> list[object]:
        moved = turn()
        blocks = engine.decoder.device.blocks
        assert blocks is not None
        held.append(blocks.count - blocks.free)
        if len(held) == 4:
            raise KeyboardInterrupt
        return moved  # type: ignore[return-value]

    engine.decoder.turn = turned  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        next(drawing)
    assert whole >= 3 and whole < held[0] <= whole + 2 * 8
    assert all_free(engine)


# ---------------------------------------------------------------------------- where blocks run out


@pytest.mark.parametrize("burst", [1, 3])
@pytest.mark.parametrize("late", [False, True])
def test_a_list_that_runs_out_of_blocks_draws_the_same_texts(
    world: World, expected: dict[tuple[str, int], Completion], burst: int, late: bool
) -> None:
    engine = tight(world, burst=burst)
    if late:
        behind(engine)
    assert the_same(said(engine.complete(asks(world))), expected)
    assert engine.stats.preemptions > 1 and engine.stats.halvings == 0
    assert all_free(engine)


@pytest.mark.parametrize("prefix_bytes", [0, 1 << 30])
@pytest.mark.parametrize("late", [False, True])
def test_streams_that_run_out_of_blocks_say_the_same_once(
    world: World, expected: dict[tuple[str, int], Completion], prefix_bytes: int, late: bool
) -> None:
    """A row that waits in the middle goes on where it was: its listener hears nothing twice."""
    engine = tight(world, prefix_bytes=prefix_bytes)
    if late:
        behind(engine)
    for _ in range(2):  # the second time after prompts that are kept, and leave where rows need their blocks
        assert the_same(said(gather(engine, asks(world))), expected)
        until(lambda: not engine.decoder.busy)
        assert all_free(engine)
    assert engine.stats.preemptions > 1
    if prefix_bytes:
        assert engine.prefixes is not None and engine.prefixes.hits
    engine.close()


def test_the_first_that_came_is_never_the_one_that_waits(world: World) -> None:
    engine = tight(world)
    out: list[str] = []
    preempt = engine.decoder._preempt
    engine.decoder._preempt = lambda row: (out.append(row.request.key), preempt(row))[1]  # type: ignore[method-assign]
    done = [one.key for one in engine.complete(asks(world))]
    assert out and "r0" not in out and len(done) == 12
    engine.close()


def test_no_row_looks_into_anothers_block(
    world: World, expected: dict[tuple[str, int], Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in a free block, and in the one that is nobody's, is ruined as soon as it is free."""
    engine = tight(world, prefix_bytes=1 << 30)
    give, poisoned = Blocks.give, []

    def poison(blocks: Sequence[int]) -> None:
        cache = engine.decoder.device._cache
        assert isinstance(cache, BlockCache)
        poisoned.extend(blocks)
        for pool_LNWVD in (cache.keys_LNWVD, cache.values_LNWVD):
            pool_LNWVD[:, [0, *blocks]] = 1e4

    def given(self: Blocks, blocks: Sequence[int]) -> None:
        give(self, blocks)
        poison([block for block in blocks if not self._holders[block]])

    monkeypatch.setattr(Blocks, "give", given)
    for _ in range(2):
        assert the_same(said(gather(engine, asks(world))), expected)
    assert len(poisoned) > 3 * TIGHT and engine.stats.preemptions
    engine.close()


# ---------------------------------------------------------------------------- blocks come back


def ended(engine: TorchEngine, world: World) -> None:
    list(gather(engine, asks(world, 5)))


def cancelled(engine: TorchEngine, world: World) -> None:
    heard: list[object] = []
    tickets = [engine.submit(replace(one, sampling=LONG), heard.append) for one in asks(world, 5)]
    until(lambda: len(heard) > 8)
    for ticket in tickets:
        ticket.cancel()


def hung_up(engine: TorchEngine, world: World) -> None:
    def gone(_: object) -> None:
        raise ConnectionError

    engine.submit(replace(asks(world, 1)[0], sampling=LONG), gone)
    deltas = stream(engine, replace(asks(world, 2)[1], sampling=LONG))
    next(deltas)
    deltas.close()  # type: ignore[attr-defined]


def dropped(engine: TorchEngine, world: World) -> None:
    own = engine.put_adapter("own", random_adapter(engine.network.model, seed=7))
    deltas = stream(engine, replace(asks(world, 1)[0], prompt=PROMPTS[2] * 4, adapter=own))
    next(deltas)
    engine.drop_adapter("own")
    assert list(deltas)


def short_of_memory(engine: TorchEngine, world: World) -> None:
    forward, calls = engine.decoder.device._forward, []

    def watched(layout: object, looks: object) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise MemoryError("not now")
        forward(layout, looks)  # type: ignore[arg-type]

    engine.decoder.device._forward = watched  # type: ignore[method-assign]
    list(gather(engine, asks(world, 5)))
    assert engine.stats.halvings == 1


def stopped_by_a_string(engine: TorchEngine, world: World) -> None:
    list(gather(engine, asks(world, 5, replace(DRAWN, stop=("e", "a", " ")))))


@pytest.mark.parametrize("blocks", [TIGHT, 200])
@pytest.mark.parametrize("what", [ended, cancelled, hung_up, dropped, short_of_memory, stopped_by_a_string])
def test_every_block_comes_back_and_the_next_answer_is_right(
    world: World, what: Callable[[TorchEngine, World], None], blocks: int
) -> None:
    length = 4096 if what in (cancelled, hung_up) else WINDOW  # LONG answers need the window, and blocks for it
    engine = tight(world, blocks, window=length)
    if what in (cancelled, hung_up):
        engine.decoder.ends = frozenset()
    what(engine, world)
    until(lambda: not engine.decoder.busy and not engine.waiting)
    assert engine._session is not None
    assert engine._session.call(lambda: all_free(engine))
    (request,) = asks(world, 1)
    ends, engine.decoder.ends = engine.decoder.ends, torch_engine(world).decoder.ends
    assert said(gather(engine, [request])) == said(torch_engine(world).complete([request])) and ends is not None
    if engine.decoder.prefixes is not None:
        prefixes = engine.decoder.prefixes
        engine._session.call(lambda: prefixes.shrink(0))
    assert engine._session.call(lambda: all_free(engine))
    engine.close()
    assert engine.decoder.device.blocks is None


def test_a_fault_in_a_step_gives_every_block_back(world: World) -> None:
    """In a list the engine goes on; a session stops."""
    engine = tight(world)
    forward = engine.decoder.device._forward

    def broken(*_: object) -> None:
        raise RuntimeError("device-side assert")

    pools: list[Blocks] = []
    allocate = engine.decoder.device.allocate

    def allocated(*how: object) -> None:
        allocate(*how)  # type: ignore[arg-type]
        assert engine.decoder.device.blocks is not None
        pools.append(engine.decoder.device.blocks)

    engine.decoder.device.allocate = allocated  # type: ignore[method-assign]
    engine.decoder.device._forward = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        list(engine.complete(asks(world, 3)))
    assert len(pools) == 1 and pools[0].free == pools[0].count
    engine.decoder.device._forward = forward  # type: ignore[method-assign]
    assert len(list(engine.complete(asks(world, 3)))) == 4
    engine.decoder.device._forward = broken  # type: ignore[method-assign]
    with pytest.raises(EngineError):
        list(gather(engine, asks(world, 3)))
    assert all(pool.free + pool.spare == pool.count for pool in pools) and len(pools) == 3


def test_an_idle_server_keeps_prompts_and_gives_the_memory_of_free_blocks_back(world: World) -> None:
    engine = tight(world, blocks=64)
    long = replace(asks(world, 1)[0], prompt=PROMPTS[2] * 4)
    first = said(gather(engine, [long]))
    assert engine._session is not None
    engine._session.call(lambda: None)  # after the turn that ended the answer
    cache, kept = engine.decoder.device._cache, engine.decoder.prefixes
    assert isinstance(cache, BlockCache) and kept is not None
    runs = [run.kept for run in kept._runs.values()]
    held = [block for run in runs if isinstance(run, Cached) for block in run.blocks]
    rest = sorted(set(range(1, 65)) - set(held))
    assert len(held) >= 3 and cache.keys_LNWVD[:, held].abs().amin(dim=(0, 2, 3, 4)).gt(0).any()
    assert not cache.keys_LNWVD[:, rest].any() and not cache.values_LNWVD[:, rest].any()
    hits = kept.hits
    assert said(gather(engine, [long])) == first and kept.hits > hits
    engine.close()


# ---------------------------------------------------------------------------- the pool alone


def test_a_block_is_free_when_its_last_holder_gave_it_back_and_never_before() -> None:
    rng = random.Random(3)
    pool = Blocks(20)
    rows: list[list[int]] = []
    cached: list[Cached] = []
    for _ in range(3000):
        kind = rng.randrange(5)
        if kind == 0 and pool.free >= 3:
            rows.append(pool.take(rng.randrange(1, 4)))
        elif kind == 1 and rows:
            pool.give(rows.pop(rng.randrange(len(rows))))
        elif kind == 2 and rows:
            shared = rng.choice(rows)[:2]
            pool.share(shared)
            rows.append(list(shared))
        elif kind == 3 and rows:
            known = {block for one in cached for block in one.blocks}
            fresh = [block for block in rng.choice(rows) if block not in known]
            cached.append(pool.cache(fresh))
        elif cached:
            cached.pop(rng.randrange(len(cached))).release()
        held = {block for row in rows for block in row}
        kept = {block for one in cached for block in one.blocks}
        assert pool.free == 20 - len(held | kept) and pool.spare == len(kept - held)
        assert 0 not in held and len(pool._free) == len(set(pool._free))
        assert [b for run in pool.unused() for b in run] == sorted(pool._free)


def test_what_a_pass_reads_goes_to_the_blocks_of_its_rows_alone(world: World) -> None:
    network = torch_engine(world).network
    cache = BlockCache(network, 2, 100, 6)
    keys_PVSD = torch.randn(2, network.kv_heads, 70, network.head_size)
    cache.store(32, [0, 1, 2], [5, 2, 4])(1, keys_PVSD, -keys_PVSD)
    found = cache.keys_LNWVD[1, [5, 2]].flatten(0, 1).transpose(0, 1)
    assert torch.equal(found[:, :38], keys_PVSD[0, :, 32:])
    assert torch.equal(cache.keys_LNWVD[1, 4].transpose(0, 1), keys_PVSD[1, :, 32:64])
    assert torch.equal(cache.values_LNWVD, -cache.keys_LNWVD)
    assert not cache.keys_LNWVD[0].any() and not cache.keys_LNWVD[1, [0, 1, 3, 6]].any()
    read, _ = cache.read([[5, 2], [2, 4]])
    assert torch.equal(read[1, 0, :, :38], keys_PVSD[0, :, 32:]) and read.shape[1:4] == (2, network.kv_heads, 64)


def test_an_unknown_layout_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="kv_layout must be paged, static or left out, found 'row'"):
        torch_engine(world, kv_layout="row")


def test_deltas_of_a_row_that_waited_add_up(world: World) -> None:
    engine = tight(world, blocks=6)
    heard: dict[str, list[Delta | Exception]] = {}
    long = replace(DRAWN, max_new_tokens=150)
    requests = [replace(one, n=1, key=str(i), prompt=PROMPTS[0]) for i, one in enumerate(asks(world, 4, long))]
    for request in requests:
        engine.submit(request, heard.setdefault(request.key, []).append)
    until(lambda: len(heard) == 4 and all(told and getattr(told[-1], "finish_reason", "") for told in heard.values()))
    alone = {one.key: one for one in torch_engine(world).complete(requests)}
    for key, told in heard.items():
        assert all(isinstance(what, Delta) for what in told)
        assert "".join(what.text for what in told if isinstance(what, Delta)) == alone[key].text
        assert [w.num_tokens for w in told if isinstance(w, Delta)] == sorted(
            {w.num_tokens for w in told if isinstance(w, Delta)}
        )
    assert engine.stats.preemptions
    engine.close()
