"""samples → verdicts.jsonl: every answer judged by its task's scorer, all arms interleaved.

Before anything counts, the scorer must prove itself on the very tasks it is about to score: every reference
solution passes, every stub fails, a handful of forgeries fail. What the machine breaks raises SandboxError and
is judged again; it is never a failed task. A run that was stopped goes on where it was; a verdicts file that was
lost or spoilt is made again from the samples, if those are the sealed ones.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rune import config as configs
from rune import console, plugins
from rune.benchmarks.scorers import judging
from rune.benchmarks.scorers.judging import Item, Trial
from rune.errors import DataError, SandboxError, StoreError
from rune.runs import integrity, store
from rune.sandbox.judging.verdict_cache import Cached
from rune.stages.context import Context
from rune.types import Outcome, Problem, Sample, Sandbox, Scorer, Verdict

VERDICTS = "verdicts.jsonl"
AGAIN = "verdicts.again.jsonl"  # while all are made again, and where they stay if they are not the sealed ones
CHEATED_TASKS = 5  # forgeries are tried on this many tasks: they attack the scorer, not the task


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[score]`."""

    backend: str = "fork"  # a file in sandbox/
    settings: dict[str, Any] = field(default_factory=dict)  # that backend's: workers, cpu_seconds, memory_mb, …
    cache: bool = True  # keep verdicts by content hash over runs


def build_sandbox(config: Config, *, cache: Path) -> Sandbox:
    """The backend the config names, with the verdict cache in front if wanted.

    Raises ConfigError for an unknown backend or setting, SandboxError where untrusted code cannot be held.
    """
    module = plugins.load("sandbox", config.backend)
    settings = configs.build(module.Config, config.settings, where="score.settings")
    inner: Sandbox = module.build(settings)
    if settings.allow_weak:
        console.warn("the sandbox may be weak (allow_weak): model-written code can reach this user's files")
    if not config.cache:
        return inner
    try:
        return Cached(inner, cache / "verdicts", backend=config.backend, settings=settings)
    except StoreError as error:  # a cache is only a cache
        console.warn(f"judged without the verdict cache: {error}; set RUNE_CACHE to a folder that can be written")
        return inner


def run(folder: store.RunDir, config: Config, context: Context) -> int:
    """Judge what has no verdict yet; returns how many were judged now. Raises DataError for records that do not fit."""
    problems, wanted = _wanted(folder)
    path = folder / VERDICTS
    if path.exists():
        store.repair(path)
    try:
        have = {(v.condition, v.task_id, v.draw) for v in store.read_jsonl(path, Verdict)}
    except DataError as error:
        raise DataError(f"{error}; `rune score {folder.path} --again` judges all samples anew") from None
    missing = [s for key, s in wanted.items() if key not in have]
    if missing:
        _judge(path, missing, problems, config, context, have=len(have))
    return len(missing)


def again(folder: store.RunDir, config: Config, context: Context) -> int:
    """Make verdicts.jsonl anew from the sealed samples; returns how many were judged. Sealed by whoever calls.

    The old file stays until every sample is judged. Raises GateError if the samples, or what they were drawn for, are
    not what was sealed; StoreError if an outcome is another than the sealed one.
    """
    integrity.demand_samples(folder)
    problems, wanted = _wanted(folder)
    path = folder / AGAIN
    path.unlink(missing_ok=True)
    _judge(path, list(wanted.values()), problems, config, context, have=0)
    compared, total = integrity.demand_outcomes(folder, path)
    path.replace(folder / VERDICTS)
    integrity.forget_verdicts(folder)
    record = {"at": store.now(), "verdicts": total, "compared_with_sealed": compared}
    folder.update(made_again=[*folder.manifest().get("made_again", []), record])
    console.note(f"score: {total} verdicts made again; {compared} of them could be compared with the sealed, all equal")
    return total


def _wanted(folder: store.RunDir) -> tuple[dict[str, Problem], dict[tuple[str, str, int], Sample]]:
    """The tasks by id, and the samples by (arm, task, draw). Raises DataError."""
    problems = {p.task_id: p for p in store.read_jsonl(folder / "problems.jsonl", Problem)}
    samples = store.read_jsonl(folder / "samples.jsonl", Sample)
    if not samples:
        raise DataError(f"{folder / 'samples.jsonl'}: no samples; run `rune sample {folder.path}` first")
    stray = next((s for s in samples if s.task_id not in problems), None)
    if stray is not None:
        raise DataError(f"{folder / 'samples.jsonl'}: task '{stray.task_id}' is not in problems.jsonl")
    return problems, {(s.condition, s.task_id, s.draw): s for s in samples}


