"""A whole experiment in seconds: real HumanEval tasks, sandbox, training and gate; a tiny model; written answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rune import config
from rune.benchmarks import humaneval
from rune.types import ModelRef

CONDITIONS = ("vanilla", "rag", "lora", "hypernet")


def settings(folder: Path, model: ModelRef, **changes: Any) -> dict[str, Any]:
    """The raw config. `changes` are sections merged over it."""
    schedule = {"steps": 4, "learning_rate": 1e-3, "checkpoint_every": 2}
    raw: dict[str, Any] = {
        "run": {"name": "tiny", "seed": 3, "folder": str(folder / "runs")},
        "model": {"name": model.path, "device": "cpu", "dtype": "float32"},
        "design": {"held_out": 25, "scored": 4},
        "collect": {
            "tasks": 8,
            "chains": 1,
            "max_attempts": 3,
            "temperature": 0.8,
            "max_new_tokens": 400,
            "wave": 3,
        },
        "retrieve": {"top_k": 1},
        "train": {
            "lora": {"schedule": schedule, "rank": 2, "alpha": 2.0, "rows": 2, "max_tokens": 3000},
            "hypernet": {
                "schedule": schedule,
                "rank": 2,
                "alpha": 2.0,
                "groups": 2,
                "targets": 1,
                "max_tokens": 3000,
                "taps": [0, 1, 2],
                "pairs": {"retrieved": 1.0, "max_sources": 1},
                "weights": {"cross_entropy": 1.0},
                "encoder_settings": {"width": 32, "latents": 4, "blocks": 1, "heads": 2},
            },
        },
        "adapt": {"arms": list(CONDITIONS)},
        "sample": {"n": 4, "temperature": 0.8, "max_new_tokens": 400, "top_p": 1.0, "top_k": 0},
        "score": {},
        "gate": {"n": 4, "resamples": 200, "simulations": 100},
        "engine": {"name": "scripted", "settings": {"answers": answers(), "read_adapters": True, "default": ["pass"]}},
        "track": {"enabled": False},
    }
    for section, values in changes.items():
        raw[section] = {**raw.get(section, {}), **values}
    return raw


def answers() -> dict[str, list[str]]:
    """Right and wrong by seed for every task, as a model would write them after the prefill."""
    texts = {}
    for problem in humaneval.build(humaneval.Config()).problems():
        wrong = f"def {problem.entry_point}(*args):\n    return None\n```\n"
        texts[problem.prompt.strip()] = [f"{problem.reference}\n```\n", wrong, f"{problem.reference}\n```\n"]
    return texts


def write(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "experiment.toml"
    path.write_text(config.dump_toml(raw))
    return path
