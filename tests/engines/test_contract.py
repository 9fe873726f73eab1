"""What every engine promises, run over every file in engines/. See `types.Engine`."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from rune import plugins
from rune.adapters import peft
from rune.engines.shared.streams import gather, stream
from rune.errors import AdapterError
from rune.types import AdapterRef, Completion, Engine, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, World

SAMPLING = Sampling(temperature=1.0, max_new_tokens=12, top_k=30)

MARKS = {
    "vllm": pytest.mark.vllm,
    "ray": pytest.mark.check,
}  # the one in an environment of its own, the other slow to start
ENGINES = [pytest.param(name, marks=MARKS.get(name, ())) for name in plugins.available("engines")]
pytestmark = pytest.mark.parametrize("engine", ENGINES, indirect=True)


def ask(adapter: AdapterRef | None, label: str, sampling: Sampling = SAMPLING) -> list[Request]:
    return [
        Request(key=f"{label}/{i}", prompt=prompt, sampling=sampling, seed=100 * i, n=2, adapter=adapter)
        for i, prompt in enumerate(PROMPTS)
    ]


def done(engine: Engine, requests: list[Request]) -> dict[tuple[str, int], Completion]:
    found = list(engine.complete(requests))
    assert len(found) == sum(request.n for request in requests)
    return {(completion.key, completion.draw): completion for completion in found}


def test_two_strong_adapters_and_the_base_in_one_batch_equal_three_runs(engine: Engine, world: World) -> None:
    first, second = world.adapters
    parts = [ask(None, "base"), ask(first, "first"), ask(second, "second")]
    mixed = done(engine, [request for trio in zip(*parts, strict=True) for request in trio])
    apart = {key: completion for part in parts for key, completion in done(engine, part).items()}
    assert mixed == apart
    texts = [
        [mixed[f"{label}/{i}", d].text for i in range(3) for d in range(2)] for label in ("base", "first", "second")
    ]
    assert texts[0] != texts[1] and texts[0] != texts[2] and texts[1] != texts[2]


def test_an_unknown_adapter_is_an_error_and_never_the_base_model(engine: Engine, world: World) -> None:
    stranger = replace(world.adapters[0], adapter_id="0" * 64)
    with pytest.raises(AdapterError):
        list(engine.complete([*ask(None, "base"), *ask(stranger, "stranger")]))


def test_an_adapter_of_another_base_model_is_refused(engine: Engine, world: World) -> None:
    foreign = replace(world.adapters[0], base_model="f" * 64)
    with pytest.raises(AdapterError, match="made for"):
        list(engine.complete(ask(foreign, "foreign")))


def test_a_corrupt_adapter_is_one_clear_error(engine: Engine, world: World) -> None:
    """Its id is that of the bytes that are there: it is found, and no adapter."""
    folder = world.root / "corrupt"
    folder.mkdir(exist_ok=True)
    (folder / peft.CONFIG_FILE).write_bytes((world.folder(world.adapters[0]) / peft.CONFIG_FILE).read_bytes())
    (folder / peft.WEIGHTS_FILE).write_bytes(b"\x10" * 100)
    corrupt = replace(world.adapters[0], adapter_id=hashlib.sha256(b"\x10" * 100).hexdigest())
    with pytest.raises(AdapterError) as caught:
        list(engine.complete(ask(corrupt, "corrupt")))
    assert "\n" not in str(caught.value)
    assert done(engine, ask(None, "after"))


def test_the_same_seed_draws_the_same_text_and_another_draws_others(engine: Engine) -> None:
    requests = ask(None, "base")
    assert done(engine, requests) == done(engine, list(reversed(requests)))
    other = done(engine, [replace(request, seed=request.seed + 50) for request in requests])
    assert [c.text for c in other.values()] != [c.text for c in done(engine, requests).values()]


def test_draw_i_is_the_first_draw_of_seed_plus_i(engine: Engine, world: World) -> None:
    (request, *_) = ask(world.adapters[0], "first")
    both = done(engine, [request])
    (second,) = done(engine, [replace(request, seed=request.seed + 1, n=1)]).values()
    assert both[request.key, 1].text == second.text
    assert both[request.key, 1].seed == second.seed


def test_text_ends_before_the_first_stop_string(engine: Engine) -> None:
    free = done(engine, ask(None, "base"))
    long = max(free.values(), key=lambda completion: len(completion.text))
    middle = len(long.text) // 2
    stop = long.text[middle : middle + 2]
    cut = done(engine, ask(None, "base", replace(SAMPLING, stop=("never in there", stop))))[long.key, long.draw]
    assert cut.text == long.text[: long.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_submitted_request_gets_what_the_list_gets_whatever_is_drawn_beside_it(engine: Engine, world: World) -> None:
    first, second = world.adapters
    requests = [*ask(first, "first"), *ask(None, "base"), *ask(second, "second")]
    listed = done(engine, requests)
    streamed = {(completion.key, completion.draw): completion for completion in gather(engine, requests)}
    assert streamed == listed


def test_a_submitted_request_of_an_unknown_adapter_is_an_error_and_disturbs_no_other(
    engine: Engine, world: World
) -> None:
    good, stranger = ask(world.adapters[1], "good")[0], replace(world.adapters[0], adapter_id="0" * 32)
    expected = done(engine, [good])
    deltas = stream(engine, good)
    with pytest.raises(AdapterError):
        list(stream(engine, ask(stranger, "bad")[0]))
    texts = dict.fromkeys(range(good.n), "")
    for delta in deltas:
        texts[delta.draw] += delta.text
    assert texts == {draw: completion.text for (_, draw), completion in expected.items()}
