"""The engine `vllm` over a stand-in of vLLM's asynchronous engine: what is asked of it, and when.

The stand-in draws a token for each request that is in its batch whenever the test lets it take a step. What vLLM itself
answers is held to the contract, and to the torch engine, in tests/vllm.
"""

from __future__ import annotations

import asyncio
import enum
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.engines import vllm
from rune.engines.shared.streams import joined, stream
from rune.errors import AdapterError, EngineError
from rune.types import AdapterRef, Delta, ModelRef, Request, Sampling

SAMPLING = Sampling(temperature=0.7, max_new_tokens=3, top_p=0.9, stop=("END",))
SECONDS = 20


class Kind(enum.Enum):
    DELTA = 1
    FINAL_ONLY = 2


class LoRARequest(SimpleNamespace):
    def __init__(self, name: str, number: int, path: str) -> None:
        super().__init__(name=name, number=number, path=path)


class AsyncLLM:
    """Each draw says "0 ", "1 ", … until its limit of tokens; `fault` ends the one that has just drawn."""

    made: AsyncLLM
    refuses_to_start = ""

    def __init__(self, options: dict[str, Any], context: str) -> None:
        self.options, self.context = options, context
        self.running: dict[str, SimpleNamespace] = {}
        self.added: list[SimpleNamespace] = []
        self.aborted: list[SimpleNamespace] = []
        self.errored = self.stopped = False
        self.fault: dict[int, Exception | str] = {}  # seed → what becomes of the draw at its first token
        self._loop = asyncio.get_running_loop()

    @classmethod
    def from_engine_args(cls, args: SimpleNamespace, *, usage_context: str) -> AsyncLLM:
        if cls.refuses_to_start:
            raise RuntimeError(cls.refuses_to_start)
        cls.made = cls(vars(args), usage_context)
        return cls.made

    def get_tokenizer(self) -> Any:
        return lambda text, add_special_tokens: {"input_ids": [ord(letter) for letter in text]}

    async def generate(
        self, prompt: dict[str, Any], params: SimpleNamespace, name: str, *, lora_request: LoRARequest | None
    ) -> AsyncIterator[SimpleNamespace]:
        assert name not in self.running
        row = SimpleNamespace(prompt=prompt, params=params, lora=lora_request, steps=asyncio.Queue())
        self.running[name] = row
        self.added.append(row)
        try:
            text = ""
            for number in range(params.max_tokens):
                await row.steps.get()
                end = self.fault.get(params.seed, "length" if number + 1 == params.max_tokens else None)
                if isinstance(end, Exception):
                    raise end
                text += f"{number} "
                if params.output_kind is Kind.DELTA:
                    yield said(f"{number} ", [number], end)
                elif end:
                    yield said(text, list(range(number + 1)), end)
                if end:
                    return
        except asyncio.CancelledError:
            self.aborted.append(row)
            raise
        finally:
            del self.running[name]

    def step(self, times: int = 1) -> None:
        """From the test's thread: a token for each row that is in the batch now."""
        for _ in range(times):
            self._loop.call_soon_threadsafe(lambda: [row.steps.put_nowait(None) for row in self.running.values()])

    def shutdown(self) -> None:
        self.stopped = True


def said(text: str, tokens: list[int], end: str | None) -> SimpleNamespace:
    return SimpleNamespace(outputs=[SimpleNamespace(text=text, token_ids=tokens, finish_reason=end)])


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": SimpleNamespace},
        "vllm.sampling_params": {"RequestOutputKind": Kind},
        "vllm.lora.request": {"LoRARequest": LoRARequest},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": SimpleNamespace},
        "vllm.usage.usage_lib": {"UsageContext": SimpleNamespace(LLM_CLASS="list")},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
    }
    for name, contents in parts.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def model(tmp_path: Path) -> ModelRef:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"intermediate_size": 6, "hidden_size": 4}')
    return ModelRef(name="tiny", path=str(folder), digest="d" * 64, source="local")


@pytest.fixture
def adapter(model: ModelRef, tmp_path: Path) -> AdapterRef:
    pair = peft.Pair(torch.ones(6, 2), torch.ones(2, 4))
    pairs = {"model.layers.0.mlp.down_proj": pair}
    return peft.write_peft(tmp_path / "one", peft.Adapter(pairs=pairs, scale=1.0, base_model=model.digest))


@pytest.fixture
def engine(model: ModelRef, adapter: AdapterRef, tmp_path: Path) -> Iterator[vllm.VllmEngine]:
    built = build(model, tmp_path, device="cuda")
    yield built
    built.close()


def build(model: ModelRef, root: Path, *, device: str, **settings: Any) -> vllm.VllmEngine:
    config = vllm.Config(**settings)
    return vllm.build(config, model=model, device=device, dtype="float32", adapters=Folders(root / "one"))


def ask(key: str = "a", **changes: Any) -> Request:
    return replace(Request(key=key, prompt="xy", sampling=SAMPLING, seed=7), **changes)


