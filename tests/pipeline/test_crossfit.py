"""`rune crossfit`: each task is held out once, trained on by no fold that scores it, and a stopped one goes on."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from experiment import settings, write

from rune import store
from rune.cli.main import main
from rune.types import ModelRef, Problem, Sample, Trajectory, Treatment, Verdict

pytestmark = pytest.mark.xdist_group("crossfit")  # one finished run for all of them
SEEDS = (3, 4)
FOLDS = 2


def raw(root: Path, model: ModelRef, **crossfit: Any) -> dict[str, Any]:
    return settings(
        root,
        model,
        benchmark={"limit": 8, "folds": FOLDS},
        adapt={"arms": ["vanilla", "rag", "lora", "hypernet", "wrong_trajectory"]},
        crossfit={"seeds": list(SEEDS), "temperatures": [0.8, 0.2], **crossfit},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef) -> Path:
    root = tmp_path_factory.mktemp("crossfit")
    assert main(["crossfit", str(write(root, raw(root, tiny_model)))]) in (0, 10)
    (folder,) = (root / "runs").iterdir()
    return folder


def folds(folder: Path) -> list[Path]:
    found = sorted(folder.glob("seed-*/fold-*"))
    assert len(found) == len(SEEDS) * FOLDS
    return found


def test_every_task_is_held_out_once_a_seed(finished: Path) -> None:
    every = {p.task_id for p in store.read_jsonl(finished / "problems.jsonl", Problem)}
    assert len(every) == 8
    for seed in SEEDS:
        scored = [
            p.task_id
            for fold in range(FOLDS)
            for p in store.read_jsonl(finished / f"seed-{seed}" / f"fold-{fold}" / "problems.jsonl", Problem)
        ]
        assert sorted(scored) == sorted(every)


def test_no_fold_trains_on_or_retrieves_what_it_scores(finished: Path) -> None:
    for fold in folds(finished):
        held_out = {p.task_id for p in store.read_jsonl(fold / "problems.jsonl", Problem)}
        pool = {t.trajectory_id: t for t in store.read_jsonl(finished / "corpus.jsonl", Trajectory)}
        corpus = [pool[i] for i in store.read_json(fold / "corpus.json")]
        assert corpus and not held_out & {t.task_id for t in corpus}
        known = {t.trajectory_id for t in corpus}
        treatments = store.read_jsonl(fold / "t0.8" / "treatments.jsonl", Treatment)
        assert {t.task_id for t in treatments} == held_out
        assert {i for t in treatments for i in t.trajectory_ids} <= known
        trained_on = json.loads((fold / "checkpoints" / "hypernet" / "settings.json").read_text())["trained_on"]
        assert trained_on and not held_out & set(trained_on)


def test_pooled_figures_hold_every_draw_of_every_seed(finished: Path) -> None:
    result = store.read_json(finished / "result.json")
    assert set(result["temperatures"]) == {"0.8", "0.2"}
    for name, found in result["temperatures"].items():
        verdicts = [v for f in folds(finished) for v in store.read_jsonl(f / f"t{name}" / "verdicts.jsonl", Verdict)]
        for arm in found["pooled"]["decision"]["arms"]:
            mine = [v for v in verdicts if v.condition == arm["condition"]]
            assert (arm["num_tasks"], arm["num_samples"]) == (8, len(mine) == 8 * 4 * len(SEEDS) and len(mine))
            assert arm["num_passed"] == sum(v.outcome == "passed" for v in mine)
        per_seed = [s["decision"]["effect_points"] for s in found["seeds"].values()]
        assert found["pooled"]["decision"]["effect_points"] == pytest.approx(sum(per_seed) / len(per_seed))
    assert result["temperatures"]["0.8"]["pooled"]["decision"]["answer"] in (finished / "result.md").read_text()


def test_seeds_draw_and_train_differently_and_temperatures_share_their_adapters(finished: Path) -> None:
    first, second = (finished / f"seed-{seed}" / "fold-0" for seed in SEEDS)
    drawn = [{s.seed for s in store.read_jsonl(f / "t0.8" / "samples.jsonl", Sample)} for f in (first, second)]
    assert drawn[0] and not drawn[0] & drawn[1]
    weights = [(f / "checkpoints" / "hypernet" / "model.safetensors").read_bytes() for f in (first, second)]
    assert weights[0] != weights[1]
    same = [(first / t / "treatments.jsonl").read_bytes() for t in ("t0.8", "t0.2")]
    assert same[0] == same[1]


def test_one_that_was_stopped_goes_on_to_the_same_result(finished: Path, tmp_path: Path) -> None:
    """A copy that lost a fold's second half, its last lines torn; what was done is not drawn again."""
    copy = tmp_path / "runs" / finished.name
    shutil.copytree(finished, copy)
    lost = copy / f"seed-{SEEDS[1]}" / "fold-1"
    (lost / "done.json").unlink()
    (lost / "t0.2" / "scored.json").unlink()
    for name in ("samples.jsonl", "verdicts.jsonl"):
        text = (lost / "t0.2" / name).read_text()
        (lost / "t0.2" / name).write_text(text[: len(text) // 2])
    (copy / "result.json").unlink()
    assert main(["crossfit", str(copy), "--resume"]) in (0, 10)
    ours, theirs = (store.read_json(f / "result.json")["temperatures"] for f in (copy, finished))
    assert ours == theirs


def test_a_finished_one_is_decided_again_without_a_model(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (finished / "result.json").read_text()
    monkeypatch.setenv("RUNE_CACHE", "/nonexistent")
    assert main(["crossfit", str(finished)]) in (0, 10)
    assert (finished / "result.json").read_text() == before


def test_a_run_that_was_gone_on_with_elsewhere_names_every_device(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    (here,) = {store.read_json(f / "done.json")["device"] for f in folds(copy)}
    assert store.read_json(copy / "result.json")["device"] == here
    done = folds(copy)[1] / "done.json"
    store.write_json(done, {**store.read_json(done), "device": "an abacus"})
    old = folds(copy)[0] / "done.json"  # before folds named theirs: the run's
    store.write_json(old, {k: v for k, v in store.read_json(old).items() if k != "device"})
    assert main(["crossfit", str(copy)]) in (0, 10)
    result = store.read_json(copy / "result.json")
    assert result["device"] == f"{here} ({len(folds(copy)) - 1} of the folds), an abacus (1 of the folds)"
    assert result["device"] in (copy / "result.md").read_text()


def test_a_rule_that_was_changed_after_the_draws_decides_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / finished.name
    shutil.copytree(finished, copy)
    text = (copy / "config.toml").read_text()
    assert "threshold_points = 5.0" in text
    (copy / "config.toml").write_text(text.replace("threshold_points = 5.0", "threshold_points = 1.0"))
    assert main(["crossfit", str(copy)]) == 2
    assert "edited after the run was made" in capsys.readouterr().err


def test_several_processes_share_the_folds_and_find_the_same(
    finished: Path, tmp_path: Path, tiny_model: ModelRef
) -> None:
    readme = tmp_path / "README.md"
    config = write(tmp_path, raw(tmp_path, tiny_model))
    name = tomllib.loads(config.read_text())["run"]["name"]
    readme.write_text(f"<!-- rune:{name}:begin -->\n<!-- rune:{name}:end -->\n")
    assert main(["crossfit", str(config), "--jobs", "2", "--readme", str(readme)]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    ours, theirs = (store.read_json(f / "result.json")["temperatures"] for f in (folder, finished))
    assert ours == theirs
    answer = ours["0.8"]["pooled"]["decision"]["answer"]
    assert f"**{answer}**" in readme.read_text()


def test_a_worker_that_fails_is_one_line_that_names_its_log(
    finished: Path, tmp_path: Path, tiny_model: ModelRef, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write(tmp_path, raw(tmp_path, tiny_model, seeds=[3], temperatures=[]))
    assert main(["crossfit", str(config)]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    lost = folder / "seed-3" / "fold-0"
    (lost / "done.json").unlink()
    (lost / "t0.8" / "scored.json").unlink()
    (lost / "checkpoints" / "hypernet" / "settings.json").write_text("{")
    capsys.readouterr()
    assert main(["crossfit", str(config), "--resume", "--jobs", "2"]) != 0
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a worker ended with" in error and "worker-0.log" in error


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crossfit": {"start_from": ["only-one"]}}, "start_from needs a folder for each of 2 seeds"),
        ({"crossfit": {"seeds": [1, 1]}}, "each once"),
        ({"benchmark": {"folds": 1}}, "folds must be between 2"),
        ({"crossfit": {"start_from": ["nowhere", "nowhere"]}}, "no checkpoints"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(
    tmp_path: Path, tiny_model: ModelRef, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    given = raw(tmp_path, tiny_model)
    for section, values in changes.items():
        given[section] = {**given[section], **values}
    assert main(["crossfit", str(write(tmp_path, given))]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "runs").exists()
