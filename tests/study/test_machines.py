"""One process keeps its engines over all of its cells: between them they give memory back, and go on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rune.adapters.folders import Folders
from rune.stages import score, train
from rune.stages.context import Context
from rune.study import config
from rune.study.machines import Machines
from rune.types import Completion, ModelRef, Request, Sampling
from tests.study.test_checks import CONFIG

REQUEST = Request(key="x", prompt="def f", sampling=Sampling(temperature=1.0, max_new_tokens=6), seed=3)
SCRIPTED = ["engine.name=scripted", "engine.settings={default = ['return 1']}"]


def machines(model: ModelRef, overrides: list[str]) -> Machines:
    settings = config.load(CONFIG, [f"model.name={model.path}", "model.device=cpu", *overrides]).settings
    return Machines(settings, "one", together=1, adapters=Folders())


@pytest.mark.parametrize("overrides", [["engine.name=torch"], SCRIPTED], ids=["torch", "scripted"])
def test_an_engine_that_gave_memory_back_draws_as_before(tiny_model: ModelRef, overrides: list[str]) -> None:
    made = machines(tiny_model, overrides)
    engine = made.context(0).engine()
    (before,) = engine.complete([REQUEST])
    made.release()
    assert made.context(0).engine() is engine
    (after,) = engine.complete([REQUEST])
    assert after == before
    heard: list[object] = []
    engine.submit(REQUEST, heard.append)  # a closed engine of one of the other kinds would refuse here
    made.close()
    assert isinstance(before, Completion) and heard


def test_a_base_loaded_as_the_run_says_is_the_runs_own_engine(tiny_model: ModelRef) -> None:
    made = machines(tiny_model, ["engine.name=torch"])
    assert made.engine("none") is made.context(0).engine()
    made.close()


@pytest.mark.parametrize(
    ("device", "free", "released"), [("cuda", 49, True), ("cuda", 50, False), ("cuda", 99, False), ("cpu", 0, False)]
)
def test_room_for_training_is_made_where_over_half_of_a_gpu_is_taken(
    tiny_model: ModelRef, monkeypatch: pytest.MonkeyPatch, device: str, free: int, released: bool
) -> None:
    made = machines(tiny_model, SCRIPTED)
    engine = made.context(0).engine()
    calls: list[str] = []
    monkeypatch.setattr(engine, "release", lambda: calls.append("released"), raising=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 100))
    made.__dict__["device"] = device
    made.make_room()
    assert bool(calls) is released
    made.close()


def test_what_is_held_for_training_ends_once_and_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Session:
        def __init__(self, context: Context) -> None:
            said.append(f"made for seed {context.seed}")

        def close(self) -> None:
            said.append("closed")

    monkeypatch.setattr(train, "TrainingSession", Session)
    made = Machines(config.load(CONFIG, ["model.device=cpu"]).settings, "one", together=1, adapters=Folders())
    made.close_session()
    session = made.context(4).session
    assert session is not None and session() is session() and said == ["made for seed 0"]
    made.close_session()
    made.close_session()
    assert said == ["made for seed 0", "closed"]
    assert session() is not None
    made._exit.callback(lambda: said.append("engines closed"))
    made.close()
    assert said == ["made for seed 0", "closed", "made for seed 0", "closed", "engines closed"]


def test_a_sandbox_and_an_engine_are_made_once_and_end_with_the_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def straw(name: str) -> object:
        said.append(f"{name} made")
        return SimpleNamespace(close=lambda: said.append(f"{name} closed"))

    monkeypatch.setattr(score, "build_sandbox", lambda settings, cache: straw("sandbox"))
    made = Machines(config.load(CONFIG, ["model.device=cpu"]).settings, "one", together=1, adapters=Folders())
    monkeypatch.setattr(made, "model", lambda quantize: quantize)
    monkeypatch.setattr("rune.engines.torch.build", lambda settings, **_: straw("engine"))
    one, other = made.context(1), made.context(2)
    assert (one.seed, other.seed) == (1, 2) and said == []
    assert one.sandbox() is other.sandbox() and one.engine() is other.engine()
    assert said == ["sandbox made", "engine made"]
    made.close()
    assert said[2:] == ["engine closed", "sandbox closed"]
