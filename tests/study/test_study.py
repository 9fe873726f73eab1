"""An experiment of several cells: each is a run of its own, sealed alike; one decision over all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rune.cli.main import main
from rune.config import derive_seed
from rune.runs import store
from rune.runs.store import RunDir
from rune.types import ModelRef, Problem, Sample, Split, Trajectory, Treatment, Verdict
from tests.pipeline.experiment import settings, write

SEEDS = (3, 4)
FOLDS = 2
HEATS = ("0.8", "0.2")
ARMS = ["vanilla", "rag", "lora", "hypernet", "wrong_trajectory", "oracle"]


def raw(root: Path, model: ModelRef, **design: Any) -> dict[str, Any]:
    return settings(
        root,
        model,
        run={"seed": 5},  # no cell's: what all of them share must not depend on which came first
        design={
            "scored": 0,
            "tasks": 8,
            "folds": FOLDS,
            "seeds": list(SEEDS),
            "temperatures": [float(t) for t in HEATS],
            **design,
        },
        adapt={
            "arms": ARMS,
            "save_adapters": False,
            "settings": {"oracle": {"steps": 1, "rank": 2, "rows": 2, "max_tokens": 3000}},
        },
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef) -> Path:
    root = tmp_path_factory.mktemp("study")
    assert main(["run", str(write(root, raw(root, tiny_model)))]) in (0, 10)
    (folder,) = (root / "runs").iterdir()
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / finished.name))


def cell(folder: Path, seed: int, fold: int, heat: str = HEATS[0]) -> RunDir:
    return RunDir(folder / "cells" / f"temperature-{heat}.seed-{seed}.fold-{fold}")


def cells(folder: Path) -> Iterator[RunDir]:
    for heat in HEATS:
        for seed in SEEDS:
            for fold in range(FOLDS):
                yield cell(folder, seed, fold, heat)


def held_out(folder: RunDir) -> set[str]:
    return {p.task_id for p in store.read_jsonl(folder / "problems.jsonl", Problem) if p.split is Split.HELD_OUT}


def test_there_is_a_cell_for_every_seed_fold_and_temperature_and_nothing_else(finished: Path) -> None:
    assert {c.path.name for c in cells(finished)} == {p.name for p in (finished / "cells").iterdir()}


def test_every_task_is_held_out_once_a_seed(finished: Path) -> None:
    every = {p.task_id for p in store.read_jsonl(finished / "problems.jsonl", Problem)}
    assert len(every) == 8
    for seed in SEEDS:
        scored = [t for fold in range(FOLDS) for t in held_out(cell(finished, seed, fold))]
        assert sorted(scored) == sorted(every)


def test_no_cell_trains_on_or_retrieves_what_it_scores(finished: Path) -> None:
    for one in cells(finished):
        corpus = store.read_jsonl(one / "trajectories.jsonl", Trajectory)
        assert corpus and not held_out(one) & {t.task_id for t in corpus}
        treatments = store.read_jsonl(one / "treatments.jsonl", Treatment)
        assert {t.task_id for t in treatments} == held_out(one)
        assert {i for t in treatments for i in t.trajectory_ids} <= {t.trajectory_id for t in corpus}
        trained_on = json.loads((one / "checkpoints" / "hypernet" / "settings.json").read_text())["trained_on"]
        assert trained_on and not held_out(one) & set(trained_on)


def test_an_adapter_is_named_by_its_content_and_every_arm_has_its_own(finished: Path) -> None:
    for one in cells(finished):
        made = {t.condition: t.adapter for t in store.read_jsonl(one / "treatments.jsonl", Treatment) if t.adapter}
        assert set(made) == {"lora", "hypernet", "wrong_trajectory", "oracle"}
        assert all(len(a.adapter_id) == len(made["lora"].adapter_id) and "/" not in a.adapter_id for a in made.values())
        assert made["oracle"].adapter_id != made["lora"].adapter_id


def test_pooled_figures_hold_every_draw_of_every_seed(finished: Path) -> None:
    result = store.read_json(finished / "result.json")
    assert set(result["variants"]) == {f"temperature-{t}" for t in HEATS}
    for heat in HEATS:
        found = result["variants"][f"temperature-{heat}"]
        some = [cell(finished, s, f, heat) for s in SEEDS for f in range(FOLDS)]
        verdicts = [v for f in some for v in store.read_jsonl(f / "verdicts.jsonl", Verdict)]
        for arm in found["pooled"]["decision"]["arms"]:
            mine = [v for v in verdicts if v.condition == arm["condition"]]
            assert (arm["num_tasks"], arm["num_samples"]) == (8, 8 * 4 * len(SEEDS)) and len(mine) == arm["num_samples"]
            assert arm["num_passed"] == sum(v.outcome == "passed" for v in mine)
        per_seed = [s["decision"]["effect_points"] for s in found["seeds"].values()]
        assert found["pooled"]["decision"]["effect_points"] == pytest.approx(sum(per_seed) / len(per_seed))
    first = result["variants"][f"temperature-{HEATS[0]}"]["pooled"]["decision"]
    assert first == store.read_json(finished / "decision.json")
    assert first["answer"] in (finished / "result.md").read_text()
    assert first["answer"] in (finished / "report.html").read_text()


def test_seeds_draw_and_train_differently_and_temperatures_share_their_adapters(finished: Path) -> None:
    first, second = (cell(finished, seed, 0) for seed in SEEDS)
    drawn = [{s.seed for s in store.read_jsonl(f / "samples.jsonl", Sample)} for f in (first, second)]
    assert drawn[0] and not drawn[0] & drawn[1]
    weights = [(f / "checkpoints" / "hypernet" / "model.safetensors").read_bytes() for f in (first, second)]
    assert weights[0] != weights[1]
    other = cell(finished, SEEDS[0], 0, HEATS[1])
    assert (first / "treatments.jsonl").read_bytes() == (other / "treatments.jsonl").read_bytes()
    assert other.manifest()["stages"]["train"]["same_as"] == first.path.name
    assert "same_as" not in other.manifest()["stages"]["sample"]


def test_the_loop_works_on_a_task_once_for_all_cells(finished: Path) -> None:
    (attempts,) = (finished / "attempts").iterdir()
    steps = [(row["task_id"], row["chain"], row["step"]) for _, row in store.read_lines(attempts)]
    assert len(steps) == len(set(steps)) and {t for t, _, _ in steps} == set().union(*map(held_out, cells(finished)))


def test_the_loop_draws_with_the_runs_seed_whichever_cell_came_first(finished: Path) -> None:
    """The written answers are right, wrong, right by the seed."""
    (attempts,) = (finished / "attempts").iterdir()
    first = [row for _, row in store.read_lines(attempts) if row["step"] == 0]
    assert len(first) == 8
    for row in first:
        wrong = derive_seed(5, "collect", f"{row['task_id']}#{row['chain']}", 0) % 3 == 1
        assert (row["attempt"]["outcome"] == "failed") is wrong


def test_scoring_again_looks_at_every_cell(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *_, last = (RunDir(copy / "cells" / name) for name in RunDir(copy).manifest()["cells"])
    text = (last / "verdicts.jsonl").read_text()
    (last / "verdicts.jsonl").write_text(text.replace('"outcome":"failed"', '"outcome":"passed"', 1))
    assert main(["score", str(copy)]) == 2
    assert f"{last.path}: verdicts.jsonl: 1 outcome edited" in capsys.readouterr().err


def strike(folder: RunDir, *, halves: bool) -> None:
    """What a kill in the sample stage leaves: half a file with a torn line, and nothing after it."""
    manifest, seals = folder.manifest(), store.read_json(folder / "seals.json")
    manifest["stages"]["sample"]["status"] = "running"
    manifest["stages"].pop("score")
    for name in ("samples.jsonl", "verdicts.jsonl"):
        manifest["seals"].pop(name)
        seals.pop(name)
        text = (folder / name).read_text()
        (folder / name).write_text(text[: len(text) // 2] if halves and name == "samples.jsonl" else "")
    store.write_json(folder / "seals.json", seals)
    store.write_json(folder.manifest_path, manifest)


def undecided(folder: Path) -> None:
    manifest = RunDir(folder).manifest()
    manifest["stages"] = {}
    store.write_json(folder / "manifest.json", manifest)
    for name in ("decision.json", "result.json"):
        (folder / name).unlink()


def test_one_that_was_stopped_goes_on_to_the_same_result(finished: Path, copy: Path) -> None:
    strike(cell(copy, SEEDS[1], 1, HEATS[1]), halves=True)
    shutil.rmtree(cell(copy, SEEDS[0], 0, HEATS[1]).path)
    undecided(copy)
    assert main(["run", str(copy), "--resume"]) == 2  # a cell that is gone is not passed over in silence
    shutil.copytree(cell(finished, SEEDS[0], 0, HEATS[1]).path, cell(copy, SEEDS[0], 0, HEATS[1]).path)
    assert main(["run", str(copy), "--resume"]) in (0, 10)
    ours, theirs = (store.read_json(f / "result.json")["variants"] for f in (copy, finished))
    assert ours == theirs


def test_a_finished_one_is_decided_again_without_a_model(
    finished: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (finished / "result.json").read_text()
    monkeypatch.setenv("RUNE_CACHE", "/nonexistent")
    assert main(["gate", str(copy)]) in (0, 10)
    assert (copy / "result.json").read_text() == before


ROOT_FILES = ("config.toml", "problems.jsonl", "preregistration.json")
CELL_FILES = (*ROOT_FILES, "trajectories.jsonl", "treatments.jsonl", "samples.jsonl", "verdicts.jsonl")


@pytest.mark.parametrize(
    ("where", "name"), [("", n) for n in ROOT_FILES] + [("cell", n) for n in CELL_FILES], ids=lambda x: x or "root"
)
def test_editing_any_sealed_file_of_any_cell_is_found_by_the_gate(
    copy: Path, where: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cell(copy, SEEDS[1], 0, HEATS[1]) if where else RunDir(copy)
    text = (folder / name).read_text()
    edited = text.replace("0", "1", 1)
    if name == "verdicts.jsonl":
        edited = text.replace('"outcome":"failed"', '"outcome":"passed"', 1)
    assert edited != text
    (folder / name).write_text(edited)
    assert main(["gate", str(copy)]) == 2
    assert name in capsys.readouterr().err


def test_a_cell_made_anew_under_another_promise_is_found_by_the_gate(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that is whole in itself, but is not the cell that the experiment's config makes."""
    one, other = cell(copy, SEEDS[0], 0), cell(copy, SEEDS[1], 0)
    shutil.rmtree(one.path)
    shutil.copytree(other.path, one.path)
    assert main(["gate", str(copy)]) == 2
    assert "its pre-registration is not what" in capsys.readouterr().err


