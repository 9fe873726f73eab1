"""The torch engine kept running: token by token, in any company, and rid of whoever hangs up."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import psutil
import pytest
import torch

from rune.adapters import peft
from rune.engines.local.torch_engine import TorchEngine
from rune.engines.shared.streams import gather, stream
from rune.errors import AdapterError, EngineError
from rune.models import loader
from rune.types import AdapterRef, Completion, Delta, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, World, random_adapter, torch_engine

SAMPLING = Sampling(temperature=1.0, max_new_tokens=24, top_k=40)
LONG = Sampling(temperature=1.0, max_new_tokens=3000)
PATIENCE = 60  # seconds; only a hang reaches it


@pytest.fixture(params=["paged", "static"])
def engine(world: World, request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    engine = torch_engine(world, max_rows=4, kv_layout=request.param)
    yield engine
    engine.close()


def asks(world: World, count: int, sampling: Sampling = SAMPLING) -> list[Request]:
    wears = [None, *world.adapters]
    return [
        Request(key=f"r{i}", prompt=PROMPTS[i % 3], sampling=sampling, seed=10 * i, n=1 + i % 2, adapter=wears[i % 3])
        for i in range(count)
    ]


def until(condition: object) -> None:
    ends = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.005)


def test_text_comes_token_by_token_and_adds_up_to_the_batch_answer(engine: TorchEngine, world: World) -> None:
    (request,) = asks(world, 1)
    (listed,) = engine.complete([request])
    deltas = list(stream(engine, request))
    assert "".join(delta.text for delta in deltas) == listed.text
    assert len(deltas) > 4 and deltas[-1].num_tokens == listed.num_tokens
    assert [delta.finish_reason for delta in deltas] == [""] * (len(deltas) - 1) + [listed.finish_reason]
    assert [d.num_tokens for d in deltas] == sorted(d.num_tokens for d in deltas)


def test_many_threads_each_get_their_own_answer(engine: TorchEngine, world: World) -> None:
    """More draws than rows and more adapters than one: what each hears is what it hears alone."""
    requests = asks(world, 18)
    listed = {(c.key, c.draw): c for c in engine.complete(requests)}
    heard: list[Completion] = []
    threads = [
        threading.Thread(target=lambda part=requests[i::6]: [heard.extend(gather(engine, [r])) for r in part])
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert {(c.key, c.draw): c for c in heard} == listed


def test_stop_strings_never_show_a_part_of_themselves(engine: TorchEngine, world: World) -> None:
    (request,) = asks(world, 1)
    (free,) = engine.complete([request])
    stop = free.text[len(free.text) // 2 :][:4]
    stopped = replace(request, sampling=replace(SAMPLING, stop=(stop,)))
    expected = free.text[: free.text.index(stop)]
    so_far = ""
    for delta in stream(engine, stopped):
        so_far += delta.text
        assert expected.startswith(so_far)
    assert so_far == expected and delta.finish_reason == "stop"


def test_a_request_that_is_cancelled_leaves_and_others_go_on(engine: TorchEngine, world: World) -> None:
    endless = replace(asks(world, 1, LONG)[0], n=4)
    engine.decoder.ends = frozenset()
    heard: list[Delta | Exception] = []
    ticket = engine.submit(endless, heard.append)
    until(lambda: heard)
    (beside,) = asks(world, 1)
    waits = threading.Thread(target=lambda: list(stream(engine, beside)))
    waits.start()  # all four rows are taken: it can only begin when they are given up
    until(lambda: engine.waiting)
    assert waits.is_alive()
    ticket.cancel()
    waits.join(PATIENCE)
    assert not waits.is_alive()
    until(lambda: not engine.decoder.busy)
    count = len(heard)
    assert not any(isinstance(one, Exception) or one.finish_reason for one in heard)
    list(stream(engine, beside))
    assert len(heard) == count and engine.stats.rows_alive == 0


def test_a_stream_that_is_dropped_half_way_is_cancelled(engine: TorchEngine, world: World) -> None:
    engine.decoder.ends = frozenset()
    deltas = stream(engine, asks(world, 1, LONG)[0])
    next(deltas)
    deltas.close()  # type: ignore[attr-defined]
    until(lambda: not engine.decoder.busy and engine.stats.rows_alive == 0)
    assert engine.stats.steps < 1000


def test_a_listener_that_raises_loses_its_request_and_nothing_else(engine: TorchEngine, world: World) -> None:
    engine.decoder.ends = frozenset()

    def gone(_: object) -> None:
        raise ConnectionError

    engine.submit(asks(world, 1, LONG)[0], gone)
    (request,) = asks(world, 1)
    assert list(stream(engine, request))[-1].finish_reason == "length"
    until(lambda: not engine.decoder.busy)


def test_adapters_beyond_the_places_take_turns_and_the_unused_one_leaves(world: World) -> None:
    refs = many_adapters(world, 5)
    engine = torch_engine(world, max_rows=8, max_adapters=2)
    alone = torch_engine(world)
    requests = [
        Request(key=f"{i}", prompt=PROMPTS[i % 3], sampling=replace(SAMPLING, temperature=0), seed=0, adapter=ref)
        for i, ref in enumerate(refs * 2)
    ]
    expected = {c.key: c.text for r in requests for c in alone.complete([r])}
    assert {c.key: c.text for c in gather(engine, requests)} == expected
    assert len(set(expected.values())) >= 5
    found = engine.residency
    assert len(found.resident) == 2 and found.places == 2
    assert found.loads >= 5 and found.evictions == found.loads - 2
    list(gather(engine, [requests[0]]))
    list(gather(engine, [requests[1]]))
    assert engine.residency.resident == (refs[0].adapter_id, refs[1].adapter_id)
    list(gather(engine, [requests[0]]))  # used again: the other one is now the one to leave
    list(gather(engine, [requests[2]]))
    assert engine.residency.resident == (refs[0].adapter_id, refs[2].adapter_id)
    engine.close()


def test_a_pinned_adapter_stays_and_where_all_are_pinned_a_request_is_told(world: World) -> None:
    refs = many_adapters(world, 4)
    engine = torch_engine(world, max_adapters=2)
    engine.pin_adapter(refs[0])
    requests = [replace(r, adapter=ref, n=1) for r, ref in zip(asks(world, 3), refs[1:], strict=True)]
    assert len(list(gather(engine, requests))) == 3
    assert refs[0].adapter_id in engine.residency.resident
    engine.pin_adapter(refs[1])
    with pytest.raises(AdapterError, match=r"all 2 are pinned; raise engine.settings.max_adapters"):
        list(gather(engine, requests[2:]))
    with pytest.raises(AdapterError, match="no room to pin"):
        engine.pin_adapter(refs[3])
    assert len(list(gather(engine, requests[:1]))) == 1
    engine.close()


def test_an_adapter_of_higher_rank_may_come_while_others_are_drawn(engine: TorchEngine, world: World) -> None:
    """It moves what is resident; rows under way must not notice."""
    loaded = loader.load(world.model, device="cpu", dtype="float32")
    (request,) = asks(world, 2)[1:]
    request = replace(request, sampling=replace(SAMPLING, max_new_tokens=60), n=1)
    (expected,) = engine.complete([request])
    deltas = stream(engine, request)
    texts = [next(deltas).text for _ in range(3)]
    engine.put_adapter("wide", random_adapter(loaded, seed=9, rank=32, base_model=world.model.digest))
    assert "".join(texts + [delta.text for delta in deltas]) == expected.text
    engine.drop_adapter("wide")
    assert "wide" not in engine.residency.resident


def test_a_wide_adapter_may_take_the_place_of_one_whose_row_was_cancelled(world: World) -> None:
    """Beside so many rows that no new one enters yet: the batch still has the cancelled row, whose adapter is gone."""
    engine = torch_engine(world, max_rows=32, max_adapters=1)
    engine.decoder.ends = frozenset()
    (small,) = asks(world, 1, LONG)
    heard: dict[str, list[Delta | Exception]] = {"base": [], "worn": [], "wide": []}
    wears = {"base": (None, 31), "worn": (world.adapters[0], 1), "wide": (world.adapters[1], 4)}
    tickets = {}
    for name, (adapter, n) in wears.items():
        if name == "wide":
            tickets["worn"].cancel()
        tickets[name] = engine.submit(replace(small, adapter=adapter, n=n), heard[name].append)
        until(lambda name=name: heard[name] or engine.residency.evictions)
    tickets["base"].cancel()
    until(lambda: heard["wide"])
    assert not any(isinstance(what, Exception) for told in heard.values() for what in told)
    tickets["wide"].cancel()
    engine.close()


def test_log_probabilities_are_the_models_own_in_a_list_and_in_a_stream(engine: TorchEngine, world: World) -> None:
    for request in asks(world, 3):
        request = replace(request, logprobs=4, n=1)
        (listed,) = engine.complete([request])
        tokens = [one.token for one in listed.logprobs]
        assert b"".join(tokens).decode(errors="replace") == listed.text
        (again,) = engine.logprobs([request.prompt], [""], [request.adapter])
        assert again == []
        ids = [engine.tokenizer.encode(request.prompt, add_special_tokens=False), _ids(engine, tokens)]
        module = _reference(world, request.adapter)
        logits = module(torch.tensor([ids[0] + ids[1]]))[0, len(ids[0]) - 1 : -1].log_softmax(-1)
        for one, position, token in zip(listed.logprobs, logits, ids[1], strict=True):
            best = position.topk(4)
            assert one.logprob == pytest.approx(position[token].item(), abs=1e-4)
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        beside = replace(asks(world, 3)[0], key="beside", logprobs=1, n=2, seed=77)
        (streamed,) = [c for c in gather(engine, [beside, request]) if c.key == request.key]
        assert [(o.token, len(o.top)) for o in streamed.logprobs] == [(t, 4) for t in tokens]
        assert [o.logprob for o in streamed.logprobs] == pytest.approx([o.logprob for o in listed.logprobs], abs=1e-4)


def test_what_does_not_fit_the_window_or_has_no_adapter_is_told_at_once(world: World) -> None:
    engine = torch_engine(world, window=64)
    (request,) = asks(world, 1)
    with pytest.raises(EngineError, match=r"has room for 64; shorten it, or raise engine.settings.window"):
        engine.submit(replace(request, sampling=replace(SAMPLING, max_new_tokens=70)), print)
    with pytest.raises(AdapterError, match="made for base model"):
        engine.submit(replace(request, adapter=replace(world.adapters[0], base_model="f" * 64)), print)
    with pytest.raises(AdapterError, match="unknown adapter"):
        list(stream(engine, replace(request, adapter=replace(world.adapters[0], adapter_id="x"))))
    assert list(stream(engine, request))
    engine.close()


def test_a_batch_that_does_not_fit_in_memory_goes_on_smaller_and_repeats_nothing(
    engine: TorchEngine, world: World
) -> None:
    requests = asks(world, 4)
    listed = {(c.key, c.draw): c for c in engine.complete(requests)}
    forward, calls = engine.decoder.device._forward, []

    def watched(layout: object, looks: object) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise MemoryError("not now")
        forward(layout, looks)  # type: ignore[arg-type]

    engine.decoder.device._forward = watched  # type: ignore[method-assign]
    assert {(c.key, c.draw): c for c in gather(engine, requests)} == listed
    assert engine.stats.halvings == 1


@pytest.mark.parametrize("by_submit", [False, True])
def test_what_began_with_little_memory_says_so_and_takes_more_rows_when_some_is_free(
    world: World, by_submit: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same texts, none of them drawn twice."""
    requests = [replace(asked, n=1, seed=seed) for seed in range(8) for asked in asks(world, 2)]
    expected = {(c.seed, c.key): c.text for c in torch_engine(world).complete(requests)}
    engine = torch_engine(world, max_rows=16, window=64, memory_fraction=1.0, prefix_bytes=0)
    decoder = engine.decoder
    decoder.limits = replace(decoder.limits, look_seconds=0.0)
    free, at_once, drawn = [0], [], 0

    class Memory(NamedTuple):
        available: int

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(free[0]))
    completions = gather(engine, requests) if by_submit else engine.complete(requests)
    found = {}
    for c in completions:
        at_once.append(decoder.device.rows)
        drawn += c.num_tokens
        found[c.seed, c.key] = c.text
        if len(found) == 4:
            free[0] = 1 << 40
    assert found == expected
    assert at_once[0] == 1 and max(at_once) == 16 and set(at_once) <= {0, 1, 16}  # 0: given back
    assert engine.stats.tokens == drawn and engine.stats.halvings == 0
    said = capsys.readouterr().err
    assert said.count("GB of memory are free on cpu: 1 of 16 rows") == 1 and "16 rows at once, 1 before" in said
    engine.close()


