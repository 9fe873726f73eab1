"""The table's numbers, each told apart from what it could be mistaken for. No tracker is needed."""

from __future__ import annotations

import csv
import json
import types
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from rune.reporting import tracking
from rune.runs.store import RunDir
from rune.study import executor

ARMS = ("vanilla", "rag", "lora", "hypernet", "static", "wrong_trajectory")
NORMS = {"lora": [2.0], "static": [3.0], "hypernet": [1.0, 4.0, 10.0], "wrong_trajectory": [0.5, 0.1]}
COSINES = {"hypernet": (0.9, -0.2), "wrong_trajectory": (0.6, 0.1)}
LORA = [10.0 - 0.1 * i for i in range(40)]
HYPERNET = [3.0 - 0.01 * i for i in range(95)]


def lines(path: Path, records: list[dict[str, Any]], torn: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + torn, encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with curves of two phases written in turn, and adapters that several tasks share."""
    path = tmp_path / "run"
    path.mkdir()
    arms = [{"condition": arm, "pass_at_1": 0.1 * i} for i, arm in enumerate(ARMS)]
    (path / "decision.json").write_text(json.dumps({"answer": "Gate PASSED", "arms": arms}))
    measured = {
        arm: {"cosine_raw": {"mean_off_diagonal": raw}, "cosine_centred": {"mean_off_diagonal": centred}}
        for arm, (raw, centred) in COSINES.items()
    } | {arm: {"cosine_raw": {"mean_off_diagonal": None}} for arm in ("lora", "static")}
    (path / "diagnostics.json").write_text(json.dumps({"arms": measured}))
    treatments = []
    for task in range(7):
        for arm in ARMS:
            norms = NORMS.get(arm)
            # The first adapter serves most tasks: a mean over treatments is not the mean over adapters.
            which = max(0, task - 7 + len(norms)) if norms else 0
            adapter = {"adapter_id": f"{arm}-{which}", "delta_w_norm": norms[which]} if norms else None
            treatments.append({"task_id": f"T/{task}", "condition": arm, "adapter": adapter})
    lines(path / "treatments.jsonl", treatments)
    curves = [{"phase": "encoder", "step": i, "loss": 99.0} for i in range(20)]
    curves += [{"phase": "lora", "step": i, "loss": loss} for i, loss in enumerate(LORA)]
    curves += [{"phase": "hypernet", "step": i, "loss": loss} for i, loss in enumerate(HYPERNET)]
    lines(path / "checkpoints" / "metrics.jsonl", curves, torn='{"phase": "hypernet", "lo')
    return path


def column(run: Path, name: str) -> dict[str, Any]:
    return {row["phase"]: row[name] for row in tracking.table(run)}


def test_an_arms_training_loss_is_that_of_the_phase_its_adapters_come_from(run: Path) -> None:
    """The mean over the last tenth: 4 of 40 steps of the static LoRA, 9 of 95 of the hypernetwork."""
    lora, hypernet = sum(LORA[-4:]) / 4, sum(HYPERNET[-9:]) / 9
    expected = {"lora": lora, "hypernet": hypernet, "static": hypernet, "wrong_trajectory": hypernet}
    found = column(run, "training_loss")
    assert {arm: value for arm, value in found.items() if value is not None} == pytest.approx(expected)
    assert found["vanilla"] is found["rag"] is None


def test_an_arm_that_trains_its_own_adapters_has_no_loss_of_another_phase(run: Path) -> None:
    """The oracle's curves are its own; where none were written there is nothing to say."""
    decision = json.loads((run / "decision.json").read_text())
    decision["arms"].append({"condition": "oracle", "pass_at_1": 0.5})
    (run / "decision.json").write_text(json.dumps(decision))
    treatments = [json.loads(line) for line in (run / "treatments.jsonl").read_text().splitlines()]
    own = {"task_id": "T/0", "condition": "oracle", "adapter": {"adapter_id": "o", "delta_w_norm": 1.0}}
    lines(run / "treatments.jsonl", [*treatments, own])
    assert column(run, "training_loss")["oracle"] is None


def test_a_curve_of_a_few_steps_ends_with_its_last(run: Path) -> None:
    lines(run / "checkpoints" / "metrics.jsonl", [{"phase": "lora", "step": i, "loss": 5.0 - i} for i in range(3)])
    assert column(run, "training_loss")["lora"] == 3.0 and column(run, "training_loss")["hypernet"] is None


def test_the_norm_is_the_mean_over_an_arms_different_adapters(run: Path) -> None:
    expected = {arm: sum(NORMS[arm]) / len(NORMS[arm]) if arm in NORMS else 0.0 for arm in ARMS}
    assert column(run, "delta_w_norm") == pytest.approx(expected)


def test_an_arm_names_its_adapter_or_says_how_many_it_has(run: Path) -> None:
    expected = {"vanilla": "none", "rag": "none", "lora": "lora-0", "static": "static-0"}
    expected |= {"hypernet": "3 adapters", "wrong_trajectory": "2 adapters"}
    assert column(run, "adapter_id") == expected


def test_diversity_is_one_minus_the_raw_cosine_between_tasks(run: Path) -> None:
    found = column(run, "adapter_cosine_diversity")
    assert found["hypernet"] == pytest.approx(0.1) and found["wrong_trajectory"] == pytest.approx(0.4)
    assert all(found[arm] is None for arm in ("vanilla", "rag", "lora", "static"))


def test_rows_come_in_the_decisions_order_with_its_scores(run: Path) -> None:
    assert list(column(run, "phase")) == list(ARMS)
    assert column(run, "pass_at_1") == {arm: 0.1 * i for i, arm in enumerate(ARMS)}


def test_both_files_hold_the_table_and_nothing_stands_for_what_was_not_measured(run: Path) -> None:
    assert tracking.record(run, tracking.Config(enabled=False)) == ""
    rows = tracking.table(run)
    written = json.loads((run / "mlflow.json").read_text())
    assert written == {"columns": list(tracking.COLUMNS), "rows": rows}
    found = list(csv.DictReader((run / "mlflow.csv").open()))
    assert found == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]


def test_a_run_without_decision_or_curves_has_an_empty_table_or_none_where_nothing_is(run: Path) -> None:
    (run / "checkpoints" / "metrics.jsonl").unlink()
    (run / "diagnostics.json").unlink()
    assert set(column(run, "training_loss").values()) == {None}
    assert set(column(run, "adapter_cosine_diversity").values()) == {None}
    (run / "decision.json").unlink()
    assert tracking.table(run) == []


@pytest.mark.parametrize("said", ["", "not tracked (no server); `rune track` writes it again"])
def test_a_run_says_when_it_was_not_tracked_and_is_silent_when_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str
) -> None:
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    settings = types.SimpleNamespace(track=tracking.Config())
    experiment: Any = types.SimpleNamespace(folder=folder, settings=settings, single=True)
    for name in ("pending", "Runner", "run_stage"):  # nothing is left but to say how it went
        monkeypatch.setattr(executor, name, mock.MagicMock())
    monkeypatch.setattr(RunDir, "stage_done", lambda *_: True)
    monkeypatch.setattr(tracking, "record", lambda *_: said)
    executor.go_on(experiment)
    warned = [line for line in capsys.readouterr().err.splitlines() if "done before" not in line]
    assert warned == ([f"warning: {said}"] if said else [])
