"""samples → verdicts.jsonl: every program judged in the sandbox, all arms interleaved.

Before anything counts, the scorer must prove itself on the very tasks it is about to score: every reference
solution passes, every stub fails, a handful of forgeries fail. What the machine breaks raises SandboxError and
is judged again; it is never a failed task. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rune import config as configs
from rune import console, plugins, store
from rune.errors import DataError, SandboxError
from rune.stages._context import Context
from rune.stages._verdict_cache import Cached
from rune.types import Outcome, Problem, Program, Sample, Sandbox, Verdict

STUBS = {
    "pass": "def {name}(*args, **kwargs):\n    pass\n",
    "empty": "",
}
CHEATS = {
    "always-equal object": (
        "class Same:\n    def __eq__(self, other):\n        return True\n    def __bool__(self):\n        return True\n"
        "    __hash__ = None\n\ndef {name}(*args, **kwargs):\n    return Same()\n"
    ),
    "exit with success": "import os\n\ndef {name}(*args, **kwargs):\n    os._exit(0)\n",
    "exit at import": "raise SystemExit(0)\n",
    "patched assertions": (
        "import builtins\nbuiltins.AssertionError = type('Quiet', (Exception,), {{}})\nbuiltins.all = lambda x: True\n"
        "\ndef {name}(*args, **kwargs):\n    return None\n"
    ),
    "own check": "def check(candidate):\n    pass\n\ndef {name}(*args, **kwargs):\n    return None\n",
    "end of iteration": "def {name}(*args, **kwargs):\n    raise StopIteration\n",
    "nameless exception at import": "raise type('', (Exception,), {{}})()\n",
    "nameless exception in a call": "def {name}(*args, **kwargs):\n    raise type('', (Exception,), {{}})()\n",
    "exception that computes its name": (
        "class Nameless(type):\n    __name__ = property(lambda self: '')\n"
        "class Failed(Exception, metaclass=Nameless):\n    pass\nraise Failed\n"
    ),
    "object that answers every question": (
        "class Yes:\n    def __getattr__(self, name):\n        return lambda *args, **kwargs: True\n"
        "\ndef {name}(*args, **kwargs):\n    return Yes()\n"
    ),
}
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
    return Cached(inner, cache / "verdicts", backend=config.backend, settings=settings)


def run(folder: store.RunDir, config: Config, context: Context) -> int:
    """Judge what has no verdict yet; returns how many were judged now."""
    problems = {p.task_id: p for p in store.read_jsonl(folder / "problems.jsonl", Problem)}
    samples = store.read_jsonl(folder / "samples.jsonl", Sample)
    if not samples:
        raise DataError(f"{folder / 'samples.jsonl'}: no samples; run `rune sample {folder.path}` first")
    stray = next((s for s in samples if s.task_id not in problems), None)
    if stray is not None:
        raise DataError(f"{folder / 'samples.jsonl'}: task '{stray.task_id}' is not in problems.jsonl")
    path = folder / "verdicts.jsonl"
    if path.exists():
        store.repair(path)
    have = {(v.condition, v.task_id, v.draw) for v in store.read_jsonl(path, Verdict)}
    wanted = {(s.condition, s.task_id, s.draw): s for s in samples}
    missing = [s for key, s in wanted.items() if key not in have]
    if not missing:
        return 0
    order = {task_id: i for i, task_id in enumerate(problems)}
    # Task by task, draw by draw, arm by arm: whatever the machine does meanwhile, it does to all arms.
    missing.sort(key=lambda s: (order[s.task_id], s.draw, s.condition))
    sandbox = context.sandbox()
    self_check(sandbox, [problems[t] for t in dict.fromkeys(s.task_id for s in missing)])
    machine = machine_name(config)
    before = getattr(sandbox, "hits", 0)
    with store.Appender(path) as log, console.Progress("score", len(wanted), unit="sample", initial=len(have)) as bar:
        passed = 0
        for execution in sandbox.judge(_programs(missing, problems)):
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
                )
            )
            passed += execution.outcome is Outcome.PASSED
            bar.advance(passed=passed)
    say_cached(sandbox, before, len(missing))
    return len(missing)


def say_cached(sandbox: Sandbox, before: int, total: int) -> None:
    """Tell how many verdicts were not judged now but known from earlier."""
    hits = getattr(sandbox, "hits", 0) - before
    if hits:
        console.note(f"score: {hits} of {total} verdicts known from the cache (same program, test and limits)")


def machine_name(config: Config) -> str:
    """Where a verdict was found: architecture, system, interpreter, backend."""
    return f"{platform.machine()} {platform.system()} Python {platform.python_version()} {config.backend}"


def _programs(samples: Sequence[Sample], problems: dict[str, Problem]) -> Iterator[Program]:
    for number, sample in enumerate(samples):
        yield program(str(number), sample.program, problems[sample.task_id])


def program(key: str, code: str, problem: Problem) -> Program:
    """What the sandbox is given for one piece of code."""
    return Program(key=key, code=code, test=problem.test, entry_point=problem.entry_point, prelude=problem.prelude)


# --------------------------------------------------------------------------- the scorer proves itself


def self_check(sandbox: Sandbox, problems: Sequence[Problem]) -> int:
    """Every reference passes, every stub and forgery fails; returns how many programs were tried.

    Never from the cache: it is the machine of today that must prove itself. Raises SandboxError with one line.
    """
    judged = getattr(sandbox, "inner", sandbox)
    trials: dict[str, tuple[str, Problem, str, bool]] = {}

    def add(what: str, problem: Problem, code: str, passes: bool) -> None:
        trials[str(len(trials))] = (what, problem, code, passes)

    for number, problem in enumerate(problems):
        if problem.reference:
            add("reference solution", problem, problem.reference, True)
        for what, text in STUBS.items():
            add(f"stub '{what}'", problem, text.format(name=problem.entry_point), False)
        if number < CHEATED_TASKS:
            for what, text in CHEATS.items():
                add(f"forgery '{what}'", problem, text.format(name=problem.entry_point), False)
    wrong: list[str] = []
    for execution in judged.judge(program(key, code, p) for key, (_, p, code, _) in trials.items()):
        what, problem, _, passes = trials[execution.key]
        if (execution.outcome is Outcome.PASSED) is not passes:
            found = "passes" if not passes else f"fails ({execution.label}: {_line(execution.error)})"
            wrong.append(f"the {what} of {problem.task_id} {found}")
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise SandboxError(f"the scorer failed its own check, nothing is scored: {wrong[0]}{more}")
    return len(trials)


def _line(text: str) -> str:
    last = text.strip().splitlines()[-1] if text.strip() else ""
    return last if len(last) <= 120 else last[:119] + "…"
