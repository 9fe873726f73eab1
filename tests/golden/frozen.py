"""What one tiny run and one tiny cross-fitted run write, as plain data by which two versions of the code are compared.

    .venv/bin/python tests/golden/frozen.py        # freezes them anew: only for a difference that was asked for

Times, versions, machine and paths are left out; long texts and weights are digests, weights with their norm beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))


from rune import config
from rune.cli.main import main
from rune.runs import store
from rune.types import ModelRef, Problem, Sample, Split, Trajectory, Treatment, Verdict
from tests.pipeline import experiment

SEEDS, FOLDS, TEMPERATURES = (3, 4), 2, ("0.8", "0.2")
ARMS = ("vanilla", "rag", "lora", "hypernet", "wrong_trajectory")


def one_thread() -> None:
    """Sums over several threads round differently from machine to machine."""
    import torch

    torch.set_num_threads(1)


def run(root: Path, model: ModelRef) -> Path:
    """A plain run's folder."""
    one_thread()
    raw = experiment.settings(root, model, adapt={"arms": list(ARMS)})
    assert main(["run", str(experiment.write(root, raw))]) in (0, 10)
    (folder,) = (root / "runs").iterdir()
    return folder


def crossfit(root: Path, model: ModelRef) -> Path:
    """A cross-fitted run's folder: two seeds, two folds, two temperatures."""
    one_thread()
    raw = experiment.settings(
        root,
        model,
        design={
            "scored": 0,
            "tasks": 8,
            "folds": FOLDS,
            "seeds": list(SEEDS),
            "temperatures": [float(t) for t in TEMPERATURES],
        },
        adapt={"arms": list(ARMS), "save_adapters": False},
    )
    assert main(["run", str(experiment.write(root, raw))]) in (0, 10)
    (folder,) = (root / "runs").iterdir()
    return folder


def view_run(folder: Path) -> dict[str, Any]:
    """Everything that a plain run wrote."""
    from rune.reporting import data
    from rune.runs.store import RunDir

    report = data.gather(RunDir(folder), programs_per_arm=5, most_programs=3000)
    leakage = store.read_json(folder / "leakage.json")
    return {
        "cell": cell(folder, folder, store.read_jsonl(folder / "trajectories.jsonl", Trajectory)),
        "attempts": digest(lines(folder / "attempts.jsonl")),
        "adapters": {
            str(f.parent.relative_to(folder)): weights(f) for f in sorted(folder.glob("adapters/*/*/*.safetensors"))
        },
        "decision": rounded(store.read_json(folder / "decision.json")),
        "leakage": rounded({k: v for k, v in leakage.items() if k != "rows"}),
        "report": {
            "tasks": digest(config.plain(report.tasks)),
            "corpus": {k: v for k, v in config.plain(report.corpus).items() if k != "source"},  # a path is in it
            "changes": list(report.changes),
            "arm_adapters": dict(report.arm_adapters),
            "training": [[t.name, list(t.steps), sorted(t.terms)] for t in report.training],
        },
    }


def view_crossfit(folder: Path) -> dict[str, Any]:
    """Everything that a cross-fitted run wrote, by seed, fold and temperature."""
    cells, decisions = {}, {}
    for seed in SEEDS:
        for fold in range(FOLDS):
            for t in TEMPERATURES:
                where = folder / "cells" / f"temperature-{t}.seed-{seed}.fold-{fold}"
                corpus = store.read_jsonl(where / "trajectories.jsonl", Trajectory)
                cells[f"seed {seed} fold {fold} temperature {t}"] = cell(where, where, corpus)
    for t in TEMPERATURES:
        found = store.read_json(folder / "result.json")["variants"][f"temperature-{t}"]
        decisions[t] = {
            "pooled": rounded(found["pooled"]["decision"]),
            "suspicious": found["pooled"]["suspicious"],
            "seeds": {s: rounded(d["decision"]) for s, d in found["seeds"].items()},
        }
    (attempts,) = (folder / "attempts").iterdir()
    return {"cells": cells, "decisions": decisions, "attempts": digest(lines(attempts))}


