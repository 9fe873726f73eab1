"""`rune corpus -o OUT.jsonl`: real failures and corrections for training, from MBPP and puzzles.

Breaks reference programs of training tasks, runs them in the sandbox, keeps what really fails, and leaves out
whatever resembles HumanEval or MBPP's evaluation tasks. A config uses the file as `collect.imports`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import config, console
from rune.errors import ConfigError

TRAINABLE = ("mbpp", "puzzles")  # benchmarks with references to break; generated ones make trajectories of their own


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="where the trajectories go (JSONL)"
    )
    parser.add_argument(
        "--benchmark", action="append", choices=TRAINABLE, help="repeatable (default: mbpp and puzzles)"
    )
    parser.add_argument("--data", default="", metavar="DIR", help="folder of the data sets (default: $RUNE_DATA)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="training tasks of each benchmark, 0 = all")
    parser.add_argument(
        "--per-task", type=int, default=1, metavar="N", help="trajectories kept of one task (default: 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is broken where (default: 0)")


def run(args: argparse.Namespace) -> int:
    from rune import plugins
    from rune.benchmarks import humaneval, mbpp
    from rune.corpus import exclusion, mutate, summary
    from rune.runs import store
    from rune.sandbox import fork
    from rune.types import Problem, Split

    if args.limit < 0 or args.per_task < 1:
        raise ConfigError("--limit must be 0 or more and --per-task at least 1")
    evaluation = humaneval.build(humaneval.Config()).problems()
    train: list[Problem] = []
    for name in args.benchmark or TRAINABLE:
        module = plugins.load("benchmarks", name)
        problems: list[Problem] = module.build(config.build(module.Config, {"path": args.data})).problems()
        evaluation += [p for p in problems if p.split is Split.HELD_OUT]
        chosen = [p for p in problems if p.split is Split.TRAIN]
        train += chosen[: args.limit or len(chosen)]
    sandbox = fork.build(fork.Config())
    try:
        settings = mutate.Settings(seed=args.seed, per_task=args.per_task)
        made = mutate.trajectories(train, settings, sandbox=sandbox)
        found = list(console.track(made, "mutate and repair", total=len(train) * args.per_task, unit="trajectory"))
    finally:
        sandbox.close()
    near = mbpp.near_duplicates(args.data)
    kept, report = exclusion.decontaminate(found, evaluation, near_duplicates=near)
    exclusion.check_corpus(kept, evaluation, near_duplicates=near, where=str(args.output))
    store.write_jsonl(args.output, kept)
    for reason, count in report.dropped.items():
        console.note(f"left out {count}: {reason}")
    console.note(summary.text(summary.summarise(kept)))
    console.out(f"{args.output}: {len(kept)} trajectories of {len(train)} tasks")
    return 0
