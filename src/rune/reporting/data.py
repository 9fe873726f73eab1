"""Everything the report shows, read from a run folder into one plain record. No HTML here, no plotting.

Only decision.json is required. Whatever else is missing (diagnostics, curves, corpus) is None, and the page
says "not measured".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune.benchmarks.scorers import updates
from rune.runs import integrity, records, store
from rune.runs.store import RunDir
from rune.types import Contrast, Decision, Outcome, Sample, Scorer, Split, Trajectory, Verdict

CONDITIONS = ("vanilla", "rag", "lora", "hypernet")  # the specified four; every other arm is a control
MEANING: Mapping[str, str] = {
    "vanilla": "the bare model",
    "rag": "retrieved trajectories as text in the context",
    "lora": "one LoRA fine-tuned on the same trajectories",
    "hypernet": "a LoRA generated from the retrieved trajectories in one forward pass",
    "static": "the hypernetwork's constant part alone",
    "wrong_trajectory": "a LoRA generated from another task's trajectories",
    "empty_trajectory": "a LoRA generated from nothing",
    "teacher": "the trajectory as text in the context, the hypernetwork's teacher",
    "oracle": "a LoRA trained by gradient steps on each trajectory",
    "hypernet_mean": "the mean of all generated LoRAs, the same for every task",
    "hypernet_centred": "what a task's generated LoRA has beside the mean of all",
    "tuned": "a LoRA fine-tuned on the trajectories that the task is given",
    "tuned_wrong": "a LoRA fine-tuned on another domain's trajectories",
    "tuned_mean": "the mean of all fine-tuned LoRAs, the same for every task",
}

# What a pass is, where the word alone does not say it.
COUNTED: Mapping[Scorer, str] = {
    Scorer.EXECUTION_WITH_AND_WITHOUT: (
        "A draw passes if its program passes the test with what has changed and does not pass without it."
    ),
    Scorer.EXACT_VALUE: "A draw passes if its answer is a Python literal of the expected value.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Equal programs of one arm, shown once."""

    code: str
    outcome: str
    error: str
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One held-out task with what every arm made of it."""

    task_id: str
    category: str
    prompt: str
    passes: Mapping[str, int]
    change: int  # draws passed by the treatment − by the baseline
    programs: Mapping[str, tuple[Program, ...]]
    hidden: int  # draws not shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """One training phase's metrics, column by column."""

    name: str
    steps: tuple[float, ...]
    terms: Mapping[str, tuple[float, ...]]
    last_loss: float  # mean of the last tenth
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The page's content."""

    name: str
    path: str
    decision: Decision
    manifest: Mapping[str, Any]
    settings: str  # config.toml as text
    preregistration: Mapping[str, Any]
    changes: tuple[str, ...]  # what the seals found
    leakage: Mapping[str, Any] | None
    diagnostics: Mapping[str, Any]  # "arms", "training", "swap" of diagnostics.json; each may be empty
    training: tuple[Training, ...]
    corpus: Mapping[str, Mapping[str, int]] | None
    warnings: tuple[str, ...]  # what `collect` found odd in its corpus
    tasks: tuple[Task, ...]
    arm_adapters: Mapping[str, int]  # arm → number of different adapters
    arm_norms: Mapping[str, float]  # arm → mean ‖ΔW‖_F of its adapters, from treatments.jsonl
    result: Mapping[str, Any] | None = None  # result.json of several cells, in today's layout
    named: Mapping[str, int] | None = None  # arm → draws passed by a program that names what was updated, where told

    @property
    def primary(self) -> Contrast:
        return self.decision.contrasts[0]


def gather(
    folder: RunDir,
    found: records.Records | None = None,
    result: Mapping[str, Any] | None = None,
    *,
    programs_per_arm: int,
    most_programs: int,
) -> Report:
    """Read a decided run; `found` are the records of all its cells, `result` its result.json if it has several.

    Raises DataError if it has no decision.
    """
    decision = records.decision(folder)
    found = found or records.of_run(folder)
    treatments = found.treatments
    adapters = {arm: {t.adapter for t in treatments if t.condition == arm and t.adapter} for arm in _arms(decision)}
    return Report(
        name=str(folder.manifest().get("name", folder.path.name)),
        path=folder.path.name,
        decision=decision,
        manifest=folder.told(),
        settings=(folder / "config.toml").read_text(encoding="utf-8"),
        preregistration=_optional(folder, integrity.PREREGISTRATION) or {},
        changes=found.changes,
        leakage=_optional(folder, "leakage.json"),
        diagnostics={"arms": {}, "training": {}, "swap": {}, **found.diagnostics},
        training=training(found.metrics),
        corpus=_corpus(found.trajectories),
        warnings=tuple((_optional(folder, "corpus.json") or {}).get("warnings", ())),
        tasks=_tasks(found, decision, programs_per_arm, most_programs),
        arm_adapters={arm: len(found) for arm, found in adapters.items()},
        arm_norms={arm: sum(a.delta_w_norm for a in f) / len(f) for arm, f in adapters.items() if f},
        result=result,
        named=_named(found, decision),
    )


def _arms(decision: Decision) -> list[str]:
    return [a.condition for a in decision.arms]


def _optional(folder: RunDir, name: str) -> Any:
    return store.read_json(folder / name) if (folder / name).exists() else None