class Listening:
    """What was heard of one submitted request."""

    def __init__(self, engine: vllm.VllmEngine, request: Request) -> None:
        self._heard: queue.SimpleQueue[Delta | Exception] = queue.SimpleQueue()
        self.ticket = engine.submit(request, self._heard.put)

    def next(self) -> Delta | Exception:
        return self._heard.get(timeout=SECONDS)

    def delta(self) -> Delta:
        what = self.next()
        assert isinstance(what, Delta), what
        return what

    def error(self) -> EngineError:
        """The first one; tokens that came before it are passed over."""
        while isinstance(what := self.next(), Delta):
            pass
        assert isinstance(what, EngineError), what
        return what

    @property
    def silent(self) -> bool:
        return self._heard.empty()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_token_is_heard_when_it_is_drawn_and_a_request_joins_those_under_way(engine: vllm.VllmEngine) -> None:
    inside = AsyncLLM.made
    first = Listening(engine, ask(seed=1))
    until(lambda: len(inside.running) == 1)
    inside.step()
    assert first.delta() == Delta(draw=0, seed=1, text="0 ", num_tokens=1)
    second = Listening(engine, ask(seed=2))
    until(lambda: len(inside.running) == 2)  # the first has two tokens to go
    inside.step()
    assert (first.delta().text, second.delta().text) == ("1 ", "0 ")
    inside.step()
    assert first.delta() == Delta(draw=0, seed=1, text="2 ", num_tokens=3, finish_reason="length")
    inside.step()
    assert [second.delta().finish_reason, second.delta().finish_reason] == ["", "length"]
    assert first.silent and second.silent and not inside.aborted


def test_a_list_says_what_a_stream_says_and_has_no_parts(engine: vllm.VllmEngine, adapter: AdapterRef) -> None:
    inside = AsyncLLM.made
    requests = [ask("worn", adapter=adapter, n=2), ask("base")]
    with steps(inside):
        drawn = list(engine.complete(requests))
        deltas = list(stream(engine, requests[1]))
    assert [(one.key, one.draw, one.seed) for one in drawn] == [("base", 0, 7), ("worn", 0, 7), ("worn", 1, 8)]
    assert {one.text for one in drawn} == {"0 1 2 "} and {one.num_tokens for one in drawn} == {3}
    assert len(deltas) == 3 and joined("base", deltas) == drawn[0]
    kinds = [row.params.output_kind for row in inside.added]
    assert kinds == [Kind.FINAL_ONLY] * 3 + [Kind.DELTA]


