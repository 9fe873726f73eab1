"""One tiny model, two strong adapters in folders, and every engine built over them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from rune.adapters import peft
from rune.adapters.folders import Folders
from rune.engines import openai, ray, scripted, vllm
from rune.models import loader
from rune.types import Engine, ModelRef
from tests.engines.completion_server import CompletionServer
from tests.engines.engine_helpers import World, random_adapter, torch_engine, wider_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return wider_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def world(tiny_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> World:
    loaded = loader.load(tiny_model, device="cpu", dtype="float32")
    folder = tmp_path_factory.mktemp("adapters")
    refs = [
        peft.write_peft(
            folder / str(seed), random_adapter(loaded, seed=seed, rank=4 * seed, base_model=tiny_model.digest)
        )
        for seed in (1, 2)
    ]
    return World(tiny_model, (refs[0], refs[1]), folder)


@pytest.fixture
def server(world: World) -> Iterator[CompletionServer]:
    server = CompletionServer(torch_engine(world))
    yield server
    server.close()


def _build(name: str, world: World) -> Iterator[Engine]:
    options = {"model": world.model, "device": "cpu", "dtype": "float32", "adapters": Folders(world.root)}
    if name == "torch":
        yield torch_engine(world, max_rows=16)
    elif name == "scripted":
        answers = {"": tuple(f"base {i} says self and more" for i in range(7))}
        for ref in world.adapters:
            answers[f"{ref.adapter_id}:"] = tuple(f"{ref.adapter_id} {i}" for i in range(7))
        yield scripted.build(scripted.Config(answers=answers), **options)
    elif name == "openai":
        server = CompletionServer(torch_engine(world))
        yield openai.build(openai.Config(url=server.url, dialect="vllm", concurrency=3, pause_seconds=0.01), **options)
        server.close()
    elif name == "ray":
        yield ray.build(ray.Config(actors=2, cpus_per_actor=0.5, settings={"max_rows": 4}), **options)
    elif name == "vllm":
        yield vllm.build(vllm.Config(max_loras=2, max_cpu_loras=4, max_lora_rank=8, max_model_len=512), **options)
    else:
        raise AssertionError(f"no way to build the engine '{name}' for its contract; add one here")


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest, world: World) -> Iterator[Engine]:
    needs = {"ray": "ray", "vllm": "vllm"}.get(request.param)
    if needs and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    building = _build(request.param, world)
    engine = next(building)
    yield engine
    engine.close()
    next(building, None)