def cell(trained: Path, drawn: Path, corpus: list[Trajectory]) -> dict[str, Any]:
    """One cell: `trained` holds problems, checkpoints and diagnostics; `drawn` what was drawn with them."""
    treatments = store.read_jsonl(drawn / "treatments.jsonl", Treatment)
    verdicts = store.read_jsonl(drawn / "verdicts.jsonl", Verdict)
    samples = sorted(store.read_jsonl(drawn / "samples.jsonl", Sample), key=lambda s: (s.condition, s.task_id, s.draw))
    problems = store.read_jsonl(trained / "problems.jsonl", Problem)
    return {
        "held_out": [p.task_id for p in problems if p.split is Split.HELD_OUT],
        "problems": digest(sorted((p.task_id, p.prompt, p.test, p.reference) for p in problems if held(p))),
        "trajectories": [[t.trajectory_id, t.task_id] for t in corpus],
        "treatments": {
            arm: [[t.task_id, digest(t.context), list(t.trajectory_ids)] for t in treatments if t.condition == arm]
            for arm in ARMS
        },
        "norms": {f"{t.condition} {t.task_id}": t.adapter.delta_w_norm for t in treatments if t.adapter is not None},
        "samples": digest([config.plain(s) for s in samples]),
        "verdicts": {f"{v.condition} {v.task_id} {v.draw}": f"{v.outcome} {v.error_kind}" for v in verdicts},
        "diagnostics": rounded(store.read_json(trained / "diagnostics.json")),
        "checkpoints": {
            kind: weights(trained / "checkpoints" / kind / "model.safetensors") for kind in ("lora", "hypernet")
        },
    }


def held(problem: Problem) -> bool:
    return problem.split is Split.HELD_OUT


def weights(path: Path) -> dict[str, Any]:
    """A safetensors file: digest of its tensors' bytes, and ‖·‖ over all of them."""
    from safetensors import safe_open

    hasher, square = hashlib.sha256(), 0.0
    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            hasher.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            hasher.update(tensor.contiguous().numpy().tobytes())
            square += float(tensor.double().square().sum())
    return {"sha256": hasher.hexdigest(), "norm": square**0.5}


def lines(path: Path) -> list[Any]:
    return sorted((row for _, row in store.read_lines(path)), key=json.dumps)


def digest(value: Any) -> str:
    return config.digest(value)[:16]


def rounded(value: Any) -> Any:
    """Numbers to 6 significant digits: two sums of the same terms may differ in the last bits. No large tables."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items() if k not in ("matrix", "curve", "pass_curve")}
    return [rounded(v) for v in value] if isinstance(value, list) else value


UNSTEADY = ("/swap/", "/cosine_centred", "/effective_rank")  # differences of nearly equal adapters: last bits decide
MADE_OF_WEIGHTS = ("/norms", "/diagnostics", "/checkpoints", "/adapters")


def differences(frozen: Any, found: Any, where: str = "") -> list[str]:
    """Where two views differ.

    Weights are the same to the bit, or their norms within 5 %: torch's kernels round by how memory happens to be
    aligned, and Adam's first steps make a last bit visible. All that is made of integers and text must be equal.
    """
    if isinstance(frozen, dict) and isinstance(found, dict):
        if set(frozen) == {"sha256", "norm"}:
            same = frozen["sha256"] == found["sha256"] or close(frozen["norm"], found["norm"], 0.05)
            return [] if same else [f"{where}: {frozen} → {found}"]
        gone = [f"{where}/{k}: gone" for k in frozen if k not in found]
        come = [f"{where}/{k}: new" for k in found if k not in frozen]
        shared = [k for k in frozen if k in found]
        return gone + come + [d for k in shared for d in differences(frozen[k], found[k], f"{where}/{k}")]
    if isinstance(frozen, list) and isinstance(found, list) and len(frozen) == len(found):
        pairs = enumerate(zip(frozen, found, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]")]
    if isinstance(frozen, float) and isinstance(found, (int, float)):
        if any(part in where for part in UNSTEADY):
            return []
        loose = any(part in where for part in MADE_OF_WEIGHTS)
        return [] if close(frozen, found, 0.05 if loose else 1e-4) else [f"{where}: {frozen} → {found}"]
    return [] if frozen == found else [f"{where}: {str(frozen)[:80]} → {str(found)[:80]}"]


def close(a: float, b: float, share: float) -> bool:
    return abs(a - b) <= share * max(abs(a), abs(b), 1e-3) + (share if share > 0.01 else 1e-6)


VIEWS = {"run": (run, view_run), "crossfit": (crossfit, view_crossfit)}


def freeze() -> None:
    from tests.conftest import make_tiny_model

    os.environ["RUNE_CACHE"] = tempfile.mkdtemp()
    for name, (make, view) in VIEWS.items():
        root = Path(tempfile.mkdtemp())
        found = view(make(root, make_tiny_model(root / "model", seed=0)))
        frozen = json.loads(json.dumps(config.plain(found)))
        (HERE / f"{name}.json").write_text(json.dumps(frozen, indent=1, ensure_ascii=False) + "\n")
        print(f"{name}.json: {config.digest(frozen)[:12]}")


if __name__ == "__main__":
    freeze()
