"""MLflow for real: a local SQLite store in process, a real server, a server that is down, one that hangs."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rune.analysis import gate
from rune.cli.main import main
from rune.reporting import tracking
from rune.runs.store import RunDir
from rune.stages import report
from tests.report import runs

mlflow = pytest.importorskip("mlflow")
SETTINGS = gate.Config(resamples=500, simulations=100)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = runs.build(tmp_path_factory.mktemp("runs"), arms=("vanilla", "lora", "hypernet"))
    weights = folder / "adapters" / "lora" / "abc" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"x" * 2000)
    runs.decide(folder, SETTINGS)
    report.run(folder, report.Config())
    return folder


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's own tables, made once: its migrations take seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    client_of(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def run(finished: RunDir, empty_store: Path, tmp_path: Path) -> RunDir:
    path = tmp_path / finished.path.name
    shutil.copytree(finished.path, path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return RunDir(path)


def client_of(uri: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(tracking_uri=uri)


def tracked(uri: str) -> list[mlflow.entities.Run]:
    client = client_of(uri)
    experiment = client.get_experiment_by_name("rune")
    return list(client.search_runs([experiment.experiment_id]))


def arm_of(phase: str) -> str:
    """The column names the phase of the programme and the arm."""
    number, colon, arm = phase.partition(": ")
    assert number == "1" and colon
    return arm


def test_the_table_has_the_specified_columns_and_real_values(run: RunDir) -> None:
    rows = {arm_of(r["phase"]): r for r in tracking.table(run.path)}
    assert list(rows) == ["vanilla", "hypernet", "lora"]
    assert tuple(rows["vanilla"]) == tracking.COLUMNS
    decision = json.loads((run / "decision.json").read_text())
    for arm in decision["arms"]:
        assert rows[arm["condition"]]["pass_at_1"] == arm["pass_at_1"]
    assert rows["vanilla"]["delta_w_norm"] == 0.0
    assert rows["vanilla"]["training_loss"] is None
    assert rows["hypernet"]["adapter_id"] == "25 adapters"
    cosine = json.loads((run / "diagnostics.json").read_text())["arms"]["hypernet"]["cosine_raw"]["mean_off_diagonal"]
    assert rows["hypernet"]["adapter_cosine_diversity"] == pytest.approx(1 - cosine)
    assert rows["lora"]["adapter_cosine_diversity"] is None
    assert 0.2 < rows["hypernet"]["training_loss"] < 0.35


def check_store(uri: str, run: RunDir) -> None:
    """What a tracker must hold of a finished run, whatever its kind."""
    decision = json.loads((run / "decision.json").read_text())
    found = {arm_of(r.data.tags["phase"]): r for r in tracked(uri)}
    ids = {arm: r.info.run_id for arm, r in found.items()}
    assert json.loads((run / "tracking.json").read_text())["runs"] == ids
    rows = list(csv.DictReader((run / "mlflow.csv").open()))
    assert {arm_of(r["phase"]): r["run_id"] for r in rows} == {a: i for a, i in ids.items() if a != "experiment"}
    assert set(found) == {"experiment", "vanilla", "lora", "hypernet"}
    parent = found.pop("experiment")
    assert parent.data.tags["mlflow.note.content"] == f"Phase 1: {decision['answer']}"
    assert parent.data.tags["rune.evidence"].splitlines()[0] == decision["evidence"]
    stages = run.manifest()["stages"].values()
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(parent.info.start_time / 1000))
    assert began == min(entry["started"] for entry in stages if "started" in entry)
    assert {a["condition"]: a["pass_at_1"] for a in decision["arms"]} == {
        k.removeprefix("pass_at_1_"): v for k, v in parent.data.metrics.items() if k.startswith("pass_at_1_")
    }
    (used,) = parent.inputs.dataset_inputs
    assert used.dataset.name == "humaneval"
    assert parent.data.params["gate.n"] == "5"
    assert parent.data.tags["rune.model_sha256"] == "ab" * 32
    assert parent.data.tags["rune.data_sha256"] == run.manifest()["seals"]["problems.jsonl"]
    files = {f.path for f in client_of(uri).list_artifacts(parent.info.run_id)}
    assert {"config.toml", "decision.json", "report.html", "environment.json", "preregistration.json"} <= files
    arms = {a["condition"]: a for a in decision["arms"]}
    for name, child in found.items():
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.tags["mlflow.note.content"] == f"Phase 1: {decision['answer']}"
        assert child.data.params["phase"] == f"1: {name}"
        assert child.data.params["run_id"] == child.info.run_id
        assert child.data.metrics["pass_at_1"] == arms[name]["pass_at_1"]
        assert set(tracking.COLUMNS[3:]) <= set(child.data.metrics)
    assert math.isnan(found["vanilla"].data.metrics["training_loss"])
    curve = client_of(uri).get_metric_history(found["hypernet"].info.run_id, "train/target_contrast")
    assert [m.step for m in curve] == list(range(300))
    written = [json.loads(line) for line in (run / "checkpoints" / "metrics.jsonl").read_text().splitlines()]
    for name in ("lora", "hypernet"):
        losses = client_of(uri).get_metric_history(found[name].info.run_id, "train/loss")
        own = [(line["step"], line["loss"]) for line in written if line["phase"] == name]
        assert [(m.step, m.value) for m in losses] == own
    assert not [k for k in found["vanilla"].data.metrics if k.startswith("train/")]
    table = {arm_of(row["phase"]): row for row in tracking.table(run.path)}
    for name, child in found.items():
        for column in tracking.COLUMNS[3:]:
            value = child.data.metrics[column]
            assert math.isnan(value) if table[name][column] is None else value == table[name][column], column
    contrasts = {f"points_{c['treatment']}_minus_{c['baseline']}": c["points"] for c in decision["contrasts"]}
    known = {k: v for k, v in parent.data.metrics.items() if k.startswith("points_")}
    assert contrasts and known == pytest.approx(contrasts)
    assert parent.data.metrics["effect_points"] == decision["effect_points"]
    adapters = client_of(uri).list_artifacts(found["lora"].info.run_id, "adapters/abc")
    assert [(a.path, a.file_size) for a in adapters] == [("adapters/abc/adapter_model.safetensors", 2000)]


def test_the_local_store_holds_the_run_and_writing_again_doubles_nothing(run: RunDir) -> None:
    uri = f"sqlite:///{run.path.parent / 'mlflow.db'}"
    assert tracking.record(run.path, tracking.Config()) == ""
    check_store(uri, run)
    first = {r.info.run_id for r in tracked(uri)}
    assert main(["track", str(run.path)]) == 0
    check_store(uri, run)
    assert first.isdisjoint(r.info.run_id for r in tracked(uri))
    rows = list(csv.DictReader((run / "mlflow.csv").open()))
    assert {r["run_id"] for r in rows} < {r.info.run_id for r in tracked(uri)}
    assert not (Path.cwd() / "mlruns").exists()


def test_adapters_above_the_limit_leave_their_manifest(run: RunDir) -> None:
    uri = f"sqlite:///{run.path.parent / 'mlflow.db'}"
    assert tracking.record(run.path, tracking.Config(adapters_mb=0)) == ""
    lora = next(r for r in tracked(uri) if r.data.tags["phase"] == "1: lora")
    assert [a.path for a in client_of(uri).list_artifacts(lora.info.run_id, "adapters")] == ["adapters/manifest.json"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_tracker_that_is_down_costs_a_line_and_nothing_else(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    reason = tracking.record(run.path, tracking.Config(uri=f"http://127.0.0.1:{free_port()}"))
    assert "ConnectionRefusedError" in reason
    assert "`rune track" in reason
    assert "\n" not in reason
    assert json.loads((run / "tracking.json").read_text())["status"] == "pending"
    assert len(json.loads((run / "mlflow.json").read_text())["rows"]) == 3
    assert main(["track", str(run.path)]) == 0
    said = json.loads((run / "tracking.json").read_text())
    assert said["status"] == "tracked"
    assert str(run.path.parent) not in json.dumps(said)


def test_a_tracker_that_accepts_and_never_answers_is_given_up(run: RunDir) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        reason = tracking.record(
            run.path, tracking.Config(uri=f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_seconds=1)
        )
    assert reason.startswith("not tracked")
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_what_is_written_of_the_tracker_holds_no_password_and_no_address_of_this_machine(run: RunDir) -> None:
    secret = f"http://someone:hunter2@127.0.0.1:{free_port()}"
    said = tracking.record(run.path, tracking.Config(uri=secret))
    assert "hunter2" not in said + (run / "tracking.json").read_text()
    assert tracking.public(secret) == "a local MLflow server"
    assert tracking.public("https://me:hunter2@mlflow.example.org:8443/x?token=1") == "https://mlflow.example.org:8443"
    assert tracking.public("sqlite:////home/me/mlflow.db") == "a local sqlite store"


def test_a_store_that_cannot_be_written_never_raises(run: RunDir) -> None:
    inside_a_file = f"sqlite:///{run / 'config.toml'}/mlflow.db"
    assert tracking.record(run.path, tracking.Config(uri=inside_a_file)).startswith("not tracked")
    assert tracking.record(run.path, tracking.Config(uri="gopher://x")).startswith("not tracked")
    assert tracking.record(run.path, tracking.Config(enabled=False, uri="gopher://x")) == ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}",
        "--artifacts-destination", str(tmp_path / "store"),
    ]  # fmt: skip
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.25)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)
        log.close()


@pytest.mark.slow
def test_a_real_server_holds_the_run_and_shows_it_in_a_browser(run: RunDir, server: str) -> None:
    assert tracking.record(run.path, tracking.Config(uri=server)) == ""
    check_store(server, run)
    if not shutil.which("chromedriver"):
        pytest.skip("the store is checked; the page needs chromium and chromium-driver")
    from tests.report.browser import text_of

    parent = next(r for r in tracked(server) if r.data.tags["phase"] == "1: experiment")
    page = f"{server}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    shot = Path(__file__).parents[2] / "artifacts" / "mlflow.png"
    answer = json.loads((run / "decision.json").read_text())["answer"]
    assert answer in text_of(page, waiting_for=answer, shot=shot)
