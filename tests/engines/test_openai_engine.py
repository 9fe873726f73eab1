"""The served engine over a real server that misbehaves in the ways servers do."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest

from rune.adapters.folders import Folders
from rune.engines import openai
from rune.errors import AdapterError, EngineError
from rune.types import Completion, Request, Sampling
from tests.engines.completion_server import CompletionServer, Faults
from tests.engines.engine_helpers import PROMPTS, World, torch_engine

SAMPLING = Sampling(temperature=1.0, max_new_tokens=8)


def connect(server: CompletionServer, world: World, **settings: object) -> openai.OpenAIEngine:
    options = {"url": server.url, "dialect": "vllm", "pause_seconds": 0.01, "concurrency": 2, **settings}
    config = openai.Config(**options)  # type: ignore[arg-type]
    return openai.build(config, model=world.model, device="cpu", dtype="float32", adapters=Folders(world.root))


def requests(n: int = 4) -> list[Request]:
    return [Request(key=str(i), prompt=p, sampling=SAMPLING, seed=10 * i, n=n) for i, p in enumerate(PROMPTS)]


def drain(engine: openai.OpenAIEngine, work: list[Request]) -> tuple[list[Completion], Exception | None]:
    found: list[Completion] = []
    try:
        found.extend(engine.complete(work))  # keeps what came before an error
    except (EngineError, AdapterError) as error:
        return found, error
    return found, None


def test_a_served_engine_draws_what_the_engine_behind_it_draws(server: CompletionServer, world: World) -> None:
    found, error = drain(connect(server, world), requests())
    assert error is None
    direct = {(c.key, c.draw): c for c in torch_engine(world).complete(requests())}
    assert {(c.key, c.draw): c for c in found} == direct


def test_a_server_that_dies_mid_batch_leaves_what_it_answered_and_one_error(
    server: CompletionServer, world: World
) -> None:
    server.faults = Faults(die_after=5)
    found, error = drain(connect(server, world, tries=2), requests())
    assert 5 <= len(found) < 12
    assert isinstance(error, EngineError)
    assert f"{len(found)} of 12 draws" in str(error) and "2 tries" in str(error) and "\n" not in str(error)
    server.faults = Faults()
    have = {(c.key, c.draw) for c in found}
    rest = [
        Request(key=f"{r.key}/{d}", prompt=r.prompt, sampling=SAMPLING, seed=r.seed + d)
        for r in requests()
        for d in range(r.n)
        if (r.key, d) not in have
    ]
    resumed, error = drain(connect(server, world), rest)
    assert error is None and len(found) + len(resumed) == 12


def test_a_hung_server_is_given_up_after_its_tries(server: CompletionServer, world: World) -> None:
    server.faults = Faults(hang_seconds=1.0)
    found, error = drain(connect(server, world, timeout_seconds=0.1, tries=2), requests(n=1))
    assert not found
    assert "no answer within 0.1 s" in str(error)


def test_a_busy_server_is_asked_again_and_nothing_is_lost(server: CompletionServer, world: World) -> None:
    server.faults = Faults(busy_first=3)
    found, error = drain(connect(server, world), requests())
    assert error is None and len(found) == 12
    assert server.calls.count("/v1/completions") == 15


def test_no_two_threads_ever_share_a_client_and_clients_are_kept(
    server: CompletionServer, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: dict[int, int] = {}  # client → thread that uses it now
    shared: list[int] = []
    used: set[int] = set()
    send = httpx.Client.send

    def watched(client: httpx.Client, *args: Any, **how: Any) -> httpx.Response:
        me, mine = threading.get_ident(), id(client)
        used.add(mine)
        if busy.setdefault(mine, me) != me:
            shared.append(mine)
        try:
            return send(client, *args, **how)
        finally:
            busy.pop(mine, None)

    monkeypatch.setattr(httpx.Client, "send", watched)
    server.faults = Faults(hang_seconds=0.02)  # so that requests are in flight together
    engine = connect(server, world, concurrency=3)
    for _ in range(2):
        found, error = drain(engine, requests())
        assert error is None and len(found) == 12
    assert shared == [] and len(used) <= 3
    engine.close()


def test_no_server_at_all_is_one_clear_error(server: CompletionServer, world: World) -> None:
    server.close()
    found, error = drain(connect(server, world, tries=2), requests())
    assert not found and "no connection" in str(error)


@pytest.mark.parametrize(("dialect", "route"), [("vllm", "/v1/load_lora_adapter"), ("sglang", "/load_lora_adapter")])
def test_adapters_are_loaded_and_worn_in_the_servers_dialect(
    server: CompletionServer, world: World, dialect: str, route: str
) -> None:
    """SGLang would answer `model` = the adapter's name with the base model."""
    server.dialect = dialect
    applied = [Request(key="x", prompt=PROMPTS[0], sampling=SAMPLING, seed=0, adapter=world.adapters[0])]
    engine = connect(server, world, dialect=dialect)
    (served,), error = drain(engine, applied)
    assert error is None and server.calls.count(route) == 1
    (direct,) = torch_engine(world).complete(applied)
    assert served == direct
    (bare,), error = drain(engine, [replace(applied[0], adapter=None)])
    assert error is None and bare.text != served.text
    engine.close()
    assert route.replace("load", "unload", 1) in server.calls


def test_a_base_name_that_sglang_would_take_apart_is_refused(server: CompletionServer, world: World) -> None:
    with pytest.raises(EngineError, match="a base model and an adapter"):
        connect(server, world, dialect="sglang", served_name="qwen:latest")


def test_more_adapters_than_the_server_holds_take_turns(server: CompletionServer, world: World) -> None:
    work = [
        Request(key=str(i), prompt=PROMPTS[0], sampling=SAMPLING, seed=0, adapter=ref)
        for i, ref in enumerate(world.adapters)
    ]
    found, error = drain(connect(server, world, max_adapters=1), work)
    assert error is None and len(found) == 2
    assert server.calls.count("/v1/unload_lora_adapter") == 1


def test_without_a_dialect_an_unlisted_adapter_is_an_error_before_anything_is_drawn(
    server: CompletionServer, world: World
) -> None:
    work = [*requests(), Request(key="x", prompt="a", sampling=SAMPLING, seed=0, adapter=world.adapters[0])]
    found, error = drain(connect(server, world, dialect="none"), work)
    assert not found
    assert isinstance(error, AdapterError) and "unknown adapter" in str(error)
    assert "/v1/completions" not in server.calls
