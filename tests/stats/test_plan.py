"""bench/plan.py: its arithmetic against small cases counted by hand, and against caches that are really run."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from bench import plan as bench

from rune.models.memory import PUBLISHED, Shape

# 2 layers, hidden 4, 2 heads of 2, 1 key head: q 4, k and v 2 wide; feed-forward 8
TINY = Shape(layers=2, hidden=4, heads=2, kv_heads=1, ffn=8, vocab=10, tied=True, qkv_bias=False)
KNOWN = bench.Measured(
    tokens_per_second=1000.0,
    first_token_ms=1.0,
    bare_tokens_per_second=1000.0,
    load_ms=2.0,
    learn_seconds=0.5,
    requests_per_second=10.0,
    select_ms=4.0,
    two_gpus=2.0,
    sources=(),
)


def test_bytes_of_an_adapter_by_hand() -> None:
    # a rank of: q (4+4), k and v (4+2) each, o (4+4), gate and up (4+8) each, down (8+4) → 8+12+8+24+12 = 64 numbers
    assert bench.adapter_bytes(TINY, 3, "bfloat16") == 2 * 64 * 3 * 2
    assert bench.adapter_bytes(TINY, 3, "float32") == 2 * bench.adapter_bytes(TINY, 3, "bfloat16")


def test_bytes_of_an_adapter_on_the_device_by_hand_and_as_measured() -> None:
    # B of q, k and v together: 3 times a rank's height over 4 + 2 + 2 outputs, so 2 · 8 more a rank and layer
    assert bench.resident_bytes(TINY, 3, "bfloat16") == 2 * (64 + 16) * 3 * 2
    measured = json.loads((bench.ROOT / "results" / "bench-adapters-cpu.json").read_text())["after"]
    shape = PUBLISHED[measured["model"]]
    found = bench.resident_bytes(shape, measured["rank"], measured["dtype"]) / 1e6
    assert round(found, 1) == measured["megabytes_an_adapter"]


def test_what_an_adapter_has_alone_by_hand() -> None:
    # outputs: q 4, k and v 2 each, o 4, gate and up 8 each, down 4 → 32, for half of the ranks
    assert bench.own_bytes(TINY, 4, "bfloat16") == 2 * 2 * 32 * 2


def test_bytes_of_a_token_by_hand() -> None:
    assert bench.kv_bytes(TINY, "bfloat16") == 2 * 2 * 1 * 2 * 2
    assert bench.kv_bytes(PUBLISHED["qwen2.5-coder-0.5b-instruct"], "bfloat16") == 12288  # 24 layers · 2 · 128 · 2


def test_dollars_by_hand() -> None:
    assert bench.dollars_a_million(3.6, 1000.0) == pytest.approx(1.0)  # 3.6 million tokens an hour


def test_popularity_by_hand() -> None:
    assert bench.popularity(3, 1.0) == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert bench.popularity(4, 0.0) == pytest.approx([0.25] * 4)


def test_alike_adapters_are_found_as_often_as_there_are_places() -> None:
    share_N = bench.popularity(1000, 0.0)
    for places in (1, 10, 500):
        assert bench.hit_rate(share_N, places) == pytest.approx(places / 1000, rel=1e-6)
    assert bench.hit_rate(share_N, 0) == 0 and bench.hit_rate(share_N, 1000) == 1


@pytest.mark.parametrize(("s", "places"), [(0.7, 30), (1.0, 10), (1.0, 100), (1.3, 40)])
def test_the_hit_rate_is_that_of_a_cache_that_is_run(s: float, places: int) -> None:
    share_N = bench.popularity(500, s)
    rng = np.random.default_rng(1)
    cache: OrderedDict[int, None] = OrderedDict()
    hits, asked = 0, rng.choice(500, size=60_000, p=share_N)
    for number, adapter in enumerate(asked.tolist()):
        if adapter in cache:
            cache.move_to_end(adapter)
            hits += number >= 10_000
        else:
            cache[adapter] = None
            if len(cache) > places:
                cache.popitem(last=False)
    assert bench.hit_rate(share_N, places) == pytest.approx(hits / 50_000, abs=0.01)


SMALL = bench.Assumptions(
    adapters=100,
    gpus=4,
    gpus_a_host=2,
    rank=1,
    gpu_gb=1e-5,
    memory_share=1.0,
    rows=2,
    window=5,
    host_gb=1e-5,
    host_share=0.512,
    network_gbit=8e-6,
    storage_gbyte=1e-6,
    zipf=0.0,
    prompt_tokens=1.0,
    answer_tokens=2.0,
    load=0.5,
    gpu_dollars_an_hour=3.6,
    learned_a_day=86400,
)


def test_a_small_plan_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.PUBLISHED, bench.MEASURED_MODEL, TINY)
    found = bench.plan("tiny", TINY, SMALL, KNOWN)
    weights = 2 * TINY.parameters
    assert found.kv_gb == pytest.approx(2 * 5 * 16 / 1e9)
    assert found.places == (10_000 - weights - 160) // 320 and 0 < found.places < 100
    assert found.places_with_pages == (10_000 - weights - 2 * 3 * 16) // 320
    assert found.host_places == 2 * 5120 // 256
    assert found.requests == pytest.approx(4 * 1000 * 0.5 / 2)
    on_devices = 4 * found.places
    assert found.hit_by_residency == pytest.approx(min(1.0, on_devices / 100))
    assert found.hit_at_random == pytest.approx(found.places / 100)
    assert found.misses_at_random == pytest.approx(1000 * (1 - found.places / 100))
    assert found.cold_ms == pytest.approx(1000 * 256 / 1000 + 2)  # a network of 1,000 bytes a second
    assert found.dollars_a_million == pytest.approx(2.0)
    limits = {limit.what: limit for limit in found.limits}
    assert limits["requests through one server process"].headroom == pytest.approx(10 / 1000)
    assert limits["choosing an adapter in the registry (SQLite, one reader)"].headroom == pytest.approx(250 / 1000)
    assert limits["learning (one GPU's hypernetwork)"].headroom == pytest.approx(2.0)
    assert [limit.headroom for limit in found.limits] == sorted(limit.headroom for limit in found.limits)


def test_what_the_devices_lack_comes_from_hosts_and_then_from_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.PUBLISHED, bench.MEASURED_MODEL, TINY)
    many = replace(SMALL, adapters=1000)
    found = bench.plan("tiny", TINY, many, KNOWN)
    device, host = 4 * found.places / 1000, found.host_places / 1000
    assert found.hit_by_residency == pytest.approx(device)
    assert found.host_hit == pytest.approx(host / (1 - device))
    assert found.misses == pytest.approx(1000 * (1 - device))
    assert found.storage_gb_per_second == pytest.approx(1000 * (1 - device - host) * 256 / 1e9)


def test_more_rows_than_a_device_carries_leave_no_place_and_break_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bench.PUBLISHED, bench.MEASURED_MODEL, TINY)
    found = bench.plan("tiny", TINY, replace(SMALL, rows=10_000), KNOWN)
    assert found.places == 0 and found.hit_by_residency == 0
    memory = next(limit for limit in found.limits if limit.what.startswith("device memory"))
    assert memory.headroom < 1


def test_a_slower_model_is_asked_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {name: PUBLISHED[name] for name in bench.MODELS}
    plans = [bench.plan(name, shape, bench.Assumptions(), bench.measured()) for name, shape in shapes.items()]
    assert [round(p.tokens_per_second * shapes[p.model].parameters) for p in plans] == [
        round(plans[0].tokens_per_second * shapes[plans[0].model].parameters)
    ] * 3
    assert all(math.isfinite(p.requests) for p in plans)


def test_the_page_and_the_record_are_what_the_script_writes() -> None:
    assert bench.main(["--check"]) == 0


def test_the_page_is_changed_between_its_markers_alone() -> None:
    text = f"before\n{bench.BEGIN}\nold\n{bench.END}\nafter\n"
    assert bench.page(text, "new") == f"before\n{bench.BEGIN}\nnew\n{bench.END}\nafter\n"


@pytest.mark.parametrize("argument", ["--gpus=0", "--rows=-1", "--memory-share=nan"])
def test_what_no_plan_can_be_made_of_is_refused(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main([argument])
    assert caught.value.code == 2 and "give a number above 0" in capsys.readouterr().err
