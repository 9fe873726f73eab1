"""Phase 4's grid on private conventions: what `rune run configs/phase4-grid.toml` reads, and its table (README.md).

    cd studies/phase4-grid
    python grid.py corpus                         here: trajectories, also without failed attempts or their errors
    python grid.py work --jobs 3                  there: the experiment's cells, the ones that matter most first
    python grid.py tell --run RUN --out OUT       here: the table and the heat map; with --memory RESULT.json, the
                                                  memory study's, Phase 4's one table too

`work` is `rune run configs/phase4-grid.toml --jobs 3` in another order: every seed has a process of its own, which
takes the variants as the config names them: what is cut off is the last variants of all seeds, not the last seed. The
config is of phase 4, so it wants `--set "phase.override='REASON'"` as long as no phase before it has passed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "private-conventions"))

from rune import console
from rune.runs import store
from rune.study import creation, executor, workers
from rune.study.cells import cells
from rune.study.config import Loaded, load, located
from rune.study.folders import Experiment
from rune.types import Outcome, Trajectory

CONFIG = Path(__file__).parents[2] / "configs" / "phase4-grid.toml"

HIDDEN = "failed"  # instead of what a failed attempt raised


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("corpus", "work", "tell"))
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="section.key=value")
    parser.add_argument("--jobs", type=int, default=3)
    parser.add_argument("--after", type=Path, help="work: trainings begin once this file is there")
    parser.add_argument("--done", type=Path, help="work: an earlier run; what is scored there is not made again")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", type=Path)
    args = parser.parse_args()
    if args.do == "tell":
        import grid_told

        grid_told.tell(args.run, args.out, args.memory)
    elif args.do == "corpus":
        corpus(load(args.config, args.settings))
    else:
        return work(load(args.config, args.settings), args.jobs, args.after, args.done)
    return 0


# --------------------------------------------------------------------------- what is read


def corpus(loaded: Loaded) -> None:
    """The config's two files, and each once more without failed attempts and without what they raised."""
    import corpus as conventions

    conventions.write(loaded)
    section = located(loaded.settings, loaded.base, seed=0, fold=-1).collect
    for file in map(Path, (*section.imports, *section.shown)):
        whole = store.read_jsonl(file, Trajectory)
        store.write_jsonl(file.with_suffix(".without-attempts.jsonl"), map(without_attempts, whole))
        store.write_jsonl(file.with_suffix(".without-errors.jsonl"), map(without_errors, whole))


def without_attempts(trajectory: Trajectory) -> Trajectory:
    """The task and the code that passes."""
    return replace(trajectory, attempts=tuple(a for a in trajectory.attempts if a.outcome is Outcome.PASSED))


def without_errors(trajectory: Trajectory) -> Trajectory:
    """Failed attempts, and not what they raised."""
    attempts = tuple(replace(a, error=HIDDEN, error_kind=HIDDEN) if a.error else a for a in trajectory.attempts)
    return replace(trajectory, attempts=attempts)


# --------------------------------------------------------------------------- there


def work(loaded: Loaded, jobs: int, after: Path | None = None, done: Path | None = None) -> int:
    """Seed by seed in processes of their own; the folder is the executor's, and `--resume` finds what is missing.

    The corpus is gathered at once; what needs the GPU for long begins when the file `after` is there. Cells that are
    scored in the folder `done` are left out; put both folders' cells together before `tell`.
    """
    experiment = creation.create(loaded, resume=True)
    with contextlib.closing(executor.Runner(experiment)) as runner:
        runner.gather()
    while after and not after.exists():
        time.sleep(0.5)
    by_seed: dict[int, list[str]] = {}
    for cell in cells(loaded.settings):
        if not (done and (done / "cells" / cell.name / "verdicts.jsonl").exists()):
            by_seed.setdefault(cell.seed, []).append(cell.name)
    cores = sorted(os.sched_getaffinity(0))

    def one_seed(number: int, names: list[str]) -> int:
        """All cells of a seed; one that cannot be made is left out, and what follows is done."""
        failed = 0
        while names:
            with (experiment.folder / f"worker-{number}.log").open("ab") as log:
                own = workers.command(experiment.folder.path, names, min(jobs, len(by_seed)))
                running = subprocess.Popen(own, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            if len(cores) >= jobs:
                os.sched_setaffinity(running.pid, cores[number % jobs :: jobs])
            if running.wait() == 0:
                break
            names = [name for name in names if not scored(experiment, name)][1:]
            failed += 1
        return failed

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        failed = sum(pool.map(one_seed, range(len(by_seed)), by_seed.values()))
    console.out(f"{experiment.folder.path}: {failed} cells failed")
    return min(failed, 1)


def scored(experiment: Experiment, name: str) -> bool:
    return next(p for p in experiment.places() if p.cell.name == name).folder.stage_done("score")


if __name__ == "__main__":
    sys.exit(main())
