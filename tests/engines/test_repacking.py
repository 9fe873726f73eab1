"""Many adapters with different numbers of rows: a layout with dead places ends all the same."""

from __future__ import annotations

import itertools
import random
import signal
from collections.abc import Iterator

import pytest
from transformers import AutoModelForCausalLM

from rune.engines.local.batch import BLOCK_ROWS, Row, arrange_ragged, shared_starts, stepped
from rune.engines.local.text import StopWatch
from rune.types import AdapterRef, ModelRef, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, random_adapter, torch_engine


@pytest.fixture
def alarm() -> Iterator[None]:
    """A loop that never ends is a failure, not a hung suite."""

    def ring(*_: object) -> None:
        raise AssertionError("still decoding after 120 s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_layout_that_is_mostly_dead_places_is_decoded_not_repacked_for_ever(
    tiny_model: ModelRef, alarm: None
) -> None:
    engine = torch_engine(tiny_model)
    module = AutoModelForCausalLM.from_pretrained(tiny_model.path)
    # Of such a rank that reading an adapter costs more than the dead rows of a wide group.
    refs = [engine.put_adapter(f"a{i}", random_adapter(module, seed=i, rank=512, spread=0.05)) for i in range(9)]
    sampling = Sampling(temperature=1.0, max_new_tokens=12)
    requests = [
        Request(key=f"r{i}", prompt=PROMPTS[0], sampling=sampling, seed=i, n=6 if i == 0 else 1, adapter=ref)
        for i, ref in enumerate(refs)
    ]
    finished = list(engine.complete(requests))
    assert len(finished) == 14
    assert engine.stats.repacks <= 14


@pytest.fixture(scope="module")
def rows(tiny_model: ModelRef) -> list[Row]:
    """820 rows of ten adapters, and of none."""
    watch = StopWatch(torch_engine(tiny_model)._detokenizer, ())
    refs = [AdapterRef(adapter_id=f"a{i}", base_model="", rank=4, delta_w_norm=1.0) for i in range(10)]
    wears = [None, *refs]
    sampling = Sampling(temperature=1.0, max_new_tokens=4)
    return [
        Row(
            request=Request(key=str(i), prompt="x", sampling=sampling, seed=i, adapter=wears[i % 11]),
            draw=0, prompt=(1,), watch=watch,
        )
        for i in range(820)
    ]  # fmt: skip


@pytest.mark.parametrize("count", [1, 7, 31, 64, 500, 819])
def test_the_blocks_of_a_ragged_layout_cover_each_place_once_and_give_it_its_adapter(
    rows: list[Row], count: int
) -> None:
    some = random.Random(count).sample(rows, count)
    layout = arrange_ragged(some, most=820)
    assert sorted(id(row) for row in layout.rows if row) == sorted(map(id, some))
    assert count <= len(layout.rows) == min(stepped(count), 820) and len(layout.blocks) <= 820
    covered = []
    for first, size, group in layout.blocks:
        assert size <= BLOCK_ROWS
        covered += range(first, first + size)
        for row in layout.rows[first : first + size]:
            assert (None if group < 0 else layout.groups[group]) == (row.adapter_id if row else None)
    assert covered == list(range(len(layout.rows))) or (layout.blocks == () and not layout.groups)


def test_batches_of_nearly_one_size_have_few_shapes(rows: list[Row]) -> None:
    """A shape is what a CUDA graph is recorded for; eager steps and recordings cost several replays."""
    rng = random.Random(0)
    some = [rng.sample(rows, rng.randrange(470, 513)) for _ in range(200)]
    layouts = [arrange_ragged(batch, most=1024) for batch in some]
    assert len({(len(layout.rows), len(layout.blocks)) for layout in layouts}) <= 12
    exact = {
        (len(batch), sum(size > 0 for _, size, _ in layout.blocks)) for batch, layout in zip(some, layouts, strict=True)
    }
    assert len(exact) > 50
    assert sum(len(layout.rows) for layout in layouts) < 1.04 * sum(map(len, some))


def test_sizes_are_at_most_a_sixteenth_too_large() -> None:
    sizes = [stepped(count) for count in range(1, 2049)]
    assert sizes == sorted(sizes) and sizes[:32] == list(range(1, 33))
    assert all(count <= size <= 17 / 16 * count for count, size in enumerate(sizes, start=1))
    assert len(set(sizes[1024:])) == 16


def test_prompts_share_a_pass_unless_one_of_their_own_is_cheaper() -> None:
    """Against every way to let each begin behind as much as it knows, or as less known ones do."""
    rng = random.Random(4)
    for _ in range(200):
        known = {32 * level: rng.randrange(1, 20) for level in rng.sample(range(12), rng.randrange(1, 6))}
        cost = rng.choice((0, 1, 100, 700, 3000))

        def price(starts: dict[int, int], known: dict[int, int] = known, cost: int = cost) -> int:
            again = sum(count * (level - starts[level]) for level, count in known.items())
            return again + cost * len(set(starts.values()))

        ways = itertools.product(*([start for start in known if start <= level] for level in known))
        best = min(price(dict(zip(known, way, strict=True))) for way in ways)
        starts = shared_starts(known, pass_cost=cost)
        assert set(starts) == set(known) and all(starts[level] <= level for level in known)
        assert price(starts) == best
        if cost == 0:
            assert starts == {level: level for level in known}
    assert shared_starts({}, pass_cost=5) == {}
