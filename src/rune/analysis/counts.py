"""Verdicts → passes per arm and task, or a refusal that says what is missing, doubled or uneven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rune.errors import GateError, NotEnoughSamples
from rune.types import Outcome, Problem, Scorer, Split, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Passes per arm and task: all that the statistics need."""

    tasks: tuple[str, ...]
    n: int  # draws per task, the same for all arms
    passes: Mapping[str, tuple[int, ...]]  # arm → passes per task, in the order of `tasks`
    trainings: tuple[Mapping[str, tuple[int, ...]], ...] = ()  # the same of each training; (): there is one
    clusters: tuple[str, ...] = ()  # each task's domain where the design draws domains
    scorer: Scorer = Scorer.EXECUTION  # what a pass is

    def table(self, arm: str) -> list[tuple[float, ...]]:
        """Passes in percent of draws, per task and training."""
        parts = [part[arm] for part in self.trainings] or [self.passes[arm]]
        each = self.n / len(parts)
        return [tuple(100 * c / each for c in row) for row in zip(*parts, strict=True)]


def count(
    problems: Sequence[Problem],
    verdicts: Sequence[Verdict],
    *,
    treatment: str,
    baseline: str,
    least: int,
    arms: Sequence[str] = (),
) -> Counts:
    """Verdicts → complete, equal, paired counts. `arms` are those that must be there besides the gated two,
    `least` the draws a task that each must have.

    Raises GateError or NotEnoughSamples, saying what is missing, doubled or uneven and what to run.
    """
    tasks = tuple(p.task_id for p in problems if p.split is Split.HELD_OUT)
    if not tasks:
        raise GateError("no held-out task in problems.jsonl, so there is nothing to decide")
    if len(set(tasks)) != len(tasks):
        raise GateError(f"held-out task {_first_double(tasks)} stands twice in problems.jsonl")
    keys = [(v.condition, v.task_id, v.draw) for v in verdicts]
    have = set(keys)
    if len(have) != len(keys):
        arm, task, draw = _first_double(keys)
        raise GateError(f"{arm}, {task}, draw {draw}: two verdicts for one sample; keep the one that was scored first")
    unknown = sorted({task for _, task, _ in have} - set(tasks))
    if unknown:
        raise GateError(f"verdicts of {unknown[0]}, which is not a held-out task ({len(unknown)} such tasks)")
    scorer = _scorer(problems, verdicts)
    found = {arm for arm, _, _ in have}
    for arm in dict.fromkeys((baseline, treatment, *arms)):
        if arm not in found:
            raise GateError(
                f"no verdicts of arm '{arm}' (found: {', '.join(sorted(found)) or 'none'}); run `rune score RUN`"
            )
    drawn = {arm: 1 + max(d for a, _, d in have if a == arm) for arm in sorted(found)}
    n = drawn[baseline]
    short = {arm: draws for arm, draws in drawn.items() if draws < least}
    if short:
        arm, draws = min(short.items(), key=lambda kv: kv[1])
        raise NotEnoughSamples(
            f"the gate needs {least} samples per task, arm '{arm}' has {draws}; "
            f"run `rune sample --set sample.n={least}` and `rune score`"
        )
    uneven = [arm for arm, draws in drawn.items() if draws != n]
    if uneven:
        raise GateError(
            f"arm '{uneven[0]}' has {drawn[uneven[0]]} draws per task, '{baseline}' {n}; arms must be equal"
        )
    missing = [(a, t, d) for a in sorted(found) for t in tasks for d in range(n) if (a, t, d) not in have]
    if missing:
        arm, task, draw = missing[0]
        raise GateError(
            f"{len(missing)} verdicts missing, first {arm}, {task}, draw {draw}; "
            "run `rune sample RUN` and `rune score RUN`"
        )
    passed = Counter((v.condition, v.task_id) for v in verdicts if v.outcome is Outcome.PASSED)
    order = sorted(found, key=lambda a: (a != baseline, a != treatment, a))
    return Counts(tasks=tasks, n=n, passes={a: tuple(passed[a, t] for t in tasks) for a in order}, scorer=scorer)


def _scorer(problems: Sequence[Problem], verdicts: Sequence[Verdict]) -> Scorer:
    """Who judged all of it. Raises GateError for tasks of several scorers, or a verdict of another than its task's."""
    wanted = {p.task_id: p.scorer for p in problems if p.split is Split.HELD_OUT}
    if len(set(wanted.values())) > 1:
        raise GateError(
            f"held-out tasks are judged by several scorers ({', '.join(sorted(set(wanted.values())))}), whose passes "
            "do not add up; decide each kind in a run of its own"
        )
    strange = next((v for v in verdicts if v.scorer is not wanted[v.task_id]), None)
    if strange is not None:
        raise GateError(
            f"{strange.condition}, {strange.task_id}, draw {strange.draw}: judged by {strange.scorer}, but the task "
            f"asks for {wanted[strange.task_id]}; `rune score RUN --again` judges all samples anew"
        )
    return next(iter(wanted.values()))


def _first_double(items: Sequence[Any]) -> Any:
    return next(item for item, times in Counter(items).items() if times > 1)
