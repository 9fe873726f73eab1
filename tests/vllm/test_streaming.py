"""The engine `vllm` over a real vLLM: tokens as they are drawn, requests that join, and those that leave."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.engines import torch as torch_engine
from rune.engines import vllm
from rune.engines.shared.streams import joined, stream
from rune.errors import EngineError
from rune.models import loader
from rune.types import AdapterRef, Delta, ModelRef, Request, Sampling
from tests.engines.engine_helpers import PROMPTS, random_adapter, wider_tiny_model

pytestmark = pytest.mark.vllm
SHORT, LONG = 12, 480
SECONDS = 120


class Listening:
    """All that is heard of one submitted request."""

    def __init__(self, engine: vllm.VllmEngine, request: Request) -> None:
        self.request, self.heard = request, list[Delta | Exception]()
        self._coming: queue.SimpleQueue[Delta | Exception] = queue.SimpleQueue()
        self.ticket = engine.submit(request, self._coming.put)

    def until(self, enough: Callable[[list[Delta]], bool]) -> list[Delta]:
        while not enough(self.deltas):
            self.heard.append(self._coming.get(timeout=SECONDS))
        return self.deltas

    def ended(self) -> list[Delta]:
        return self.until(lambda deltas: sum(bool(one.finish_reason) for one in deltas) == self.request.n)

    def catch_up(self) -> list[Delta]:
        """What has come by now, without waiting."""
        while not self._coming.empty():
            self.heard.append(self._coming.get())
        return self.deltas

    @property
    def deltas(self) -> list[Delta]:
        for what in self.heard:
            if isinstance(what, Exception):
                raise what
        return [what for what in self.heard if isinstance(what, Delta)]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return wider_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def adapters(tiny_model: ModelRef, root: Path) -> list[AdapterRef]:
    loaded = loader.load(tiny_model, device="cpu", dtype="float32")
    return [
        peft.write_peft(root / str(s), random_adapter(loaded, seed=s, rank=4 * s, base_model=tiny_model.digest))
        for s in (1, 2)
    ]


@pytest.fixture(scope="module")
def engine(tiny_model: ModelRef, adapters: list[AdapterRef], root: Path) -> Iterator[vllm.VllmEngine]:
    config = vllm.Config(max_loras=2, max_cpu_loras=4, max_lora_rank=8, max_model_len=512, options={"max_num_seqs": 16})
    built = vllm.build(config, model=tiny_model, device="cpu", dtype="float32", adapters=Folders(root))
    yield built
    built.close()


def ask(key: str, prompt: str, tokens: int, **changes: object) -> Request:
    sampling = Sampling(temperature=0.0, max_new_tokens=tokens)
    return Request(**{"key": key, "prompt": prompt, "sampling": sampling, "seed": 0} | changes)  # type: ignore[arg-type]


def mixed(adapters: list[AdapterRef], tokens: int) -> list[Request]:
    return [
        ask(f"{i}/{j}", prompt, tokens, adapter=adapter)
        for i, prompt in enumerate(PROMPTS)
        for j, adapter in enumerate([None, *adapters])
    ]


def long_one(engine: vllm.VllmEngine) -> Request:
    """A request that goes on to its limit, so that there is time to do something meanwhile."""
    for seed in range(20):
        sampling = Sampling(temperature=1.0, max_new_tokens=LONG)
        request = ask("long", PROMPTS[0], LONG, seed=seed, sampling=sampling)
        (drawn,) = engine.complete([request])
        if drawn.num_tokens == LONG:
            return request
    raise AssertionError("none goes on for long")


def test_requests_under_two_adapters_and_none_drawn_together_say_what_they_say_apart(
    engine: vllm.VllmEngine, tiny_model: ModelRef, adapters: list[AdapterRef], root: Path
) -> None:
    requests = mixed(adapters, SHORT)
    listening = [Listening(engine, request) for request in requests]
    together = {one.request.key: joined(one.request.key, one.ended()) for one in listening}
    assert together == {one.key: one for one in engine.complete(requests)}
    ours = torch_engine.build(
        torch_engine.Config(), model=tiny_model, device="cpu", dtype="float32", adapters=Folders(root)
    )
    direct = {one.key: one.text for one in ours.complete(requests)}
    assert {key: one.text for key, one in together.items()} == direct
    assert len(set(direct.values())) > 3


def test_the_base_under_way_is_unmoved_by_adapters_that_join_it(
    engine: vllm.VllmEngine, adapters: list[AdapterRef]
) -> None:
    request = long_one(engine)
    (alone,) = engine.complete([request])
    listening = Listening(engine, request)
    listening.until(lambda deltas: len(deltas) >= 5)
    joining = [Listening(engine, ask(f"{i}", PROMPTS[1], SHORT, adapter=one)) for i, one in enumerate(adapters)]
    for one in joining:
        one.ended()
    assert not any(one.finish_reason for one in listening.catch_up())  # they were drawn beside it
    assert joined("long", listening.ended()) == alone


def test_a_first_token_is_heard_long_before_the_last_and_a_short_request_passes_a_long_one(
    engine: vllm.VllmEngine,
) -> None:
    first = Listening(engine, long_one(engine))
    begun = first.until(lambda deltas: len(deltas) >= 3)
    assert [one.finish_reason for one in begun] == [""] * len(begun) and begun[-1].num_tokens < LONG
    second = Listening(engine, ask("short", PROMPTS[1], SHORT))
    second.ended()
    assert not any(one.finish_reason for one in first.catch_up())
    assert first.ended()[-1].num_tokens == LONG
    assert len(first.deltas) > LONG / 4  # piece by piece, though tokens that wait together come together


def test_a_request_that_nobody_waits_for_is_aborted_in_vllm(engine: vllm.VllmEngine) -> None:
    request = long_one(engine)
    deltas = stream(engine, Request(**{name: getattr(request, name) for name in Request.__slots__} | {"n": 3}))
    next(deltas)
    deltas.close()  # type: ignore[attr-defined]
    unfinished = engine._vllm.output_processor.get_num_unfinished_requests
    end = time.monotonic() + SECONDS
    while unfinished():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not engine.broken
    assert len(list(engine.complete([ask("after", PROMPTS[0], SHORT)]))) == 1


def test_stop_strings_seeds_and_n_are_those_of_a_list(engine: vllm.VllmEngine, adapters: list[AdapterRef]) -> None:
    sampling = Sampling(temperature=1.0, max_new_tokens=60, top_p=0.95, top_k=40)
    request = ask("n", PROMPTS[0], 0, sampling=sampling, seed=3, n=4, adapter=adapters[0])
    free = {one.draw: one for one in engine.complete([request])}
    stop = free[0].text[5:7]
    assert len(stop) == 2
    sampling = Sampling(temperature=1.0, max_new_tokens=60, top_p=0.95, top_k=40, stop=(stop,))
    request = ask("n", PROMPTS[0], 0, sampling=sampling, seed=3, n=4, adapter=adapters[0])
    listed = {one.draw: one for one in engine.complete([request])}
    heard = Listening(engine, request).ended()
    streamed = {i: joined("n", [one for one in heard if one.draw == i]) for i in range(4)}
    assert streamed == listed
    assert streamed[0].text == free[0].text.partition(stop)[0] and streamed[0].finish_reason == "stop"
    assert [streamed[i].seed for i in range(4)] == [3, 4, 5, 6]
    assert len({one.text for one in streamed.values()}) > 1


def test_a_prefix_is_shared_under_one_salt_alone(engine: vllm.VllmEngine) -> None:
    """vLLM counts what it took from its prefix cache; requests of another salt take nothing."""
    prompt = "".join(PROMPTS) * 3
    cached: list[int] = []
    generate = engine._vllm.generate

    async def counted(*given: object, **named: object) -> object:
        async for output in generate(*given, **named):
            if output.outputs[0].finish_reason:
                cached.append(output.num_cached_tokens)
            yield output

    engine._vllm.generate = counted
    try:
        for salt in ("a", "a", "b"):
            list(stream(engine, ask("salted", prompt, 2, salt=salt)))
    finally:
        engine._vllm.generate = generate
    assert cached[0] == 0 and cached[1] > 0 and cached[2] == 0


def test_a_prompt_that_does_not_fit_is_refused_alone(engine: vllm.VllmEngine) -> None:
    with pytest.raises(EngineError, match="vLLM failed"):
        list(stream(engine, ask("too long", PROMPTS[0] * 200, SHORT)))
    assert list(stream(engine, ask("after", PROMPTS[0], SHORT)))[-1].finish_reason
