"""One model, one hypernetwork and one server for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rune.types import ModelRef
from tests.serving.world import Running, configured, random_hypernet, running, trajectory


@pytest.fixture(scope="session")
def hypernet(tiny_model: ModelRef, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_hypernet(tmp_path_factory.mktemp("hypernet"), tiny_model)


@pytest.fixture(scope="session")
def served(tiny_model: ModelRef, hypernet: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server without keys and two adapters: "sums" in shop/sums, and one of the project shop."""
    with running(configured(tiny_model, tmp_path_factory.mktemp("served"), hypernet)) as served:
        for number, place in ((1, "project=shop&domain=sums&alias=sums"), (2, "project=shop&alias=shop-wide")):
            answer = served.http.post(f"/v1/trajectories?{place}", content=trajectory(number))
            assert answer.status_code == 201, answer.text
        yield served
