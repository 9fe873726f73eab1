"""The memory in MLflow: what an evolution measured, made, kept, archived. Record first, track after; it never raises.

Everything is read from the registry. One parent run for a project and a protocol, which says what was done, and one
nested run for each adapter that was measured, with the specified columns and its fitness. Written again, it takes the
place of what was there.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rune import config as configs
from rune.adapters.registry import operations
from rune.adapters.registry.records import Entry, Fitness, Operation
from rune.adapters.registry.registry import Registry, View
from rune.reporting import tracking
from rune.runs import store

PHASE = 4  # of the specification: the memory evolves
FITNESS = ("value", "low", "high", "generalization", "inside_tasks", "outside_tasks", "draws", "alpha")
_KEY = "rune.memory"  # tag that ties tracker runs to a project and a protocol
_BATCH = 1000  # entries read at once


class Row(NamedTuple):
    """An adapter that was measured."""

    entry: Entry
    fitness: Fitness
    columns: dict[str, Any]  # the specified ones; None where there is nothing to measure


def record(
    registry: Registry, config: tracking.Config, *, project: str, protocol: str, settings: Mapping[str, Any]
) -> str:
    """Write a project's adapters under one protocol to the tracker. Returns "" or, in one line, why it could not.

    `settings`: the evolution's config. Writes the table to tracking/ in the registry first and always.
    """
    name = configs.digest([project, protocol])[:16]
    told = registry.folder / "tracking" / f"{name}.json"
    try:
        found = rows(registry, project, protocol)
        _write(told, project, protocol, found)
        if not config.enabled:
            return ""
        uri = tracking.where(config, registry.folder.resolve())
        with tracking.reached(config, uri):
            ids = _send(registry, config, uri, name, project, protocol, settings, found)
    except Exception as error:  # the tracker's failure, whatever its kind, must not become the memory's
        return f"not tracked ({tracking.why(error, config)}); the memory is complete, evolve again to write it again"
    for row in found:
        row.columns["run_id"] = ids[row.entry.id]
    with contextlib.suppress(OSError):
        _write(told, project, protocol, found)
    return ""


def rows(registry: Registry, project: str, protocol: str) -> list[Row]:
    """Adapters of a project that were measured under a protocol, archived ones too, in order of arrival."""
    cosines = {o.result: o.numbers["cosine"] for o in operations.listed(registry) if "cosine" in o.numbers}
    found, after = [], 0
    while page := registry.page(View(project=project, status=None), after=after, limit=_BATCH):
        after = page[-1].number
        for entry in page:
            measured = [f for f in registry.fitness(entry.id) if f.protocol == protocol]
            if measured:
                found.append(Row(entry, measured[-1], _columns(entry, measured[-1], cosines.get(entry.id))))
    return found


def _columns(entry: Entry, fitness: Fitness, cosine: float | None) -> dict[str, Any]:
    """`adapter_cosine_diversity` of a merge is that of its parents."""
    return {
        "run_id": "",
        "phase": f"{PHASE}: {entry.how}",
        "adapter_id": entry.id,
        "pass_at_1": None if math.isnan(fitness.pass_rate) else fitness.pass_rate,
        "training_loss": None,
        "adapter_cosine_diversity": None if cosine is None else 1 - cosine,
        "delta_w_norm": entry.delta_w_norm,
    }


def _write(path: Path, project: str, protocol: str, found: Sequence[Row]) -> None:
    columns = [row.columns for row in found]
    store.write_json(path, {"project": project, "protocol": protocol, "columns": tracking.COLUMNS, "rows": columns})
    store.write_atomic(path.with_suffix(".csv"), tracking.csv_of(columns))


def _send(
    registry: Registry, config: tracking.Config, uri: str, name: str, project: str, protocol: str,
    settings: Mapping[str, Any], found: Sequence[Row],
) -> dict[str, str]:  # fmt: skip
    import logging

    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    client = MlflowClient(tracking_uri=uri)
    experiment = tracking.experiment_of(client, config.experiment, uri, registry.folder.resolve())
    for before in client.search_runs([experiment], filter_string=f"tags.`{_KEY}` = '{name}'", max_results=10_000):
        client.delete_run(before.info.run_id)
    tags = {_KEY: name, "rune.project": project, "rune.protocol": protocol}
    mine = {row.entry.id for row in found}
    done = [o for o in operations.listed(registry) if o.result in mine or mine & set(o.inputs)]
    parent = client.create_run(
        experiment,
        run_name=f"memory of {project}",
        tags={**tags, "phase": f"{PHASE}: memory", tracking.NOTE: _note(done, found)},
    ).info.run_id
    ids: dict[str, str] = {}
    for row in found:
        entry = row.entry
        own = {
            **tags,
            "mlflow.parentRunId": parent,
            "phase": row.columns["phase"],
            "adapter_id": entry.id,
            "rune.place": str(entry.place),
            "rune.status": entry.status.value,
            "rune.base": entry.base,
            "rune.parents": json.dumps([e.parent for e in registry.lineage(entry.id).ancestors if e.child == entry.id]),
            "rune.trajectories": json.dumps([s.trajectory_id for s in registry.sources(entry.id)])[:5000],
        }
        run = client.create_run(experiment, run_name=f"{entry.place} {entry.short}", tags=own).info.run_id
        ids[entry.id] = run
        for column in ("phase", "adapter_id"):
            client.log_param(run, column, row.columns[column])
        client.log_param(run, "run_id", run)
        for column in tracking.COLUMNS[3:]:
            value = row.columns[column]
            client.log_metric(run, column, math.nan if value is None else value)
        for part in FITNESS:
            client.log_metric(run, "fitness" if part == "value" else f"fitness_{part}", getattr(row.fitness, part))
        client.set_terminated(run)
    tracking.log_config(client, parent, settings)
    for kind, count in Counter(o.kind for o in done).items():
        client.log_metric(parent, f"{kind}_done", count)
        client.log_metric(parent, f"{kind}_kept", sum(o.kept for o in done if o.kind == kind))
    client.log_metric(parent, "draws", operations.spent(registry, protocol))
    client.log_text(parent, json.dumps([configs.plain(o) for o in done], indent=1), "operations.json")
    client.log_text(parent, tracking.csv_of([row.columns for row in found]), "adapters.csv")
    client.set_terminated(parent)
    return ids


def _note(done: Sequence[Operation], found: Sequence[Row]) -> str:
    """What was done, in a sentence."""
    kinds = Counter(o.kind for o in done)
    kept = Counter(o.kind for o in done if o.kept)
    said = [f"{n} × {kind}, {kept[kind]} kept" if kind != "forget" else f"{n} × forget" for kind, n in kinds.items()]
    active = sum(row.entry.status.value == "active" for row in found)
    return f"{len(found)} adapters measured, {active} active" + "".join(f"; {one}" for one in said)
