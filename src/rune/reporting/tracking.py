"""The experiment tracker: MLflow, local SQLite or a server. Record first, track after; tracking never raises.

Everything is read from a run folder that is already complete on disk, so a tracker that is down costs a note
and nothing else: `rune track RUN` writes it again. One parent run per run folder with the decision as its note,
one nested run per arm with the specified columns.

Not covered: deleting anything from a tracker but our own unfinished attempt at the same folder.
"""

from __future__ import annotations

import calendar
import contextlib
import csv
import io
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rune import config
from rune.reporting import words
from rune.runs import store
from rune.types import Scorer

COLUMNS = ("run_id", "phase", "adapter_id", "pass_at_1", "training_loss", "adapter_cosine_diversity", "delta_w_norm")
NOTE = "mlflow.note.content"
EVIDENCE = "rune.evidence"
_LOGIN = re.compile(r"//[^/@\s]+@")  # "//user:password@" of an address
_NO_NAME = re.compile(r"[^\w\-. :/]", re.ASCII)  # what a tracker's parameter may not be called
_KEY = "rune.run"  # tag that ties tracker runs to a run folder
_CURVE_POINTS = 500  # of one metric; a longer curve is thinned
_BATCH = 500
_FILES = (
    "config.toml", "manifest.json", "preregistration.json", "decision.json", "leakage.json", "diagnostics.json",
    "corpus.json", "problems.jsonl", "treatments.jsonl", "verdicts.jsonl", "report.html", "report.md", "assessment.md",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[track]`."""

    enabled: bool = True
    uri: str = ""  # "" = SQLite in mlflow.db beside the run folders; or sqlite:///…, http://server:port
    experiment: str = "rune"
    adapters_mb: int = 64  # adapter weights up to this size go to the tracker, beyond it their manifest
    timeout_seconds: int = 10  # of one request to a server


def record(path: Path, config: Config) -> str:
    """Write the run folder at `path` to the tracker. Returns "" or, in one line, why it could not.

    Writes mlflow.json and mlflow.csv (the table) first and always; tracking.json says what reached the tracker.
    """
    rows: list[dict[str, Any]] = []
    try:
        rows = table(path)
        _write(path, rows)
        if not config.enabled:
            return ""
        uri = where(config, path.resolve().parent)
        with reached(config, uri):
            ids = _send(path, config, uri, rows)
    except Exception as error:  # the tracker's failure, whatever its kind, must not become the run's
        reason = why(error, config)
        with contextlib.suppress(OSError):
            store.write_json(path / "tracking.json", {"status": "pending", "reason": reason, **_overridden(path)})
        return f"not tracked ({reason}); the run is complete on disk, `rune track {path}` writes it again"
    for row in rows:
        row["run_id"] = ids.get(str(row["phase"]).partition(": ")[2], "")
    _write(path, rows)
    said = {"status": "tracked", "tracker": public(uri), "experiment": config.experiment, "runs": ids}
    store.write_json(path / "tracking.json", {**said, **_overridden(path)})
    return ""


def where(config: Config, beside: Path) -> str:
    """The tracker's address; without one the database in a folder."""
    return config.uri or f"sqlite:///{(beside / 'mlflow.db').as_posix()}"


@contextlib.contextmanager
def reached(config: Config, uri: str) -> Iterator[None]:
    """While open, a request that is not answered fails soon. Raises OSError if nothing listens."""
    with _patience(config.timeout_seconds):
        _reachable(uri, config.timeout_seconds)
        yield


def why(error: Exception, config: Config) -> str:
    """A tracker's failure in one line, without logins."""
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    return _LOGIN.sub("//", reason.replace(config.uri or "\0", public(config.uri)))


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    said = _overridden(path)
    store.write_json(path / "mlflow.json", {"columns": COLUMNS, "rows": rows, **said})
    store.write_atomic(path / "mlflow.csv", csv_of(rows, said.get("overrides", ())))


def _phase(path: Path) -> Mapping[str, Any]:
    """What the manifest says of the run's phase; empty for one that an earlier version made."""
    found: Mapping[str, Any] = (_json(path / "manifest.json") or {}).get("phase", {})
    return found


def _overridden(path: Path) -> dict[str, Any]:
    said = words.overrides(_phase(path))
    return {"overrides": said} if said else {}


def public(uri: str) -> str:
    """Where the run went, for a file that others read: no password, no token, no path or port of this machine."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return f"a local {parts.scheme or 'file'} store"
    host = parts.hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        return "a local MLflow server"
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


# --------------------------------------------------------------------------- the table


def table(path: Path) -> list[dict[str, Any]]:
    """One row per arm with the specified columns. None where there is nothing to measure.

    `phase` is the phase's number and the arm. `delta_w_norm` is the mean over the arm's adapters, 0 for an arm without
    any.
    """
    decision = _json(path / "decision.json")
    diagnostics = (_json(path / "diagnostics.json") or {}).get("arms", {})
    adapters: dict[str, dict[str, float]] = {}
    for treatment in _jsonl(path / "treatments.jsonl"):
        if adapter := treatment.get("adapter"):
            adapters.setdefault(treatment["condition"], {})[adapter["adapter_id"]] = adapter["delta_w_norm"]
    rows, number = [], _phase(path).get("number", 1)
    for arm in (decision or {}).get("arms", []):
        name = arm["condition"]
        own = adapters.get(name, {})
        cosine = diagnostics.get(name, {}).get("cosine_raw", {}).get("mean_off_diagonal")
        rows.append(
            {
                "run_id": "",
                "phase": f"{number}: {name}",
                "adapter_id": next(iter(own)) if len(own) == 1 else f"{len(own)} adapters" if own else "none",
                "pass_at_1": arm["pass_at_1"],
                "training_loss": _final_loss(path, name) if own else None,
                "adapter_cosine_diversity": None if cosine is None else 1 - cosine,
                "delta_w_norm": sum(own.values()) / len(own) if own else 0.0,
            }
        )
    return rows


def _final_loss(path: Path, arm: str) -> float | None:
    """Mean loss over the last tenth of the training that the arm's adapters come from."""
    losses = [row["loss"] for _, row in _curves(path) if row["phase"] == _trained_by(arm)]
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail) if tail else None


def _trained_by(arm: str) -> str:
    return arm if arm in ("lora", "oracle") else "hypernet"


def _curves(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(step, metrics) of all training phases, in file order."""
    for row in _jsonl(path / "checkpoints" / "metrics.jsonl"):
        yield int(row["step"]), row


# --------------------------------------------------------------------------- MLflow


def _send(path: Path, config: Config, uri: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    experiment = experiment_of(client, config.experiment, uri, path.resolve().parent)
    manifest = store.RunDir(path).told() if (path / "manifest.json").exists() else {}
    decision = _json(path / "decision.json") or {}
    key = f"{path.name}:{manifest.get('created', '')}"
    forget(client, experiment, key)
    tags = {_KEY: key, **_provenance(manifest), "rune.measure": Scorer(decision.get("scorer", "execution")).measure()}
    phase = manifest.get("phase", {})
    number = phase.get("number", 1)
    said = words.overrides(phase)
    answer = ". ".join([f"Phase {number}: {decision.get('answer', 'not decided')}", *said])
    tags |= {"rune.override": "; ".join(said)} if said else {}
    began, ended = _when(manifest)
    parent = client.create_run(
        experiment,
        run_name=path.name,
        start_time=began,
        tags={**tags, "phase": f"{number}: experiment", NOTE: answer, EVIDENCE: _evidence(decision)},
    ).info.run_id
    ids = {}
    for row in rows:
        arm = str(row["phase"]).partition(": ")[2]
        run_tags = {**tags, "phase": str(row["phase"]), "adapter_id": str(row["adapter_id"]), NOTE: answer}
        run_tags["mlflow.parentRunId"] = parent
        run = client.create_run(experiment, run_name=f"{path.name}/{arm}", start_time=began, tags=run_tags).info.run_id
        ids[arm] = run
        client.log_param(run, "phase", row["phase"])
        client.log_param(run, "adapter_id", row["adapter_id"])
        client.log_param(run, "run_id", run)
        for name in COLUMNS[3:]:
            client.log_metric(run, name, math.nan if row[name] is None else row[name])
        _log_curves(client, run, path, arm)
        _log_adapters(client, run, path, arm, config.adapters_mb)
        _log_dataset(client, run, path, manifest)
        client.set_terminated(run, end_time=ended)
        client.log_metric(parent, f"pass_at_1_{arm}", row["pass_at_1"])
    _log_parent(client, parent, path, manifest, decision)
    _log_dataset(client, parent, path, manifest)
    client.set_terminated(parent, end_time=ended)
    return {"experiment": parent, **ids}


def experiment_of(client: Any, name: str, uri: str, beside: Path) -> str:
    """The experiment's id. A local store keeps its artifacts beside the database, not in the current folder."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = None if uri.startswith("http") else (beside / "mlartifacts").as_uri()
    # Without its kind a recent MLflow shows the page for chat agents, where metrics have no columns.
    kind = {"mlflow.experimentKind": "custom_model_development"}
    return str(client.create_experiment(name, artifact_location=local, tags=kind))


def forget(client: Any, experiment: str, key: str) -> None:
    """Take away earlier attempts at the same run folder, so that writing again never doubles it."""
    for run in client.search_runs([experiment], filter_string=f"tags.`{_KEY}` = '{key}'", max_results=1000):
        client.delete_run(run.info.run_id)


def _log_parent(client: Any, run: str, path: Path, manifest: Mapping[str, Any], decision: Mapping[str, Any]) -> None:
    log_config(client, run, _config(path / "config.toml"))
    for name in ("effect_points", "threshold_points", "relative_change"):
        if decision.get(name) is not None:
            client.log_metric(run, name, decision[name])
    for contrast in decision.get("contrasts", []):
        label = f"points_{contrast['treatment']}_minus_{contrast['baseline']}"
        client.log_metric(run, label, contrast["points"])
    for name in _FILES:
        if (path / name).exists():
            client.log_artifact(run, str(path / name))
    client.log_text(run, json.dumps(manifest.get("environment", {}), indent=2), "environment.json")


def log_config(client: Any, run: str, settings: Mapping[str, Any]) -> None:
    """All settings of a config as parameters."""
    from mlflow.entities import Param

    named = {_NO_NAME.sub("_", k)[:250]: str(v)[:6000] for k, v in _flat(settings).items()}
    params = [Param(k, v) for k, v in named.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run, params=params[start : start + 100])


def _log_curves(client: Any, run: str, path: Path, arm: str) -> None:
    from mlflow.entities import Metric

    if arm not in ("lora", "hypernet", "oracle"):
        return
    rows = [(step, row) for step, row in _curves(path) if row["phase"] == _trained_by(arm)]
    rows = rows[:: max(1, len(rows) // _CURVE_POINTS)]
    now = int(time.time() * 1000)
    metrics = [
        Metric(f"train/{name}", float(value), now, step)
        for step, row in rows
        for name, value in row.items()
        if name != "step" and isinstance(value, (int, float))
    ]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run, metrics=metrics[start : start + _BATCH])


def _log_adapters(client: Any, run: str, path: Path, arm: str, limit_mb: int) -> None:
    """The arm's PEFT folders; only their names, sizes and ids if they are larger than the limit."""
    folder = path / "adapters" / arm
    files = sorted(f for f in folder.glob("**/*") if f.is_file())
    if not files:
        return
    size = sum(f.stat().st_size for f in files)
    if size <= limit_mb << 20:
        client.log_artifacts(run, str(folder), "adapters")
        return
    listed = [{"file": str(f.relative_to(folder)), "bytes": f.stat().st_size} for f in files]
    client.log_text(run, json.dumps({"bytes": size, "files": listed}, indent=2), "adapters/manifest.json")


def _provenance(manifest: Mapping[str, Any]) -> dict[str, str]:
    environment, model = manifest.get("environment", {}), manifest.get("model", {})
    return {
        "rune.version": str(manifest.get("rune", "")),
        "rune.commit": str(environment.get("commit", "")),
        "rune.source": str(environment.get("source", "")),
        "rune.config_digest": str(manifest.get("config_digest", "")),
        "rune.preregistration": str(manifest.get("preregistration", "")),
        "rune.data_sha256": str(manifest.get("seals", {}).get("problems.jsonl", "")),
        "rune.model": str(model.get("name", "")),
        "rune.model_sha256": str(model.get("sha256", "")),
        "rune.weights": words.base(manifest),
        "rune.device": str(manifest.get("device", "")),
    }


def _evidence(decision: Mapping[str, Any]) -> str:
    """What stands beside the decision: the evidence in a sentence, then the reasons."""
    lines = [str(decision.get("evidence", "")), *(f"- {reason}" for reason in decision.get("reasons", []))]
    return "\n".join(line for line in lines if line)


def _when(manifest: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Start and end of the experiment itself in ms since 1970, not of its tracking. None: MLflow takes now."""
    times = [str(entry[k]) for entry in manifest.get("stages", {}).values() for k in ("started", "ended") if k in entry]
    if not times:
        return None, None
    parsed = [1000 * calendar.timegm(time.strptime(t, "%Y-%m-%dT%H:%M:%SZ")) for t in times]
    return min(parsed), max(parsed)


def _log_dataset(client: Any, run: str, path: Path, manifest: Mapping[str, Any]) -> None:
    """The tasks: the benchmark's name and the sha256 of problems.jsonl, which is under seal."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    name = str(_config(path / "config.toml").get("benchmark", {}).get("name", "tasks"))
    digest = str(manifest.get("seals", {}).get("problems.jsonl", ""))[:36]
    source = json.dumps({"file": "problems.jsonl"})
    dataset = Dataset(name=name, digest=digest or "unsealed", source_type="local", source=source)
    context = InputTag(key="mlflow.data.context", value="evaluation")
    client.log_inputs(run, [DatasetInput(dataset, [context])])


# --------------------------------------------------------------------------- patience


@contextlib.contextmanager
def _patience(seconds: int) -> Iterator[None]:
    """MLflow retries for minutes by default; here one request fails after `seconds`, once."""
    limits = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _reachable(uri: str, seconds: int) -> None:
    """Fail within `seconds` if nothing listens, before MLflow is even imported. Raises OSError."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with socket.create_connection((parts.hostname or "", port), timeout=seconds):
        pass


# --------------------------------------------------------------------------- files (store is a sibling layer)


def _json(path: Path) -> Any:
    return store.read_json(path) if path.exists() else None


def _jsonl(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in store.read_lines(path)] if path.exists() else []


def _config(path: Path) -> dict[str, Any]:
    return config.parse(path.read_text(encoding="utf-8"), where=str(path)) if path.exists() else {}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        flat |= _flat(item, f"{name}.") if isinstance(item, Mapping) else {name: item}
    return flat


def csv_of(rows: Sequence[Mapping[str, Any]], overrides: Sequence[str] = ()) -> str:
    """The table. Of a phase that began by override it has one column more, `override`: the reason, in every row."""
    text = io.StringIO()
    more = {"override": "; ".join(overrides)} if overrides else {}
    writer = csv.DictWriter(text, (*COLUMNS, *more), lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: "" if v is None else v for k, v in {**row, **more}.items()} for row in rows])
    return text.getvalue()
