"""The whole path, every stage real, on a tiny model with written answers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rune.cli.main import main
from rune.runs import store
from rune.types import ModelRef, Problem, Sample, Split, Trajectory, Treatment, Verdict
from tests.pipeline.experiment import CONDITIONS, settings, write


def run(config: Path, *extra: str) -> int:
    return main(["run", str(config), *extra])


def folder_of(root: Path) -> Path:
    (found,) = (root / "runs").iterdir()
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef) -> Path:
    root = tmp_path_factory.mktemp("finished")
    code = run(write(root, settings(root, tiny_model)))
    assert code in (0, 10)
    return folder_of(root)


def test_a_run_ends_with_a_decision_and_a_report(finished: Path) -> None:
    decision = json.loads((finished / "decision.json").read_text())
    assert decision["answer"] in ("Gate PASSED", "Gate FAILED — reassessing")
    assert {a["condition"] for a in decision["arms"]} >= set(CONDITIONS)
    assert decision["answer"] in (finished / "report.html").read_text()
    stages = json.loads((finished / "manifest.json").read_text())["stages"]
    assert [s["status"] for s in stages.values()] == ["done"] * 7


def test_every_arm_draws_the_same_seeds_for_the_same_tasks(finished: Path) -> None:
    samples = store.read_jsonl(finished / "samples.jsonl", Sample)
    seeds = {arm: {(s.task_id, s.draw): s.seed for s in samples if s.condition == arm} for arm in CONDITIONS}
    assert len(seeds["vanilla"]) == 16
    assert all(seeds[arm] == seeds["vanilla"] for arm in CONDITIONS)
    assert len(set(seeds["vanilla"].values())) == 16


def test_only_train_tasks_reach_trajectories_and_treatments(finished: Path) -> None:
    problems = store.read_jsonl(finished / "problems.jsonl", Problem)
    held_out = {p.task_id for p in problems if p.split is Split.HELD_OUT}
    trajectories = store.read_jsonl(finished / "trajectories.jsonl", Trajectory)
    treatments = store.read_jsonl(finished / "treatments.jsonl", Treatment)
    assert trajectories and not held_out & {t.task_id for t in trajectories}
    assert {t.task_id for t in treatments} == held_out
    ids = {t.trajectory_id for t in trajectories}
    assert {i for t in treatments for i in t.trajectory_ids} <= ids


def test_rag_and_hypernet_get_the_same_trajectories(finished: Path) -> None:
    treatments = store.read_jsonl(finished / "treatments.jsonl", Treatment)
    by_arm = {arm: {t.task_id: t.trajectory_ids for t in treatments if t.condition == arm} for arm in CONDITIONS}
    assert by_arm["rag"] == by_arm["hypernet"]
    assert all(by_arm["rag"].values())


def test_arms_differ_in_context_and_adapter_only(finished: Path) -> None:
    for treatment in store.read_jsonl(finished / "treatments.jsonl", Treatment):
        assert bool(treatment.context) == (treatment.condition == "rag")
        assert (treatment.adapter is not None) == (treatment.condition in ("lora", "hypernet"))


def test_no_record_says_where_on_this_machine_an_adapter_lies(finished: Path) -> None:
    """An adapter is named by its content, so a run can be moved; `test_lost_samples…` draws on in a copy."""
    assert str(finished.parent.parent) not in (finished / "treatments.jsonl").read_text()
    ids = {hashlib.sha256(f.read_bytes()).hexdigest() for f in finished.glob("adapters/*/*/adapter_model.safetensors")}
    treatments = store.read_jsonl(finished / "treatments.jsonl", Treatment)
    assert {t.adapter.adapter_id for t in treatments if t.adapter} == ids


def test_attempts_hold_failures_with_their_errors(finished: Path) -> None:
    attempts = [a for t in store.read_jsonl(finished / "trajectories.jsonl", Trajectory) for a in t.attempts]
    failed = [a for a in attempts if a.outcome != "passed"]
    assert failed and all(a.error_kind and a.error for a in failed)


def test_a_finished_run_is_not_overwritten(finished: Path, tiny_model: ModelRef, capsys: Any) -> None:
    root = finished.parent.parent
    assert run(root / "experiment.toml") == 2
    assert "--resume" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_no_record(finished: Path, tiny_model: ModelRef) -> None:
    names = ("problems", "trajectories", "treatments", "samples", "verdicts")
    before = {n: (finished / f"{n}.jsonl").read_bytes() for n in names}
    assert run(finished.parent.parent / "experiment.toml", "--resume") in (0, 10)
    assert before == {n: (finished / f"{n}.jsonl").read_bytes() for n in names}


def test_show_says_what_it_found(finished: Path, capsys: Any) -> None:
    assert main(["show", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "hypernet" in out and out.strip().endswith(("Gate PASSED", "Gate FAILED — reassessing"))
    assert main(["show", str(finished.parent)]) == 0
    assert finished.name in capsys.readouterr().out


def test_lost_samples_and_verdicts_are_drawn_again_the_same(finished: Path, tmp_path: Path) -> None:
    """What a kill leaves: half the samples, a torn line, no verdict. Resume restores all of it."""
    import shutil

    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    full = store.read_jsonl(copy / "samples.jsonl", Sample)
    lines = (copy / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "samples.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"task_id": "Hum')
    (copy / "verdicts.jsonl").unlink()
    (copy / "decision.json").unlink()
    manifest = json.loads((copy / "manifest.json").read_text())
    for stage in ("sample", "score", "gate", "report"):
        manifest["stages"].pop(stage)
    for name in ("samples.jsonl", "verdicts.jsonl"):
        manifest["seals"].pop(name)
    store.write_json(copy / "manifest.json", manifest)
    seals = json.loads((copy / "seals.json").read_text())
    store.write_json(copy / "seals.json", {k: v for k, v in seals.items() if k in manifest["seals"]})
    for stage in ("sample", "score", "gate"):
        assert main([stage, str(copy)]) in (0, 10)

    def key(s: Any) -> tuple[str, str, int]:
        return (s.condition, s.task_id, s.draw)

    assert sorted(store.read_jsonl(copy / "samples.jsonl", Sample), key=key) == sorted(full, key=key)
    old = {key(v): v.outcome for v in store.read_jsonl(finished / "verdicts.jsonl", Verdict)}
    assert {key(v): v.outcome for v in store.read_jsonl(copy / "verdicts.jsonl", Verdict)} == old
    before, after = (json.loads((f / "decision.json").read_text()) for f in (finished, copy))
    assert after["effect_points"] == before["effect_points"] and after["answer"] == before["answer"]