def test_little_memory_is_one_line_that_says_how_many_rows_fit(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Memory(NamedTuple):
        available: int = 0

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    engine = torch_engine(world, max_rows=16)
    requests = [replace(asked, n=8) for asked in asks(world, 2)]
    for _ in range(2):
        assert len(list(engine.complete(requests))) == 16
    said = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert len(said) == 1 and "0.0 GB of memory are free on cpu: 1 of 16 rows fit at once" in said[0]
    assert "max_new_tokens" in said[0] and "top" in said[0]


def test_an_engine_that_breaks_tells_everyone_and_takes_no_more(engine: TorchEngine, world: World) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("device-side assert\nand more lines")

    engine.decoder.device._forward = broken  # type: ignore[method-assign]
    # The later ones may come when it has stopped already.
    with pytest.raises(EngineError, match=r"^the engine has stopped: device-side assert(; start it again)?$"):
        list(gather(engine, asks(world, 3)))
    with pytest.raises(EngineError, match="start it again"):
        engine.submit(asks(world, 1)[0], print)


def test_closing_tells_whoever_waits(world: World) -> None:
    engine = torch_engine(world, max_rows=2)
    engine.decoder.ends = frozenset()
    heard: list[Delta | Exception] = []
    for request in asks(world, 3, LONG):
        engine.submit(request, heard.append)
    until(lambda: heard)
    engine.close()
    errors = [one for one in heard if isinstance(one, Exception)]
    assert len(errors) == 3 and all(isinstance(error, EngineError) for error in errors)


def test_a_list_and_a_session_do_not_share_the_decoder(engine: TorchEngine, world: World) -> None:
    requests = asks(world, 3)
    drawing = engine.complete(requests)
    next(drawing)
    with pytest.raises(EngineError, match="a list of requests is being drawn"):
        engine.submit(requests[0], print)
    rest = list(drawing)
    assert list(stream(engine, requests[0])) and rest


def many_adapters(world: World, count: int) -> list[AdapterRef]:
    loaded = loader.load(world.model, device="cpu", dtype="float32")
    return [
        peft.write_peft(world.root / f"many {i}", random_adapter(loaded, seed=100 + i, base_model=world.model.digest))
        for i in range(count)
    ]


def _ids(engine: TorchEngine, tokens: list[bytes]) -> list[int]:
    table = {engine._detokenizer.name_of(i): i for i in range(len(engine.tokenizer))}
    return [table[token] for token in tokens]


def _reference(world: World, adapter: AdapterRef | None) -> object:
    """Transformers and PEFT: logits [T, V] of a text."""
    from peft import PeftModel

    model = loader.load(world.model, device="cpu", dtype="float32")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, world.folder(adapter))

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    return logits


