"""Whole domains held out, and their tasks given what other tasks of the domain left: shown, and never trained on.

The config is that of the private conventions, made small.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rune import config
from rune.benchmarks import families
from rune.cli.main import main
from rune.errors import DataError
from rune.runs import store
from rune.study.config import load
from rune.types import ModelRef, Problem, Split, Trajectory, Treatment
from tests.pipeline.experiment import settings

ROOT = Path(__file__).parents[2]
CONVENTIONS = {"seed": 0, "families": 12, "held_out": 4, "tasks": 3}
SIBLING, OWN = (f"{name}.seed-3.held-out" for name in ("sibling", "own"))


def tool(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(folder: Path, model: ModelRef) -> Path:
    """configs/families-0.5b.toml with a tiny model, written answers, and few tasks."""
    raw = config.parse((ROOT / "configs" / "families-0.5b.toml").read_text(), where="families")
    tiny = settings(folder, model)
    for section in ("run", "model", "track"):
        raw[section] = tiny[section]
    texts = {}
    for problem in families.generate(families.Config(**CONVENTIONS)):
        if problem.split is Split.HELD_OUT:  # prompts are the same in several conventions: some pass, some do not
            texts[problem.prompt.strip()] = [f"{problem.reference}\n```\n", "def f(data):\n    return None\n```\n"]
    raw["engine"] = {"name": "scripted", "settings": {"answers": texts, "default": ["pass"]}}
    raw["benchmark"]["settings"] = CONVENTIONS
    raw["design"]["scored"] = 6
    raw["collect"] |= {"imports": ["data/trajectories.jsonl"], "shown": ["data/siblings.jsonl"]}
    raw["train"] = tiny["train"]
    raw["train"]["hypernet"]["pairs"] = {"recall": 0.4, "family": 0.6, "max_sources": 2}
    raw["sample"] |= {"n": 2}
    raw["gate"] |= {"n": 2, "resamples": 200, "simulations": 100}
    path = folder / "families.toml"
    path.write_text(config.dump_toml(raw))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef) -> Path:
    root = tmp_path_factory.mktemp("shown")
    path = small(root, tiny_model)
    tool("studies/private-conventions/corpus.py").write(load(path))
    assert main(["run", str(path)]) in (0, 10)
    (folder,) = (root / "runs").iterdir()
    return folder


def records(finished: Path, cell: str) -> tuple[dict[str, Problem], dict[str, Trajectory], list[Treatment]]:
    """(held-out tasks, what is shown, treatments) of a cell."""
    where = finished / "cells" / cell
    held_out = {p.task_id: p for p in store.read_jsonl(where / "problems.jsonl", Problem) if p.split is Split.HELD_OUT}
    shown = {t.trajectory_id: t for t in store.read_jsonl(where / "shown.jsonl", Trajectory)}
    return held_out, shown, store.read_jsonl(where / "treatments.jsonl", Treatment)


def test_a_task_is_given_what_other_tasks_of_its_domain_left(finished: Path) -> None:
    held_out, shown, treatments = records(finished, SIBLING)
    corpus = store.read_jsonl(finished / "cells" / SIBLING / "trajectories.jsonl", Trajectory)
    trained = {t.trajectory_id: t for t in corpus}
    assert len(held_out) == 6
    for treatment in treatments:
        task = held_out[treatment.task_id]
        if treatment.condition in ("hypernet", "teacher"):
            used = [shown[i] for i in treatment.trajectory_ids]
            assert len(used) == 2 and all(t.domain == task.domain and t.task_id != task.task_id for t in used)
        if treatment.condition == "wrong_trajectory":
            known = shown | trained  # where no other task's set will do, of the corpus
            assert all(known[i].domain != task.domain for i in treatment.trajectory_ids)


def test_a_variant_asks_for_recall_with_the_tasks_own_trajectory(finished: Path) -> None:
    held_out, shown, treatments = records(finished, OWN)
    for treatment in treatments:
        if treatment.condition == "hypernet":
            assert [shown[i].task_id for i in treatment.trajectory_ids] == [treatment.task_id]
            assert treatment.task_id in held_out
    manifest = store.read_json(finished / "cells" / OWN / "manifest.json")
    assert manifest["stages"]["train"]["same_as"] == SIBLING


def test_nothing_trains_on_what_is_shown(finished: Path) -> None:
    held_out, shown, _ = records(finished, SIBLING)
    where = finished / "cells" / SIBLING
    trained = store.read_jsonl(where / "trajectories.jsonl", Trajectory)
    assert trained and not {t.trajectory_id for t in trained} & set(shown)
    assert not {t.domain for t in trained} & {t.domain for t in shown.values()}
    for kind in ("lora", "hypernet"):
        known = store.read_json(where / "checkpoints" / kind / "settings.json")["trained_on"]
        assert known and not set(known) & {t.task_id for t in shown.values()}
    found = store.read_json(finished / "leakage.json")
    assert [r["why"] for r in found["rows"] if r["suspicious"]] == []
    assert found["status"] == "clean" and len(found["rows"]) == len(held_out)


def test_what_is_shown_may_not_train(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = config.parse((finished.parents[1] / "families.toml").read_text(), where="families")
    raw["run"] |= {"name": "leaks", "folder": str(tmp_path)}
    raw["collect"] |= {"imports": ["data/siblings.jsonl"]}
    path = finished.parents[1] / "leaks.toml"
    path.write_text(config.dump_toml(raw))
    assert main(["collect", str(path)]) == 2
    assert "held" in capsys.readouterr().err


def test_an_edited_shown_record_stops_the_gate(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in ("edited", "gone"):
        copy = Path(shutil.copytree(finished, tmp_path / change / finished.name))
        path = copy / "cells" / SIBLING / "shown.jsonl"
        if change == "gone":
            path.unlink()
        else:
            path.write_text(path.read_text().replace("return", "return ", 1))
        assert main(["gate", str(copy)]) == 2
        assert "shown.jsonl" in capsys.readouterr().err


def test_an_own_trajectory_in_the_deciding_variant_is_a_leak(finished: Path) -> None:
    from rune.analysis import leakage

    held_out, shown, treatments = records(finished, OWN)
    trained = store.read_jsonl(finished / "cells" / OWN / "trajectories.jsonl", Trajectory)
    rows = leakage.rows(list(held_out.values()), trained, treatments, shown=list(shown.values()))
    assert all(r.suspicious and "its own trajectory" in r.why for r in rows)


def test_a_domains_own_code_in_a_context_is_no_leak_and_the_tasks_own_solution_is_one(finished: Path) -> None:
    from rune.analysis import leakage

    held_out, shown, treatments = records(finished, SIBLING)
    (given,) = [t for t in treatments if t.condition == "teacher"][:1]
    task = held_out[given.task_id]
    siblings = [t for t in shown.values() if t.domain == task.domain and t.task_id != task.task_id]
    assert siblings and all(t.solution.strip() in given.context for t in siblings)
    assert not leakage.rows([task], [], [given], shown=siblings)[0].suspicious
    told = replace(given, context=f"{given.context}\n{task.reference}")
    assert leakage.rows([task], [], [told], shown=siblings)[0].in_context


def test_what_was_trained_ships_in_half_the_bytes(finished: Path, tmp_path: Path, tiny_model: ModelRef) -> None:
    from rune.hypernet import checkpoint

    where = finished / "cells" / SIBLING
    tool("tools/ship_hypernet.py").ship(where, tmp_path / "shipped")
    folders = (where / "checkpoints" / "hypernet", tmp_path / "shipped")
    trained, shipped = (checkpoint.load(f, tiny_model, device="cpu").both for f in folders)
    assert trained is not None and shipped is not None
    kept = set(trained.inference_state_dict())  # without what only training needs, which is new in each loading
    for (name, full), half in zip(trained.named_parameters(), shipped.parameters(), strict=True):
        assert name not in kept or torch.allclose(full, half, atol=1e-3, rtol=1e-3), name
    full_size, half_size = ((f / "model.safetensors").stat().st_size for f in folders)
    assert half_size < 0.75 * full_size
    manifest = store.read_json(tmp_path / "shipped" / "manifest.json")
    assert manifest["sha256"]["shipped/settings.json"] == store.sha256_file(tmp_path / "shipped" / "settings.json")
    assert (tmp_path / "shipped" / "result.md").read_bytes() == (finished / "result.md").read_bytes()
    with pytest.raises(DataError):
        tool("tools/ship_hypernet.py").ship(finished, tmp_path / "none")


def test_what_is_shown_needs_a_domain(tmp_path: Path) -> None:
    from rune.stages import collect

    one: dict[str, Any] = {"trajectory_id": "a", "task_id": "T/1", "benchmark": "b", "prompt": "p", "attempts": []}
    one["attempts"] = [{"code": "x = 1", "outcome": "passed"}]
    (tmp_path / "t.jsonl").write_text(json.dumps({**one, "solution": "x = 1"}) + "\n")
    with pytest.raises(DataError, match=r"t.jsonl:1: field 'domain' is empty"):
        collect.shown([str(tmp_path / "t.jsonl")], {})