def training(metrics: Sequence[Path]) -> tuple[Training, ...]:
    """Every phase of every metrics.jsonl, in file order."""
    phases = []
    for path in metrics:
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for _, row in store.read_lines(path):
            rows.setdefault(str(row.get("phase", path.parent.name)), []).append(row)
        phases += [_phase(path.parent.name, phase, found) for phase, found in rows.items()]
    return tuple(phases)


_NOT_A_TERM = ("phase", "step", "learning_rate", "gradient_norm", "tokens_per_second", "peak_bytes")


def _phase(folder: str, phase: str, rows: Sequence[Mapping[str, Any]]) -> Training:
    names = [k for k in rows[0] if k not in _NOT_A_TERM and isinstance(rows[0][k], (int, float))]
    losses = [float(r["loss"]) for r in rows]
    tail = losses[-max(1, len(losses) // 10) :]
    speeds = [float(s) for r in rows if (s := r.get("tokens_per_second"))]
    return Training(
        name=phase if phase == folder or folder == "checkpoints" else f"{folder}, {phase}",
        steps=tuple(float(r["step"]) for r in rows),
        terms={k: tuple(float(r.get(k, 0.0)) for r in rows) for k in names},
        last_loss=sum(tail) / len(tail),
        tokens_per_second=sum(speeds) / len(speeds) if speeds else None,
    )


def _corpus(trajectories: Sequence[Trajectory]) -> dict[str, dict[str, int]] | None:
    if not trajectories:
        return None
    failures = Counter(a.error_kind or "failed" for t in trajectories for a in t.attempts if a.outcome != "passed")
    kinds = Counter(
        "exhausted" if not t.solved else "first try" if len(t.attempts) == 1 else "corrected" for t in trajectories
    )
    return {
        "totals": {"trajectories": len(trajectories), "attempts": sum(len(t.attempts) for t in trajectories)},
        "how it ended": dict(kinds),
        "category": dict(Counter(t.category or t.benchmark for t in trajectories).most_common(12)),
        "failure": dict(failures.most_common(12)),
        "source": dict(Counter(t.source or "unknown" for t in trajectories).most_common(12)),
    }


def _tasks(found: records.Records, decision: Decision, programs_per_arm: int, most_programs: int) -> tuple[Task, ...]:
    """From most gained to most lost. Programs are shown up to a budget, the same for every task and arm."""
    passes = decision.details["passes"]
    order = list(decision.details["tasks"])
    treatment, baseline = decision.contrasts[0].treatment, decision.contrasts[0].baseline
    verdicts = {(v.condition, v.task_id, v.draw): v for v in found.verdicts}
    samples: dict[tuple[str, str], list[Sample]] = {}
    for sample in found.samples:
        samples.setdefault((sample.condition, sample.task_id), []).append(sample)
    budget = max(1, min(programs_per_arm, most_programs // max(1, len(order) * len(passes))))
    tasks = []
    for problem in found.problems:
        if problem.split is not Split.HELD_OUT or problem.task_id not in order:
            continue
        index = order.index(problem.task_id)
        shown = {a: _distinct(samples.get((a, problem.task_id), []), verdicts, budget) for a in passes}
        visible = sum(p.times for found in shown.values() for p in found)
        tasks.append(
            Task(
                task_id=problem.task_id,
                category=problem.category,
                prompt=problem.prompt,
                passes={arm: c[index] for arm, c in passes.items()},
                change=passes[treatment][index] - passes[baseline][index],
                programs=shown,
                hidden=sum(len(samples.get((a, problem.task_id), [])) for a in passes) - visible,
            )
        )
    return tuple(sorted(tasks, key=lambda t: (-t.change, -sum(t.passes.values()), t.task_id)))


def _named(found: records.Records, decision: Decision) -> dict[str, int] | None:
    """Of the draws that count, those whose program names the updated function; None where tasks do not say which."""
    if decision.scorer is not Scorer.EXECUTION_WITH_AND_WITHOUT:
        return None
    tasks = {p.task_id: p for p in found.problems if p.task_id in set(decision.details["tasks"])}
    passed = {(v.condition, v.task_id, v.draw) for v in found.verdicts if v.outcome is Outcome.PASSED}
    named = dict.fromkeys(decision.details["passes"], 0)
    for s in found.samples:
        if s.draw >= decision.details["n"] or s.condition not in named or s.task_id not in tasks:
            continue
        names = updates.names_function(s.program, tasks[s.task_id])
        if names is None:
            return None
        named[s.condition] += names and (s.condition, s.task_id, s.draw) in passed
    return named


def _distinct(
    samples: Sequence[Sample], verdicts: Mapping[tuple[str, str, int], Verdict], most: int
) -> tuple[Program, ...]:
    """Equal programs once with their count; the first `most` by draw."""
    times = Counter(s.program for s in samples)
    shown: dict[str, Program] = {}
    for sample in sorted(samples, key=lambda s: s.draw):
        if sample.program in shown or len(shown) == most:
            continue
        verdict = verdicts[sample.condition, sample.task_id, sample.draw]
        error = f"{verdict.label}: {verdict.error}" if verdict.label else ""
        shown[sample.program] = Program(
            code=sample.program, outcome=verdict.outcome.value, error=error, times=times[sample.program]
        )
    return tuple(shown.values())