def _judge(
    path: Path,
    missing: list[Sample],
    problems: dict[str, Problem],
    config: Config,
    context: Context,
    *,
    have: int,
) -> None:
    """Append a verdict for every sample. Task by task, draw by draw, arm by arm: whatever the machine does meanwhile,
    it does to all arms."""
    order = {task_id: i for i, task_id in enumerate(problems)}
    missing.sort(key=lambda s: (order[s.task_id], s.draw, s.condition))
    sandbox = context.sandbox()
    self_check(sandbox, [problems[t] for t in dict.fromkeys(s.task_id for s in missing)])
    machine = machine_name(config)
    before = getattr(sandbox, "hits", 0)
    total = have + len(missing)
    with store.Appender(path) as log, console.Progress("score", total, unit="sample", initial=have) as bar:
        passed = 0
        for execution in judging.judge(sandbox, _items(missing, problems)):
            sample = missing[int(execution.key)]
            log.write(
                Verdict(
                    task_id=sample.task_id,
                    condition=sample.condition,
                    draw=sample.draw,
                    outcome=execution.outcome,
                    error_kind=execution.error_kind,
                    raised=execution.raised,
                    error=execution.error,
                    cpu_seconds=execution.cpu_seconds,
                    wall_seconds=execution.wall_seconds,
                    machine=machine,
                    scorer=problems[sample.task_id].scorer,
                )
            )
            passed += execution.outcome is Outcome.PASSED
            bar.advance(passed=passed)
    say_cached(sandbox, before, [problems[s.task_id] for s in missing])


def say_cached(sandbox: Sandbox, before: int, judged: Sequence[Problem]) -> None:
    """Tell how much was not judged now but known from earlier. `judged`: the task of each answer."""
    hits = getattr(sandbox, "hits", 0) - before
    twice = any(p.scorer is Scorer.EXECUTION_WITH_AND_WITHOUT for p in judged)
    what = "runs, one or two a verdict," if twice else f"of {len(judged)} verdicts"
    if hits:
        console.note(f"score: {hits} {what} known from the cache (same program, test and limits)")


def machine_name(config: Config) -> str:
    """Where a verdict was found: architecture, system, interpreter, backend."""
    return f"{platform.machine()} {platform.system()} Python {platform.python_version()} {config.backend}"


def _items(samples: Sequence[Sample], problems: dict[str, Problem]) -> Iterator[Item]:
    for number, sample in enumerate(samples):
        yield Item(str(number), problems[sample.task_id], sample.program)


# --------------------------------------------------------------------------- the scorer proves itself


def self_check(sandbox: Sandbox, problems: Sequence[Problem]) -> int:
    """Every reference passes, every stub and forgery fails; returns how many programs were tried.

    Never from the cache: it is the machine of today that must prove itself. Raises SandboxError with one line.
    """
    trials, wrong = _prove(sandbox, problems)
    if wrong:
        said = [f"the {trials[i].what} of {trials[i].problem.task_id} {found}" for i, found in sorted(wrong.items())]
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise SandboxError(f"the scorer failed its own check, nothing is scored: {said[0]}{more}")
    return len(trials)


def unfit(sandbox: Sandbox, problems: Sequence[Problem]) -> dict[str, str]:
    """The same check for tasks of a user's own: task id → field and reason, for those that cannot be judged."""
    left = list(problems)
    found: dict[str, str] = {}
    while left:
        try:
            trials, wrong = _prove(sandbox, left)
        except SandboxError as error:
            if not error.key:
                raise
            lost = judging.trials(left, forged=CHEATED_TASKS)[int(error.key)].problem.task_id
            found[lost] = f"field '{_field(left, lost, 'test')}': {error.reason}"
            left = [p for p in left if p.task_id != lost]
            continue
        for number, what in sorted(wrong.items()):
            task = trials[number].problem.task_id
            field = _field(left, task, "canonical_solution" if trials[number].passes else "test")
            found.setdefault(task, f"field '{field}': the {trials[number].what} {what}")
        break
    return found


_FIELDS = {"mbpp": {"canonical_solution": "code", "test": "test_list"}, "mbpp_plus": {"canonical_solution": "code"}}


def _field(problems: Sequence[Problem], task: str, field: str) -> str:
    """What a field of HumanEval's format is called in the file of this task."""
    benchmark = next((p.benchmark for p in problems if p.task_id == task), "")
    return _FIELDS.get(benchmark, {}).get(field, field)


def _prove(sandbox: Sandbox, problems: Sequence[Problem]) -> tuple[list[Trial], dict[int, str]]:
    """All trials, and by number what is wrong: executions come in any order, a run should name the same each time."""
    judged = getattr(sandbox, "inner", sandbox)
    trials = judging.trials(problems, forged=CHEATED_TASKS)
    wrong: dict[int, str] = {}
    for execution in judging.judge(judged, (Item(str(i), t.problem, t.code) for i, t in enumerate(trials))):
        if (execution.outcome is Outcome.PASSED) is not trials[int(execution.key)].passes:
            passes = execution.outcome is Outcome.PASSED
            found = "passes" if passes else f"fails ({execution.label}: {_line(execution.error)})"
            wrong[int(execution.key)] = found
    return trials, wrong


def _line(text: str) -> str:
    last = text.strip().splitlines()[-1] if text.strip() else ""
    return last if len(last) <= 120 else last[:119] + "…"
