"""There, in the background: everything that is to be run next, three processes a GPU, each with its own processors.

    python3 tools/gpu/study.py [--root /tmp] [--seconds 800] …

The families study has the first GPU to itself until it has drawn. On the others: recipes of the wide corpus on
development tasks, and folds of the specified corpus' cross-fit. Once the recipes are scored their rule chooses one
(`recipes.py --choose`), and the folds of the wide cross-fit go first; a recipe that starts from the shipped
hypernetwork waits for the families study's. Last an ablation. A task that fails is tried once more; all resume.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

PER_GPU = 3
SHIPPED = Path("results/hypernet-0.5b")
ABLATION = ("train.hypernet.weights.kl_static=0.5",)


@dataclass
class Task:
    """One process on one GPU."""

    name: str
    command: list[str]
    rank: int  # lower goes first
    whole: bool = False  # has the first GPU to itself
    tries: int = 0
    process: subprocess.Popen[bytes] | None = None
    gpu: int = -1
    slot: int = -1
    begun: float = field(default_factory=time.monotonic)


class Study:
    """Tasks waiting and running."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.root = args, args.root
        self.gpus = max(
            1, args.gpus or len(subprocess.run(["nvidia-smi", "-L"], capture_output=True).stdout.splitlines())
        )
        self.free = {gpu: list(range(PER_GPU)) for gpu in range(self.gpus)}
        self.cores = sorted(os.sched_getaffinity(0))
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self.began = time.monotonic()
        self.done: set[str] = set()
        self.failed: set[str] = set()

    def say(self, text: str) -> None:
        print(f"== {time.monotonic() - self.began:4.0f} s: {text}", flush=True)

    def start(self, task: Task, gpu: int) -> None:
        task.gpu, task.tries, task.begun = gpu, task.tries + 1, time.monotonic()
        task.slot = self.free[gpu].pop(0)
        if task.whole:
            self.free[gpu].clear()
        number = gpu * PER_GPU + task.slot
        share = len(self.cores) // (self.gpus * PER_GPU) or 1
        mine = self.cores[number * share : (number + (PER_GPU if task.whole else 1)) * share] or self.cores
        with (self.root / f"{task.name.replace('/', '-')}.log").open("ab") as log:
            task.process = subprocess.Popen(
                task.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": str(gpu)},
            )  # fmt: skip
        os.sched_setaffinity(task.process.pid, mine)
        self.running.append(task)

    def turn(self) -> None:
        """Reap what has ended, start what fits."""
        for task in list(self.running):
            assert task.process is not None
            code = task.process.poll()
            if code is None:
                continue
            self.running.remove(task)
            self.free[task.gpu] = list(range(PER_GPU)) if task.whole else sorted([*self.free[task.gpu], task.slot])
            self.say(f"{task.name}: {code} after {time.monotonic() - task.begun:.0f} s on GPU {task.gpu}")
            if code == 0:
                self.done.add(task.name)
            elif task.tries < 2:
                task.whole = False
                self.waiting.append(task)
            else:
                self.failed.add(task.name)
        for task in sorted(self.waiting, key=lambda t: (t.tries, t.rank)):
            rooms = [g for g in self.free if (len(self.free[g]) == PER_GPU if task.whole else self.free[g])]
            if task.whole:
                rooms = [g for g in rooms if g == 0]
            if rooms:
                self.waiting.remove(task)
                self.start(task, max(rooms, key=lambda g: len(self.free[g])))

    def folds(self, folder: Path, rank: int, seeds: range = range(3)) -> list[Task]:
        """A task for each fold that is not done."""
        command = [sys.executable, "-m", "rune", "crossfit", str(folder), "--jobs", str(PER_GPU), "--worker"]
        return [
            Task(f"{folder.name}:{s}/{f}", [*command, f"{s}/{f}"], rank)
            for s in seeds
            for f in range(self.args.folds)
            if not (folder / f"seed-{s}" / f"fold-{f}" / "done.json").exists()
        ]

    def begin(self, config: Path, name: str, sets: list[str]) -> subprocess.Popen[bytes]:
        """A cross-fitted run's folder; on one processor, without a GPU's help."""
        given = [f"run.folder={self.root / 'runs'}", f"run.name={name}", *sets]
        command = [sys.executable, "tools/gpu/begin.py", str(self.root / "attempts.jsonl"), str(config), *given]
        with (self.root / f"begin-{len(list(self.root.glob('begin-*')))}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        os.sched_setaffinity(process.pid, self.cores[-4:])
        return process


def where(process: subprocess.Popen[bytes]) -> Path:
    """The folder that `begin` printed. Raises IndexError if it failed."""
    return Path(process.communicate()[0].decode().strip().splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("/tmp"))
    parser.add_argument(
        "--seconds", type=float, default=800, help="begin nothing of the ablation later than 110 s before"
    )
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--folds", type=int, default=6)
    parser.add_argument("--wide", type=Path, default=Path("configs/phase1-0.5b-wide.toml"))
    parser.add_argument("--specified", type=Path, default=Path("configs/phase1-0.5b.toml"))
    parser.add_argument("--run", type=Path, help="the specified corpus' cross-fit, unpacked")
    parser.add_argument("--recipes", type=Path, default=Path("experiments/recipes.toml"))
    parser.add_argument("--dev", type=Path, default=Path(".carry/data/dev.jsonl"))
    parser.add_argument("--families", default="--train-seconds 240", help="arguments of the families study")
    args = parser.parse_args()
    study = Study(args)
    study.say(f"start on {study.gpus}")
    recipes = tomllib.loads(args.recipes.read_text())["recipes"]
    python = sys.executable
    sweep = [python, "experiments/recipes.py", str(args.wide), str(args.recipes), "--dev", str(args.dev)]
    sweep += [
        "--corpus",
        "humaneval=results/phase1-0.5b/trajectories.jsonl",
        "--corpus",
        "mbpp=results/corpus-0.5b/mbpp.jsonl",
    ]
    sweep += ["--corpus", "families=results/corpus-0.5b/families.jsonl", "--out", str(args.root / "recipes")]
    first = ["--set", "hypernet.encoder_first={groups=64,schedule={steps=500,learning_rate=1e-3}}"]
    first += ["--set", "hypernet.encoder_rate=0.5", "--set", "hypernet.weights={kl_base=0.02,lesson=0.1}"]
    first += ["--set", "hypernet.schedule.learning_rate=8e-4"]
    families = [python, "experiments/families.py", "--out", str(args.root / "fam0")]
    study.waiting = [
        Task("families", [*families, *first, *shlex.split(args.families)], 0, whole=True),
        *(Task(f"recipe-{name}", [*sweep, "--only", name], 1) for name in recipes),
        *(study.folds(args.run, 3) if args.run else []),
    ]  # fmt: skip
    study.turn()
    ahead = {name: study.begin(args.wide, "phase1-0.5b-wide", r["set"]) for name, r in recipes.items()}
    harmless = study.begin(args.specified, "phase1-0.5b-harmless", list(ABLATION))
    chosen, wide, fresh_weights, last = "", Path(), False, False
    while study.running or study.waiting:
        study.turn()
        swept = all({f"recipe-{n}"} & (study.done | study.failed) for n in recipes)
        shipped = args.root / "fam0" / "shipped"
        if swept and not fresh_weights and (shipped / "settings.json").exists():
            fresh_weights = True
            for file in ("model.safetensors", "settings.json"):
                shutil.copy(shipped / file, SHIPPED / file)
            study.say(f"weights: {(args.root / 'fam0' / 'watch.jsonl').read_text().splitlines()[-1]}")
        if swept and not chosen:
            subprocess.run([*sweep, "--choose"])
            found = args.root / "recipes" / "chosen.json"
            chosen = json.loads(found.read_text())["name"] if found.exists() else next(iter(recipes))
            wide = where(ahead[chosen])
            study.say(f"chosen: {chosen}, {wide}")
            for name, process in ahead.items():
                if name != chosen:
                    shutil.rmtree(where(process), ignore_errors=True)
        known = (
            fresh_weights or "families" in study.failed or "train.start_from=" in recipes.get(chosen, {}).get("set", ())
        )
        if chosen and wide != Path() and known:
            study.waiting += study.folds(wide, 2)
            wide = Path()
        if chosen and wide == Path() and not last and len(study.running) < study.gpus * PER_GPU:
            last = True
            study.waiting += study.folds(where(harmless), 4)
        if last and time.monotonic() - study.began > args.seconds - 110:
            study.waiting = [t for t in study.waiting if t.rank < 4]
        time.sleep(0.3)
    for folder in sorted((args.root / "runs").iterdir()):
        if all(
            (folder / f"seed-{s}" / f"fold-{f}" / "done.json").exists() for s in range(3) for f in range(args.folds)
        ):
            code = subprocess.run(
                [python, "-m", "rune", "crossfit", str(folder), "--resume"], stdout=subprocess.DEVNULL
            )
            study.say(f"{folder.name}: decided, {code.returncode}")
    study.say(f"end; failed: {sorted(study.failed)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
