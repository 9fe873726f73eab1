"""Host memory between disk and device, reading ahead for who waits, and prompts that begin alike."""

from __future__ import annotations

import queue
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rune.adapters import peft
from rune.adapters.peft import Adapter
from rune.engines.local.blocks import BLOCK, Copies
from rune.engines.local.host_tier import HostTier, size_of
from rune.engines.local.prefixes import PrefixCache
from rune.engines.local.torch_engine import TorchEngine
from rune.engines.shared.streams import gather, joined
from rune.errors import AdapterError, EngineError
from rune.types import AdapterRef, Completion, Delta, Request, Sampling
from tests.engines.engine_helpers import World, random_adapter, torch_engine
from tests.engines.test_session import LONG, until

SAMPLING = Sampling(temperature=1.0, max_new_tokens=24, top_k=40)
SYSTEM = "You are a careful reader of programs and you say what they do, one after another, in whole sentences.\n" * 3


@pytest.fixture(params=["paged", "static"])
def engine(world: World, request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    engine = torch_engine(world, max_rows=4, kv_layout=request.param)
    yield engine
    engine.close()


def ask(text: str, adapter: AdapterRef | None = None, *, key: str = "", salt: str = "", n: int = 2) -> Request:
    prompt = SYSTEM + text
    return Request(key=key or text, prompt=prompt, sampling=SAMPLING, seed=3, n=n, adapter=adapter, salt=salt)


def drawn(engine: TorchEngine, *requests: Request) -> dict[tuple[str, int], Completion]:
    return {(one.key, one.draw): one for one in gather(engine, requests)}


def hits(engine: TorchEngine) -> int:
    assert engine.prefixes is not None
    return engine.prefixes.hits


# ---------------------------------------------------------------------------- prompts that begin alike


@pytest.mark.parametrize("layout", ["paged", "static"])
def test_with_a_known_beginning_a_prompt_has_the_same_answer(world: World, layout: str) -> None:
    requests = [ask(f"{number} " * number, key=f"k{number}") for number in (1, 5, 9)]
    requests += [replace(one, key=f"{one.key} worn", adapter=world.adapters[0]) for one in requests]
    alone = torch_engine(world, max_rows=4, prefix_bytes=0)
    expected = drawn(alone, *requests)
    assert alone.prefixes is None
    alone.close()
    listed = {(one.key, one.draw): one for one in torch_engine(world).complete(requests)}
    assert listed == expected
    engine = torch_engine(world, max_rows=4, kv_layout=layout)
    for request in (*requests, *requests):  # one by one: each after those that begin like it
        assert drawn(engine, request) == {place: one for place, one in expected.items() if place[0] == request.key}
    assert drawn(engine, *requests) == expected  # and all at once, in mixed batches
    length = len(engine.tokenizer(requests[0].prompt)["input_ids"])
    assert length > 3 * BLOCK and hits(engine) >= 10 * (length // BLOCK - 1) * BLOCK
    engine.close()


@pytest.mark.parametrize("cost", [0, 1 << 20])
def test_where_a_pass_costs_much_prompts_that_know_more_read_again_to_share_it(world: World, cost: int) -> None:
    requests = [ask("word " * number, key=f"k{number}", n=1) for number in (1, 40, 90)]
    requests += [replace(one, key=f"{one.key} worn", adapter=world.adapters[0]) for one in requests]
    alone = torch_engine(world, prefix_bytes=0)
    expected = drawn(alone, *requests)
    alone.close()
    engine = torch_engine(world, max_rows=8)
    engine.decoder.limits = replace(engine.decoder.limits, pass_cost=cost)
    for request in (requests[0], requests[1], requests[3]):
        drawn(engine, request)
    before, known = engine.stats.passes, hits(engine)
    assert together(engine, requests) == expected
    # Without an adapter the third knows as much as the second, the first less; with one all know as much as the first.
    assert engine.stats.passes - before == (2 if cost else 3)
    least = sum(len(engine.tokenizer(SYSTEM)["input_ids"]) // BLOCK * BLOCK for _ in requests)
    assert hits(engine) - known == least if cost else hits(engine) - known > least
    engine.close()


def together(engine: TorchEngine, requests: Sequence[Request]) -> dict[tuple[str, int], Completion]:
    """Requests of one draw each that begin in one repack."""
    heard: queue.SimpleQueue[tuple[str, Delta | Exception]] = queue.SimpleQueue()
    assert engine._session is not None
    engine._session.call(
        lambda: [engine.submit(one, lambda what, key=one.key: heard.put((key, what))) for one in requests]
    )
    parts: dict[str, list[Delta]] = {one.key: [] for one in requests}
    while not all(deltas and deltas[-1].finish_reason for deltas in parts.values()):
        key, what = heard.get(timeout=60)
        assert isinstance(what, Delta)
        parts[key].append(what)
    return {(key, 0): joined(key, deltas) for key, deltas in parts.items()}


def test_log_probabilities_are_the_same_too(engine: TorchEngine, world: World) -> None:
    request = replace(ask("x", world.adapters[0], n=1), logprobs=2)
    ((_, first),) = drawn(engine, request).items()
    ((_, again),) = drawn(engine, request).items()
    assert hits(engine) > 0 and len(first.logprobs) == len(again.logprobs)
    for one, other in zip(first.logprobs, again.logprobs, strict=True):
        assert one.token == other.token and one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_no_adapter_gets_another_ones_beginning(engine: TorchEngine, world: World) -> None:
    """Not the base model's either: the same prompt under each is read anew."""
    expected = [torch_engine(world).complete([ask("x", wears)]) for wears in (None, *world.adapters)]
    for wears, answer in zip((None, *world.adapters), expected, strict=True):
        assert set(drawn(engine, ask("x", wears)).values()) == set(answer)
        assert hits(engine) == 0
    drawn(engine, ask("x", world.adapters[1]))
    assert hits(engine) > 0


def test_a_name_that_comes_to_mean_another_adapter_gets_nothing_of_the_first(engine: TorchEngine) -> None:
    first, second = (random_adapter(engine.network.model, seed=seed) for seed in (11, 12))
    texts = []
    for adapter in (first, second, first):
        ref = engine.put_adapter("own", adapter)
        texts.append([one.text for _, one in sorted(drawn(engine, ask("x", ref)).items())])
        assert hits(engine) == 0
        engine.drop_adapter("own")
    assert texts[0] == texts[2] != texts[1]


def test_what_one_tenant_asked_is_read_again_for_another(engine: TorchEngine) -> None:
    drawn(engine, ask("x", salt="a"))
    drawn(engine, ask("x", salt="b"))
    assert hits(engine) == 0
    drawn(engine, ask("y", salt="a"))
    assert hits(engine) > 0


def test_beginnings_stay_within_their_bytes_and_the_oldest_leave(world: World) -> None:
    engine = torch_engine(world, max_rows=4)
    drawn(engine, ask("x"))
    assert engine.prefixes is not None
    one = engine.prefixes.bytes // engine.prefixes.blocks
    engine.close()
    engine = torch_engine(world, max_rows=4, prefix_bytes=3 * one + 1)
    for number in range(4):
        drawn(engine, Request(key="k", prompt=f"{number}" + SYSTEM, sampling=SAMPLING, seed=0))
        assert engine.prefixes.blocks == 3 and engine.prefixes.bytes == 3 * one  # type: ignore[union-attr]
    assert hits(engine) == 0
    drawn(engine, Request(key="k", prompt="3" + SYSTEM, sampling=SAMPLING, seed=0))
    assert hits(engine) == 3 * BLOCK  # its first blocks: they leave last
    engine.close()


def numbered(first: int, count: int) -> Copies:
    """Keys [1, 1, S, 1] that say their position; values its negative."""
    keys_LVSD = torch.arange(first, first + count, dtype=torch.float32).view(1, 1, count, 1)
    return Copies(keys_LVSD, -keys_LVSD)


def read_back(cache: PrefixCache, prompt: tuple[int, ...]) -> int:
    """How many tokens are known, each from its own position."""
    found = cache.find(None, "", prompt)
    keys = [value for keys_LVSD, _ in found.parts for value in keys_LVSD.flatten().tolist()]
    values = [-value for _, values_LVSD in found.parts for value in values_LVSD.flatten().tolist()]
    assert keys == values == list(range(found.tokens))
    return found.tokens


def test_a_prompt_always_has_a_token_left_to_read() -> None:
    cache = PrefixCache(1 << 30, block_bytes=8 * BLOCK)
    prompt = tuple(range(2 * BLOCK))
    cache.keep(None, "", prompt, numbered)
    assert len(cache) == 2 and cache.bytes == 16 * BLOCK
    assert read_back(cache, prompt) == BLOCK and read_back(cache, (*prompt, 7)) == 2 * BLOCK
    assert read_back(cache, prompt[1:]) == read_back(cache, prompt[:BLOCK]) == 0
    assert cache.find("a", "", prompt).tokens == cache.find(None, "s", prompt).tokens == 0
    assert read_back(cache, (*prompt[: BLOCK - 1], 999, *prompt[BLOCK:], 7)) == 0


def test_whatever_comes_and_leaves_every_known_token_is_from_its_own_place() -> None:
    """Prompts that branch, in a cache that holds a few of their blocks."""
    rng = random.Random(4)
    stems = [tuple(rng.randrange(9) for _ in range(6 * BLOCK)) for _ in range(3)]
    cache = PrefixCache(9 * 8 * BLOCK + 5, block_bytes=8 * BLOCK)
    known = 0
    for _ in range(400):
        stem = rng.choice(stems)
        branch = tuple(rng.randrange(2) for _ in range(rng.randrange(3) * BLOCK))
        prompt = stem[: rng.randrange(1, 7) * BLOCK] + branch + (1,)
        known += read_back(cache, prompt)
        cache.keep(None, "", prompt, numbered)
        assert cache.bytes <= cache.most_bytes
        assert len(cache) == sum(run.kept.tokens // BLOCK for run in cache._runs.values())
        assert read_back(cache, prompt) > 0
    assert known > 100 * BLOCK
    cache.shrink(0)
    assert len(cache) == 0 and not cache._runs


# ---------------------------------------------------------------------------- host memory


def test_what_left_the_device_comes_back_without_the_disk(world: World, tmp_path: Path) -> None:
    root = tmp_path / "adapters"
    model = torch_engine(world).network.model
    refs = [
        peft.write_peft(root / str(i), random_adapter(model, seed=60 + i, rank=2, base_model=world.model.digest))
        for i in range(3)
    ]
    engine = torch_engine(replace(world, root=root), max_rows=2, max_adapters=1)
    expected = [drawn(engine, ask("x", ref)) for ref in refs]
    assert engine.residency.held == 3 and engine.residency.resident == (refs[2].adapter_id,)
    before = engine.residency.held_hits
    shutil.rmtree(root)
    assert [drawn(engine, ask("x", ref)) for ref in refs] == expected
    assert engine.residency.held_hits == before + 3
    assert len({one.text for answers in expected for one in answers.values()}) > 3
    engine.close()


class Disk:
    """Reads, counted; each waits until it may."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.reads = adapter, []
        self.open = threading.Event()
        self.open.set()

    def read(self, ref: AdapterRef) -> Adapter:
        self.reads.append(ref.adapter_id)
        assert self.open.wait(60)
        if ref.adapter_id == "bad":
            raise AdapterError("unreadable")
        return self.adapter


def ref(name: str) -> AdapterRef:
    return AdapterRef(adapter_id=name, base_model="", rank=1, delta_w_norm=1.0)


@pytest.fixture
def disk(world: World) -> Disk:
    return Disk(random_adapter(torch_engine(world).network.model, seed=1))


def test_the_host_holds_no_more_than_its_bytes_and_reads_what_left_again(disk: Disk) -> None:
    tier = HostTier(disk.read, 2 * size_of(disk.adapter))
    for name in ("a", "b", "a", "c", "a", "b"):
        assert tier.take(ref(name)) is disk.adapter
        assert tier.bytes == len(tier) * size_of(disk.adapter) and len(tier) <= 2
    assert disk.reads == ["a", "b", "c", "b"] and tier.hits == 2
    tier.close()
    assert len(tier) == tier.bytes == 0


@pytest.mark.parametrize("most", [0, 1])
def test_without_room_every_adapter_is_read_when_it_is_wanted(disk: Disk, most: int) -> None:
    tier = HostTier(disk.read, most)
    for _ in range(2):
        tier.fetch(ref("a"))
        assert tier.take(ref("a")) is disk.adapter
    assert len(tier) == 0 and disk.reads.count("a") >= 2
    tier.close()


def test_what_is_fetched_is_read_once_and_a_bad_one_is_an_error_for_who_takes_it(disk: Disk) -> None:
    tier = HostTier(disk.read, 1 << 30)
    disk.open.clear()
    for name in ("a", "a", "bad"):
        tier.fetch(ref(name))
    assert not tier.ready(ref("a")) and tier.ready(ref("never asked for"))
    disk.open.set()
    assert tier.take(ref("a")) is disk.adapter and disk.reads.count("a") == 1 and tier.hits == 1
    until(lambda: tier.ready(ref("bad")))
    for _ in range(2):
        with pytest.raises(AdapterError, match="unreadable"):
            tier.take(ref("bad"))
    tier.close()


def test_a_waiting_requests_adapter_is_read_while_others_are_drawn(world: World) -> None:
    """The disk stands still, and the one that is being drawn goes on."""
    engine = torch_engine(world, max_rows=4)
    engine.decoder.ends = frozenset()
    waits, read = threading.Event(), engine.host._read

    def slow(wanted: AdapterRef) -> Adapter:
        assert waits.wait(60)
        return read(wanted)

    engine.host._read = slow
    heard: list[object] = []
    ticket = engine.submit(Request(key="long", prompt="x", sampling=LONG, seed=0), heard.append)
    until(lambda: heard)
    answer: list[object] = []
    engine.submit(ask("x", world.adapters[0], n=1), answer.append)
    count = engine.stats.steps
    until(lambda: engine.stats.steps > count + 20)
    assert answer == [] and engine.waiting == 1
    waits.set()
    until(lambda: answer)
    assert world.adapters[0].adapter_id in engine.residency.resident and engine.residency.held_hits == 1
    ticket.cancel()
    engine.close()


def test_an_idle_engine_waits_for_the_adapter_and_draws(world: World) -> None:
    engine = torch_engine(world, max_rows=4)
    read = engine.host._read

    def slow(wanted: AdapterRef) -> Adapter:
        time.sleep(0.05)
        return read(wanted)

    engine.host._read = slow
    assert len(drawn(engine, ask("x", world.adapters[0]))) == 2
    engine.close()


# ---------------------------------------------------------------------------- one budget


def spent(engine: TorchEngine) -> tuple[int, int, int]:
    """Bytes of rows, of adapters (and those lined up), of beginnings, as they lie there."""
    rows = engine.decoder.device.bytes
    pool = engine.pool
    adapters = (pool._resident_NE.numel() + pool._active_GE.numel()) * pool.dtype.itemsize
    apart = engine.prefixes if engine.decoder.device.blocks is None else None  # else they lie among the rows' blocks
    return rows, adapters, apart.bytes if apart else 0


@pytest.mark.parametrize("layout", ["paged", "static"])
def test_rows_adapters_and_beginnings_stay_within_one_number_of_bytes(
    world: World, tmp_path: Path, layout: str
) -> None:
    """Adapters of growing rank: wider ones leave fewer places, and every answer is its adapter's."""
    root = tmp_path / "adapters"
    model = torch_engine(world).network.model
    ranks = (2, 2, 2, 2, 4, 2, 8, 2, 2)
    refs = [
        peft.write_peft(root / str(i), random_adapter(model, seed=80 + i, rank=r, base_model=world.model.digest))
        for i, r in enumerate(ranks)
    ]
    here = replace(world, root=root)
    free = torch_engine(here)
    expected = {c.key: c.text for ref in refs for c in free.complete([ask("x", ref, key=ref.adapter_id, n=1)])}
    total = 3 << 20
    engine = torch_engine(here, max_rows=3, window=512, device_bytes=total, kv_layout=layout)
    places = []
    for ref in (*refs, *refs):
        ((_, one),) = drawn(engine, ask("x", ref, key=ref.adapter_id, n=1)).items()
        assert one.text == expected[one.key]
        assert sum(spent(engine)) <= total
        assert len(engine.residency.resident) <= engine.residency.places
        places.append(engine.residency.places)
    assert places == sorted(places, reverse=True) and places[0] > 2 * places[-1] and engine.residency.evictions
    every = [ask("x", ref, key=ref.adapter_id, n=1) for ref in refs]
    assert {key: one.text for (key, _), one in drawn(engine, *every).items()} == expected
    assert sum(spent(engine)) <= total
    engine.close()


@pytest.mark.parametrize("layout", ["paged", "static"])
def test_a_budget_for_not_even_one_request_is_refused_with_what_would_do(world: World, layout: str) -> None:
    with pytest.raises(EngineError, match=r"device_bytes = 5000 is too little.*set (\d+) or more") as caught:
        torch_engine(world, window=512, device_bytes=5000, kv_layout=layout)
    enough = int(str(caught.value).partition("; set ")[2].partition(" ")[0])
    with pytest.raises(EngineError, match="too little"):
        torch_engine(world, window=512, device_bytes=enough - 16, kv_layout=layout)
    engine = torch_engine(world, window=512, device_bytes=enough, kv_layout=layout)
    assert len(drawn(engine, ask("x", n=1))) == 1 and spent(engine)[0] < enough
    engine.close()


def test_an_adapter_that_the_budget_has_no_place_for_is_an_error_and_others_are_answered(world: World) -> None:
    engine = torch_engine(world, window=512, max_rows=1)
    small = int(engine.decoder.row_bytes(640) * 8 / 5) + 16
    engine.close()
    engine = torch_engine(world, window=512, max_rows=1, device_bytes=small)
    wide = random_adapter(engine.network.model, seed=5, rank=64, base_model=world.model.digest)
    ref = peft.write_peft(world.root / "wide-one", wide)
    with pytest.raises(AdapterError, match=r"takes \d+ bytes twice, and engine.settings.device_bytes leaves"):
        drawn(engine, ask("x", ref, n=1))
    assert len(drawn(engine, ask("x", n=1))) == 1
    engine.close()


def test_pins_count_within_the_budget(world: World) -> None:
    engine = torch_engine(world, window=192, max_rows=1)
    row, size = engine.decoder.row_bytes(320), engine.pool.bytes_with(peft.read_peft(world.folder(world.adapters[1])))
    engine.close()
    engine = torch_engine(world, window=192, max_rows=1, prefix_bytes=0, device_bytes=row + 2 * size)
    assert engine._budget is not None and engine._budget.places(size) == 1
    engine.pin_adapter(world.adapters[1])
    with pytest.raises(AdapterError, match=r"no room to pin .*raise engine.settings.device_bytes"):
        engine.pin_adapter(world.adapters[0])
    with pytest.raises(AdapterError, match=r"all 1 are pinned; raise engine.settings.device_bytes"):
        drawn(engine, ask("x", world.adapters[0]))
    assert len(drawn(engine, ask("x", world.adapters[1], n=1))) == 1
    engine.close()


def test_an_adapter_handed_over_as_tensors_counts_within_the_budget(world: World) -> None:
    engine = torch_engine(world, window=192, max_rows=1)
    first, other = (random_adapter(engine.network.model, seed=seed, rank=8) for seed in (31, 32))
    row, size = engine.decoder.row_bytes(320), engine.pool.bytes_with(first)
    engine.close()
    total = row + 2 * size
    engine = torch_engine(world, window=192, max_rows=1, prefix_bytes=0, device_bytes=total)
    drawn(engine, ask("x", world.adapters[1], n=1))
    for adapter in (first, other):  # it takes the place of the folder's, and then of its own name
        own = engine.put_adapter("own", adapter)
        assert engine.residency.resident == ("own",)
        ((_, one),) = drawn(engine, ask("x", own, n=1)).items()
        free = torch_engine(world)
        (expected,) = free.complete([ask("x", free.put_adapter("own", adapter), n=1)])
        assert one.text == expected.text
        assert sum(spent(engine)) <= total
    with pytest.raises(AdapterError, match=r"no room for adapter more: all 1 places.*device_bytes"):
        engine.put_adapter("more", first)
    assert len(drawn(engine, ask("x", own, n=1))) == 1
    engine.close()


def test_an_adapter_of_many_rows_is_lined_up_no_oftener_than_the_budget_allows(world: World) -> None:
    """In plain torch it stands in a group for each of its rows here; the answers are the ones without a budget."""
    engine = torch_engine(world, window=192, max_rows=8)
    blocks, size = 8 * 192 // BLOCK + 1, engine.pool.bytes_with(peft.read_peft(world.folder(world.adapters[1])))
    total = 8 * engine.decoder.row_bytes(0) + blocks * engine.decoder.block_bytes + 6 * size
    engine.close()
    requests = [ask("x", world.adapters[0], key="many", n=7), ask("x", world.adapters[1], key="one", n=1)]
    expected = {(c.key, c.draw): c.text for c in torch_engine(world).complete(requests)}
    engine = torch_engine(world, window=192, max_rows=8, prefix_bytes=0, device_bytes=total)
    most = 0
    lines_up = engine.pool.activate

    def activate(adapter_ids: Sequence[str]) -> None:
        nonlocal most
        lines_up(adapter_ids)
        most = max(most, len(adapter_ids))
        assert spent(engine)[1] <= engine._budget.adapters  # type: ignore[union-attr]

    engine.pool.activate = activate  # type: ignore[method-assign]
    assert {key: one.text for key, one in drawn(engine, *requests).items()} == expected
    assert engine._budget is not None and most > engine._budget.adapters // engine.pool.adapter_bytes
    engine.close()