def test_one_that_was_gone_on_with_elsewhere_names_every_device(copy: Path) -> None:
    (here,) = {c.manifest()["device"] for c in cells(copy)}
    assert store.read_json(copy / "result.json")["device"] == here
    cell(copy, SEEDS[0], 0).update(device="an abacus")
    assert main(["gate", str(copy)]) in (0, 10)
    assert store.read_json(copy / "result.json")["device"] == f"{here} (7 of the cells), an abacus (1 of the cells)"


def test_show_tells_cells_variants_and_the_answer(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "cells   8: 8 × score: done" in out
    result = store.read_json(finished / "result.json")["variants"]
    for name, found in result.items():
        (row,) = [line for line in out.splitlines() if line.startswith(name)]
        decision = found["pooled"]["decision"]
        assert all(f"{100 * arm['pass_at_1']:.1f}" in row for arm in decision["arms"]) and decision["answer"] in row
    assert out.strip().endswith(("Gate PASSED", "Gate FAILED — reassessing"))


def test_the_report_shows_every_variant_with_its_decision(finished: Path) -> None:
    page, text = (finished / "report.html").read_text(), (finished / "report.md").read_text()
    for number, (name, found) in enumerate(store.read_json(finished / "result.json")["variants"].items(), start=1):
        heat, decision = found["settings"]["sample.temperature"], found["pooled"]["decision"]
        (section,) = re.findall(rf'<details id="variant-{number}">.*?</details>', page, re.S)
        assert f"Temperature {heat:g}</b>: {decision['answer']}" in section, name
        assert all(f">{arm['num_passed']} / {arm['num_samples']}<" in section for arm in decision["arms"])
        assert f"### Temperature {heat:g}: {decision['answer']}" in text
    assert 'href="#variants"' in page


def test_gate_prints_each_figure_of_a_cross_fitted_run_once(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", str(copy)]) in (0, 10)
    said = capsys.readouterr()
    assert said.err.strip() == (copy / "result.md").read_text().strip()
    assert said.out.strip() == store.read_json(copy / "decision.json")["answer"]


@pytest.mark.check
def test_several_processes_share_the_cells_and_find_the_same(
    finished: Path, tmp_path: Path, tiny_model: ModelRef
) -> None:
    config = write(tmp_path, raw(tmp_path, tiny_model))
    assert main(["run", str(config), "--jobs", "2"]) in (0, 10)
    (folder,) = (tmp_path / "runs").iterdir()
    assert {p.name for p in folder.glob("worker-*.log")} == {"worker-0.log", "worker-1.log"}
    ours, theirs = (store.read_json(f / "result.json")["variants"] for f in (folder, finished))
    for heat, found in ours.items():  # features are read in other batches, so diagnostics differ in their last digits
        assert {k: found[k] for k in ("pooled", "seeds")} == {k: theirs[heat][k] for k in ("pooled", "seeds")}
    name = RunDir(folder).manifest()["name"]
    readme = tmp_path / "README.md"
    readme.write_text(f"<!-- rune:{name}:begin -->\n<!-- rune:{name}:end -->\n")
    assert main(["report", str(folder), "--readme", str(readme)]) == 0
    answer = ours[f"temperature-{HEATS[0]}"]["pooled"]["decision"]["answer"]
    assert f"**{answer}**" in readme.read_text()


@pytest.mark.parametrize(
    ("design", "said"),
    [
        ({"seeds": [1, 1]}, "once each"),
        ({"folds": 1}, "folds must be 2 or more"),
        ({"folds": 9}, "folds must be between 2 and the number of tasks"),
        ({"grid": {"gate.n": [1, 2]}}, "gate.n cannot differ between variants"),
        ({"grid": {"sample.tmperature": [1, 2]}}, "did you mean 'temperature'?"),
        ({"grid": {"sample.top_p": []}}, "has no values"),
    ],
)
def test_bad_input_is_one_line_and_makes_no_folder(
    tmp_path: Path, tiny_model: ModelRef, capsys: pytest.CaptureFixture[str], design: dict[str, Any], said: str
) -> None:
    assert main(["run", str(write(tmp_path, raw(tmp_path, tiny_model, **design)))]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error
    assert not (tmp_path / "runs").exists()


def test_the_verb_that_is_gone_says_what_does_it_now(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crossfit", "c.toml"]) == 2
    error = capsys.readouterr().err
    assert "`rune run CONFIG`" in error and error.count("\n") == 1


def test_an_old_config_says_where_its_settings_are_now(
    tmp_path: Path, tiny_model: ModelRef, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {**raw(tmp_path, tiny_model), "crossfit": {"seeds": [1]}}
    assert main(["run", str(write(tmp_path, old))]) == 2
    assert "[crossfit] is [design]" in capsys.readouterr().err
