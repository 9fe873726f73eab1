"""The memory in MLflow: a local SQLite store in process, read back; a tracker that is not there."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from rune.adapters.registry import intake, operations
from rune.adapters.registry.records import MadeFrom, Place, Source
from rune.adapters.registry.registry import Registry
from rune.reporting import memory_tracking, tracking
from rune.runs import store
from tests.adapters import small

mlflow = pytest.importorskip("mlflow")
DATES, ORDERS = Place(project="shop", domain="dates"), Place(project="shop", domain="orders")
SETTINGS = {"evolve": {"seed": 3, "alpha": 0.7}}


@pytest.fixture
def memory(tmp_path: Path) -> Registry:
    """Two adapters and their merge, which is archived; one that nobody measured, and one of another protocol."""
    registry = Registry(tmp_path / "memory", create=True)
    one = small.put(registry, 1, DATES, fitness=0.5, made_from=MadeFrom(sources=(Source(trajectory_id="t1"),)))
    two = small.put(registry, 2, ORDERS, fitness=0.25)
    about = MadeFrom(how="merge svd", parents=((one.id, 0.5), (two.id, 0.5)))
    ready = intake.prepare(small.adapter(3), Place(project="shop"), about, base_name="org/base", max_rank=256)
    registry.keep_files(ready.draft.id, ready.config, ready.weights)
    found = replace(small.measured(0.125), pass_rate=math.nan, generalization=0.75)
    operations.commit(
        registry, kind="merge", inputs=[one.id, two.id], arguments={}, numbers={"cosine": 0.25}, made=ready.draft,
        kept=True, fitness=[(found, True)],
    )  # fmt: skip
    merge = registry.get(ready.draft.id)
    operations.forget(registry, [merge], reason="weak")
    small.put(registry, 4, DATES)
    other = small.put(registry, 5, DATES)
    registry.set_fitness(other.id, replace(small.measured(0.9), protocol="another"))
    return registry


def record(memory: Registry, **options: object) -> str:
    config = tracking.Config(**options)  # type: ignore[arg-type]
    return memory_tracking.record(memory, config, project="shop", protocol="p", settings=SETTINGS)


def test_the_table_has_the_specified_columns_of_what_was_measured_under_the_protocol(memory: Registry) -> None:
    assert record(memory, enabled=False) == ""
    (path,) = (memory.folder / "tracking").glob("*.csv")
    rows = list(csv.DictReader(path.open()))
    assert tuple(rows[0]) == tracking.COLUMNS
    assert [row["pass_at_1"] for row in rows] == ["0.5", "0.25", ""]  # not measured is empty, not 0
    entries = [memory.get(row["adapter_id"]) for row in rows]
    assert [float(row["delta_w_norm"]) for row in rows] == pytest.approx([e.delta_w_norm for e in entries])
    assert [row["phase"] for row in rows][2] == "4: merge svd"
    assert [row["adapter_cosine_diversity"] for row in rows] == ["", "", "0.75"]  # of a merge: its parents'
    assert store.read_json(path.with_suffix(".json"))["protocol"] == "p"


def test_mlflow_holds_every_adapter_and_what_was_done_and_writing_again_doubles_nothing(memory: Registry) -> None:
    uri = f"sqlite:///{memory.folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(tracking_uri=uri)
    for _ in range(2):
        assert record(memory) == ""
        experiment = client.get_experiment_by_name("rune")
        runs = client.search_runs([experiment.experiment_id], max_results=100)
        assert len(runs) == 4
        (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
        nested = {r.data.params["adapter_id"]: r for r in runs if r is not parent}
        assert set(nested) == {row.entry.id for row in memory_tracking.rows(memory, "shop", "p")}
        for row in memory_tracking.rows(memory, "shop", "p"):
            run = nested[row.entry.id]
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert run.data.metrics["fitness"] == row.fitness.value
            assert run.data.metrics["fitness_generalization"] == row.fitness.generalization
            assert run.data.metrics["delta_w_norm"] == row.entry.delta_w_norm
            assert run.data.tags["rune.status"] == row.entry.status.value
            assert run.data.tags["rune.place"] == str(row.entry.place)
        assert parent.data.metrics["merge_done"] == 1 and parent.data.metrics["merge_kept"] == 1
        assert parent.data.metrics["forget_done"] == 1
        assert parent.data.params["evolve.alpha"] == "0.7"
        assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {"operations.json", "adapters.csv"}
        (path,) = (memory.folder / "tracking").glob("*.csv")
        assert {r["run_id"] for r in csv.DictReader(path.open())} == {r.info.run_id for r in nested.values()}
    assert not (Path.cwd() / "mlruns").exists()


def test_a_tracker_that_is_down_costs_a_line_and_nothing_else(memory: Registry) -> None:
    said = record(memory, uri="http://someone:hunter2@127.0.0.1:1", timeout_seconds=1)
    assert said.startswith("not tracked (") and "evolve again to write it again" in said and "hunter2" not in said
    assert "\n" not in said
    assert list((memory.folder / "tracking").glob("*.csv"))
    shutil.rmtree(memory.folder / "tracking")
    (memory.folder / "tracking").write_text("a file where the folder should be")
    assert record(memory, enabled=False).startswith("not tracked (")