def test_what_is_drawn_under_a_dropped_adapter_ends_under_it(world: World) -> None:
    """And its name is unknown from then on, though its weights are still there."""
    engine = torch_engine(world, max_rows=4, max_adapters=2)
    own = engine.put_adapter("own", random_adapter(engine.network.model, seed=7))
    sampling = replace(SAMPLING, max_new_tokens=60)
    request = replace(asks(world, 1, sampling)[0], adapter=own)
    (expected,) = engine.complete([request])
    assert expected.text != next(engine.complete([replace(request, adapter=None)])).text
    deltas = stream(engine, request)
    texts = [next(deltas).text for _ in range(3)]
    engine.drop_adapter("own")
    assert "own" not in engine.residency.resident
    with pytest.raises(AdapterError, match="requests are being drawn under an adapter own; put it when"):
        engine.put_adapter("own", random_adapter(engine.network.model, seed=8))
    heard: list[Delta | Exception] = []
    engine.submit(replace(request, key="late"), heard.append)
    others = [replace(r, key=f"o{i}", adapter=world.adapters[i % 2]) for i, r in enumerate(asks(world, 4)[1:])]
    assert "".join(texts + [delta.text for delta in deltas]) == expected.text
    until(lambda: heard)
    assert "unknown adapter own" in str(heard[0]) and len(heard) == 1
    assert {c.key for c in gather(engine, others)} == {other.key for other in others}  # it goes on
    again = engine.put_adapter("own", random_adapter(engine.network.model, seed=8))
    assert next(iter(gather(engine, [replace(request, adapter=again)]))).text != expected.text
    engine.close()


