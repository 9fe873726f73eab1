"""There, in the background, without a hand: recipes on development tasks, cross-fitted runs, what their rule chose.

    python3 tools/gpu/study.py [--runs FOLDER …] [--name NAME] [--seconds 1500]

A queue of processes over all GPUs, each with its own processors. First the recipes of the wide corpus, beside them the
open folds of `--runs`; once the recipes are scored their rule chooses one (`recipes.py --choose`), whose cross-fit is
begun if it is given a name; then the runs of `FURTHER`. A task that fails is tried once more. Everything goes on where
it was left.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOM = 6  # of a GPU, in shares
LARGE, SMALL = 3, 2  # shares of a process that trains on the wide corpus, on the specified one
FURTHER = [  # name, config, overrides, shares of a GPU
    (  # three new seeds at the temperature where right − wrong was +3.2: was it luck?
        "phase1-0.5b-wide-again",
        "wide",
        [
            "crossfit.seeds=[3,4,5]",
            "crossfit.temperatures=[0.2]",
            'adapt.arms=["vanilla","hypernet","static","wrong_trajectory","empty_trajectory"]',
            "sample.n=15",
            "gate.n=15",
        ],
        LARGE,
    ),
    # ablation: does the term that forbids harm help where the corpus is the specified one?
    ("phase1-0.5b-harmless", "specified", ["train.hypernet.weights.kl_static=0.5"], SMALL),
]
CORPORA = {
    "humaneval": "results/phase1-0.5b/trajectories.jsonl",
    "humaneval_all": ".carry/data/humaneval.jsonl",
    "mbpp": "results/corpus-0.5b/mbpp.jsonl",
    "families": "results/corpus-0.5b/families.jsonl",
}


@dataclass
class Task:
    """One process on one GPU."""

    name: str
    command: list[str]
    rank: int  # lower goes first
    size: int
    tries: int = 0
    process: subprocess.Popen[bytes] | None = None
    gpu: int = -1
    begun: float = 0.0


class Study:
    """Tasks waiting and running."""

    def __init__(self, root: Path, gpus: int) -> None:
        self.root, self.began = root, time.monotonic()
        self.gpus = gpus or len(subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.splitlines())
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self.over: set[str] = set()  # done, or failed twice
        self.cores = sorted(os.sched_getaffinity(0))

    def say(self, text: str) -> None:
        print(f"== {time.monotonic() - self.began:4.0f} s: {text}", flush=True)

    def room(self, gpu: int) -> int:
        return ROOM - sum(t.size for t in self.running if t.gpu == gpu)

    def start(self, task: Task, gpu: int) -> None:
        task.gpu, task.tries, task.begun = gpu, task.tries + 1, time.monotonic()
        with (self.root / f"{task.name.replace('/', '-')}.log").open("ab") as log:
            visible = {**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)}
            task.process = subprocess.Popen(task.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=visible)
        # Each GPU's processors in three parts; two processes may share one, which costs little.
        mine = self.cores[:-4][gpu :: self.gpus] or self.cores
        part = sum(t.gpu == gpu for t in self.running) % (ROOM // SMALL)
        os.sched_setaffinity(task.process.pid, mine[part :: ROOM // SMALL] or mine)
        self.running.append(task)

    def turn(self) -> None:
        """Reap what has ended, start what fits."""
        for task in list(self.running):
            assert task.process is not None
            code = task.process.poll()
            if code is None:
                continue
            self.running.remove(task)
            self.say(f"{task.name}: {code} after {time.monotonic() - task.begun:.0f} s on GPU {task.gpu}")
            if code == 0 or task.tries == 2:
                self.over.add(task.name)
            else:
                self.waiting.append(task)
        for task in sorted(self.waiting, key=lambda t: (t.rank, t.tries)):
            gpu = max(range(self.gpus), key=self.room)
            if self.room(gpu) >= task.size:
                self.waiting.remove(task)
                self.start(task, gpu)

    def begin(self, config: Path, name: str, sets: list[str]) -> subprocess.Popen[bytes]:
        """Begin a cross-fitted run, on the processors that are left."""
        given = [f"run.folder={self.root / 'runs'}", f"run.name={name}", *sets]
        command = [sys.executable, "tools/gpu/begin.py", str(self.root / "attempts.jsonl"), str(config), *given]
        with (self.root / f"begin-{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        os.sched_setaffinity(process.pid, self.cores[-4:])
        return process


def folds(folder: Path, rank: int, size: int) -> list[Task]:
    """A task for each fold that is not done, seed by seed."""
    settings = tomllib.loads((folder / "config.toml").read_text())
    command = [sys.executable, "-m", "rune", "crossfit", str(folder), "--jobs", str(ROOM // size), "--worker"]
    return [
        Task(f"{folder.name}:{s}/{f}", [*command, f"{s}/{f}"], rank, size)
        for s in settings["crossfit"]["seeds"]
        for f in range(settings["benchmark"]["folds"])
        if not (folder / f"seed-{s}" / f"fold-{f}" / "done.json").exists()
    ]


def where(process: subprocess.Popen[bytes]) -> Path:
    """The folder that `begin` printed. Raises IndexError if it failed."""
    return Path(process.communicate()[0].decode().strip().splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("/tmp"))
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1500, help="begin nothing later than 120 s before")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="cross-fitted runs to go on with")
    parser.add_argument("--wide", type=Path, default=Path("results/crossfit-0.5b-wide-harmless/config.toml"))
    parser.add_argument("--name", default="", help="of the chosen recipe's run; without: none is begun")
    parser.add_argument("--specified", type=Path, default=Path("configs/phase1-0.5b.toml"))
    parser.add_argument("--recipes", type=Path, default=Path("experiments/recipes.toml"))
    parser.add_argument("--dev", type=Path, default=Path(".carry/data/dev.jsonl"))
    args = parser.parse_args()
    study = Study(args.root, args.gpus)
    study.say(f"start on {study.gpus}")
    recipes = tomllib.loads(args.recipes.read_text())["recipes"]
    sweep = [sys.executable, "experiments/recipes.py", str(args.wide), str(args.recipes), "--dev", str(args.dev)]
    sweep += [part for name, file in CORPORA.items() for part in ("--corpus", f"{name}={file}")]
    sweep += ["--out", str(args.root / "recipes")]
    for name in [n for n, r in recipes.items() if "like" not in r]:
        children = [n for n, r in recipes.items() if r.get("like") == name]
        study.waiting.append(Task(f"recipe-{name}", [*sweep, "--only", name, *children], 0, LARGE))
    swept = {task.name for task in study.waiting}
    for folder in args.runs:
        study.waiting += folds(folder, 1, LARGE)
    study.turn()
    begun = [
        (study.begin(getattr(args, config), name, sets), 3 + i, size)
        for i, (name, config, sets, size) in enumerate(FURTHER)
    ]
    chosen = False
    while study.running or study.waiting or begun or not chosen:
        study.turn()
        if swept <= study.over and not chosen:
            chosen = True
            subprocess.run([*sweep, "--choose"])
            result = args.root / "recipes" / "chosen.json"
            name = json.loads(result.read_text())["name"] if result.exists() else next(iter(recipes))
            study.say(f"chosen: {name}")
            if args.name:
                begun.append((study.begin(args.wide, args.name, recipes[name]["set"]), 2, LARGE))
        for entry in [b for b in begun if b[0].poll() is not None]:
            begun.remove(entry)
            study.waiting += folds(where(entry[0]), *entry[1:])
        if time.monotonic() - study.began > args.seconds - 120:
            study.waiting, begun, chosen = [], [], True
        time.sleep(0.3)
    for folder in sorted((args.root / "runs").iterdir()):
        if not folds(folder, 0, SMALL):
            command = [sys.executable, "-m", "rune", "crossfit", str(folder), "--resume"]
            study.say(f"{folder.name}: decided, {subprocess.run(command, stdout=subprocess.DEVNULL).returncode}")
    study.say("end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