@contextmanager
def steps(inside: AsyncLLM) -> Iterator[None]:
    """Another thread lets the stand-in draw, while this one waits for what is drawn."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.001):
            inside.step()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_chunks_are_handed_over_one_after_another(model: ModelRef, tmp_path: Path) -> None:
    engine = build(model, tmp_path, device="cuda", chunk=2)
    inside = AsyncLLM.made
    drawing = engine.complete([ask(n=3)])
    with steps(inside):
        assert next(drawing).text == "0 1 2 " and len(inside.added) == 2
        assert len(list(drawing)) == 2 and len(inside.added) == 3
    engine.close()


def test_vllm_aborts_what_nobody_waits_for(engine: vllm.VllmEngine) -> None:
    inside = AsyncLLM.made
    leaves, stays = Listening(engine, ask(n=2, seed=1)), Listening(engine, ask(seed=5))
    until(lambda: len(inside.running) == 3)
    inside.step()
    assert {leaves.delta().draw, leaves.delta().draw} == {0, 1}
    leaves.ticket.cancel()
    until(lambda: len(inside.running) == 1)
    assert sorted(row.params.seed for row in inside.aborted) == [1, 2]
    inside.step(2)
    assert [stays.delta().text for _ in range(3)] == ["0 ", "1 ", "2 "] and leaves.silent
    stays.ticket.cancel()  # it is over: nothing to abort
    assert len(inside.aborted) == 2


def test_a_list_that_is_dropped_is_aborted(engine: vllm.VllmEngine) -> None:
    inside = AsyncLLM.made
    inside.fault[1] = "stop"  # one draw ends at its first token
    drawing = engine.complete([ask(seed=1), ask(seed=3)])
    waits = threading.Thread(target=lambda: (until(lambda: len(inside.running) == 2), inside.step()))
    waits.start()
    done = next(drawing)
    waits.join()
    assert (done.seed, done.finish_reason, done.num_tokens) == (1, "stop", 1)
    drawing.close()  # type: ignore[attr-defined]
    until(lambda: not inside.running)
    assert [row.params.seed for row in inside.aborted] == [3]


def test_a_listener_that_fails_has_left(engine: vllm.VllmEngine) -> None:
    inside = AsyncLLM.made

    def gone(_: object) -> None:
        raise ValueError("gone")

    engine.submit(ask(seed=1), gone)
    until(lambda: len(inside.running) == 1)
    inside.step()
    until(lambda: [row.params.seed for row in inside.aborted] == [1])
    with steps(inside):
        assert list(stream(engine, ask()))[-1].finish_reason == "length"


def test_a_fault_is_heard_once_by_its_own_request(engine: vllm.VllmEngine) -> None:
    inside = AsyncLLM.made
    hidden = RuntimeError()
    hidden.__cause__ = ValueError("the prompt is too long\nsecond line")
    inside.fault = {1: hidden, 21: "abort"}
    broken, cut, well = (Listening(engine, ask(seed=seed, n=2)) for seed in (1, 21, 31))
    until(lambda: len(inside.running) == 6)
    inside.step()
    assert str(broken.error()) == "vLLM failed: ValueError: the prompt is too long"
    assert "ended with 'abort'" in str(cut.error())
    until(lambda: len(inside.running) == 2)  # the other draws of both requests were aborted
    inside.step(2)
    assert sum(bool(well.delta().finish_reason) for _ in range(6)) == 2
    assert broken.silent and cut.silent
    inside.fault = {7: RuntimeError("")}
    with steps(inside), pytest.raises(EngineError, match="vLLM failed: RuntimeError: no reason given"):
        list(engine.complete([ask()]))


def test_closing_tells_who_still_listens(engine: vllm.VllmEngine) -> None:
    inside = AsyncLLM.made
    waits = Listening(engine, ask(n=2))
    until(lambda: len(inside.running) == 2)
    assert not engine.broken
    engine.close()
    assert "closed" in str(waits.next()) and waits.silent
    assert inside.stopped and not inside.running and len(inside.aborted) == 2
    with pytest.raises(EngineError, match="closed"):
        engine.submit(ask(), lambda _: None)
    waits.ticket.cancel()
    engine.close()
    inside.errored = True
    assert engine.broken


def test_what_vllm_is_given(engine: vllm.VllmEngine, adapter: AdapterRef, tmp_path: Path) -> None:
    inside = AsyncLLM.made
    assert (inside.options["max_loras"], inside.options["max_cpu_loras"], inside.context) == (16, 256, "list")
    assert engine.window == 4096
    with steps(inside):
        list(engine.complete([ask(adapter=adapter, n=2, salt="key"), ask()]))
    base, *worn = inside.added
    assert base.lora is None and base.prompt == {"prompt_token_ids": [120, 121]}
    assert [row.params.seed for row in worn] == [7, 8]
    assert {row.prompt["cache_salt"] for row in worn} == {"key"}
    lora = worn[0].lora
    assert (lora.name, lora.path) == (adapter.adapter_id, str(tmp_path / "one")) and lora.number > 0
    params = vars(worn[0].params)
    assert {**params, "output_kind": None} == {
        "n": 1, "temperature": 0.7, "top_p": 0.9, "top_k": -1, "max_tokens": 3, "stop": ["END"], "seed": 7,
        "output_kind": None,
    }  # fmt: skip


def test_on_a_cpu_the_base_wears_zeros_beside_as_many_adapters_as_were_asked_for(
    model: ModelRef, adapter: AdapterRef, tmp_path: Path
) -> None:
    engine = build(model, tmp_path, device="cpu", max_loras=2, max_cpu_loras=4)
    inside = AsyncLLM.made
    assert (inside.options["max_loras"], inside.options["max_cpu_loras"]) == (3, 5)
    with steps(inside):
        list(engine.complete([ask(), ask(adapter=adapter)]))
    base, worn = (row.lora for row in inside.added)
    assert base.number != worn.number and base.name != worn.name
    (pair,) = peft.read_peft(base.path).pairs.values()
    assert (pair.a @ pair.b).shape == (6, 4) and not pair.a.any() and not pair.b.any()
    engine.close()
    assert not Path(base.path).exists()


def test_a_request_that_cannot_be_drawn_is_refused_where_it_is_submitted(
    model: ModelRef, adapter: AdapterRef, tmp_path: Path
) -> None:
    engine = build(model, tmp_path, device="cuda", max_lora_rank=1)
    for request, error, says in (
        (ask(logprobs=1), EngineError, "log-probabilities"),
        (ask(adapter=replace(adapter, base_model="e" * 64)), AdapterError, "another base model"),
        (ask(adapter=replace(adapter, adapter_id="9" * 64)), AdapterError, "9" * 64),
        (ask(adapter=adapter), AdapterError, "max_lora_rank=2"),
    ):
        with pytest.raises(error, match=says):
            engine.submit(request, lambda _: None)
        with pytest.raises(error, match=says):
            list(engine.complete([request]))
    assert not AsyncLLM.made.added
    engine.close()


def test_a_vllm_that_does_not_start_is_one_line(
    model: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsyncLLM, "refuses_to_start", "no memory\nand more")
    with pytest.raises(EngineError, match=r"^vLLM did not start with tiny: no memory$"):
        build(model, tmp_path, device="cpu")
    (Path(model.path) / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="how wide"):
        build(model, tmp_path, device="cpu")
