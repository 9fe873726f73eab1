"""`rune power CONFIG`: what its gate can see, before any GPU minute is spent."""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.analysis.power import SEED_SD, Baseline, Design
from rune.errors import ConfigError
from rune.runs.store import RunDir

MOST_TASKS, MOST_DRAWS = 10_000, 1_000_000


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="a config.toml with [gate], [sample], [benchmark]")
    parser.add_argument(
        "--set", action="append", default=[], metavar="a.b=c", dest="settings", help="override a setting"
    )
    parser.add_argument(
        "--from", metavar="RUN", type=Path, dest="baseline", help="take the tasks' difficulties from a run"
    )
    parser.add_argument(
        "--base", type=float, default=0.45, metavar="P", help="prior: the base's share of passes (0.45)"
    )
    parser.add_argument("--icc", type=float, default=0.5, metavar="R", help="prior: intra-class correlation (0.5)")
    parser.add_argument("--seeds", type=int, metavar="S", help="trainings; without it as many as the config has")
    parser.add_argument(
        "--seed-sd", type=float, default=SEED_SD, metavar="POINTS", help=f"how far trainings differ ({SEED_SD:g})"
    )
    parser.add_argument("--simulations", type=int, default=2000, metavar="N", help="experiments per point (2000)")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="also write power.json and power.html there")


def run(args: argparse.Namespace) -> int:
    from rune.reporting import design
    from rune.study import cells, config

    if not 0 < args.base < 1 or not 0 <= args.icc < 1 or args.simulations < 1:
        raise ConfigError("expected --base between 0 and 1, --icc from 0 to below 1, and --simulations of 1 or more")
    if args.seed_sd < 0 or (args.seeds is not None and args.seeds < 1):
        raise ConfigError("expected --seeds of 1 or more and --seed-sd of 0 or more points")
    settings, base = config.load(args.config, args.settings)
    gate = settings.gate
    tasks = cells.count_scored(settings, base)
    draws, seeds = settings.sample.n, args.seeds or len(cells.seeds(settings))
    if tasks > MOST_TASKS or draws * seeds > MOST_DRAWS:
        raise ConfigError(
            f"a gate over {tasks} tasks × {draws * seeds} draws is beyond what is simulated "
            f"({MOST_TASKS} × {MOST_DRAWS}); see [design] held_out and [sample] n"
        )
    prior = design.baseline_of(RunDir.open(args.baseline), gate.baseline) if args.baseline else None
    question = design.Question(
        baseline=prior or Baseline(args.base, args.icc),
        design=Design(tasks, draws, seeds),
        seed_sd=args.seed_sd,
        threshold=gate.threshold_points,
        alpha=gate.alpha,
        simulations=args.simulations,
        seed=gate.seed,
    )
    pairs, best = design.answer(question)
    found = design.table(question, pairs)
    console.out(f"{found.title}\n")
    console.out(console.table([tuple(row) for row in found.rows], found.header))
    console.out(f"\n{found.note}\n\n{design.verdict(question, pairs, best)}")
    if args.output:
        design.write(args.output, question, pairs, best)
        console.note(f"written: {args.output / 'power.html'}")
    return 0
