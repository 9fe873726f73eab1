"""Many adapters with different numbers of rows: a layout with dead places ends all the same."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from transformers import AutoModelForCausalLM

from rune.types import ModelRef, Request, Sampling
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