def test_a_folders_adapter_dropped_while_it_is_drawn_is_read_anew(engine: TorchEngine, world: World) -> None:
    request = replace(asks(world, 1)[0], adapter=world.adapters[0], sampling=replace(SAMPLING, max_new_tokens=60))
    (expected,) = engine.complete([request])
    loads = engine.residency.loads
    deltas = stream(engine, request)
    texts = [next(deltas).text]
    engine.drop_adapter(world.adapters[0].adapter_id)
    (second,) = gather(engine, [replace(request, key="second")])
    assert "".join(texts + [delta.text for delta in deltas]) == second.text == expected.text
    assert engine.residency.loads == loads + 1


def test_an_adapter_dropped_while_a_list_is_drawn_ends_under_it(world: World) -> None:
    engine = torch_engine(world, max_rows=2)
    own = engine.put_adapter("own", random_adapter(engine.network.model, seed=7))
    requests = [replace(r, adapter=own) for r in asks(world, 6)]
    expected = {(c.key, c.draw): c.text for c in engine.complete(requests)}
    drawing = engine.complete(requests)
    found = [next(drawing)]
    engine.drop_adapter("own")
    found += drawing
    assert {(c.key, c.draw): c.text for c in found} == expected
    with pytest.raises(AdapterError, match="unknown adapter own"):
        list(engine.complete(requests[:1]))
