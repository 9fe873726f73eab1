"""Twenty thousand programs in one go, and the same verdict on every one of them when the machine is overloaded.

    python bench/soak.py --programs 20000 --out results/soak.json

Right, wrong, raising, looping, forking, printing, sleeping and memory-eating programs, every one different, and many
near a limit: right ones that use 0.6 of their CPU time or sleep for half of their wall time, and ones that need 1.6
times or twice what they have. The limits are tighter than the default (1 s of CPU time, 2 s of wall time), so that
there are enough of those. All are judged once on the machine as it is and once with three busy processes per
processor beside; the verdicts (outcome and kind of error) are compared one by one. Recorded on the way, in both
rounds: open descriptors and resident memory of the scorer and of its judges, processes alive, leftovers at the end.
"""

from __future__ import annotations

import argparse
import array
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from rune.sandbox import fork
from rune.types import Execution, Program

CPU_SECONDS, WALL_SECONDS = 1.0, 2.0
TEST = """
def check(candidate):
    for i in range(5):
        assert candidate(list(range(i, 0, -1))) == list(range(1, i + 1))
"""
WORKS = "def solve(x):\n    if len(x) == 4:\n        for _ in range({turns}): pass\n    return {answer}"
SLEEPS = "import time\ndef solve(x):\n    if len(x) == 4: time.sleep({seconds})\n    return sorted(x)"
COMMON = {  # in a hundred
    "right": ("def solve(x): return sorted(x)", 60),
    "wrong": ("def solve(x): return x", 20),
    "raises": ("def solve(x): return x[10]", 9),
    "syntax": ("def solve(x) return x", 3),
    "prints": ("def solve(x):\n    print('x' * 100000)\n    return sorted(x)", 3),
    "writes": ("def solve(x):\n    open('f', 'w').write('x' * 10000)\n    return sorted(x)", 2),
    "threads": (
        "from threading import Thread\ndef solve(x):\n    t = Thread(target=x.sort)\n"
        "    t.start()\n    t.join()\n    return x",
        1,
    ),
    "forks": ("import os\ndef solve(x):\n    os.fork()\n    return sorted(x)", 1),
    "exits": ("import os\ndef solve(x): os._exit(0)", 1),
}


def rare(turns: int) -> dict[str, tuple[str, int]]:
    """Programs that cost seconds, and how many of each among 20,000. `turns` of a loop take the CPU limit."""
    return {
        "right, 0.6 of the CPU limit": (WORKS.format(turns=turns * 6 // 10, answer="sorted(x)"), 40),
        "wrong, 0.6 of the CPU limit": (WORKS.format(turns=turns * 6 // 10, answer="x"), 10),
        "right, 1.6 times the CPU limit": (WORKS.format(turns=turns * 16 // 10, answer="sorted(x)"), 15),
        "right, half of the wall limit": (SLEEPS.format(seconds=WALL_SECONDS / 2), 20),
        "right, twice the wall limit": (SLEEPS.format(seconds=WALL_SECONDS * 2), 5),
        "loops": ("def solve(x):\n    while True: pass", 10),
        "sleeps": ("import time\ndef solve(x): time.sleep(1000)", 3),
        "eats memory": ("def solve(x): return [bytearray(1 << 24) for _ in range(10000)]", 12),
    }


def programs(count: int, turns: int) -> list[Program]:
    """Costly ones spread evenly among the others, each with a comment of its own: none is judged for another."""
    deck = [(kind, code) for kind, (code, weight) in COMMON.items() for _ in range(weight)]
    found = [deck[i * 37 % len(deck)] for i in range(count)]
    costly = [
        (kind, code)
        for kind, (code, of_20_000) in rare(turns).items()
        for _ in range(max(1, round(of_20_000 * count / 20_000)))
    ]
    for number in range(len(costly)):
        # 7 has no factor in common with the length: neighbours are of different kinds
        found[(2 * number + 1) * count // (2 * len(costly))] = costly[number * 7 % len(costly)]
    return [
        Program(key=f"{i} {kind}", code=f"{code}\n# {i}\n", test=TEST, entry_point="solve")
        for i, (kind, code) in enumerate(found)
    ]


def turns_of_the_limit(workers: int) -> int:
    """How many turns of the loop take the CPU limit here, with all lanes busy, as the kernel counts it."""
    turns = 4_000_000
    code = WORKS.format(turns=turns, answer="sorted(x)")
    jobs = [Program(key=str(i), code=f"{code} # {i}", test=TEST, entry_point="solve") for i in range(6 * workers)]
    with fork.build(fork.Config(workers=workers, cpu_seconds=60, wall_seconds=60)) as pool:
        used = [e.cpu_seconds for e in pool.judge(jobs)]
    return int(turns * CPU_SECONDS / statistics.median(used))


class Verdicts:
    """Outcome, kind of error and CPU time by program. Laid out beforehand: it must not be what grows."""

    def __init__(self, jobs: list[Program]) -> None:
        self.kinds = [job.key.split(" ", 1)[1] for job in jobs]
        self.findings = [""] * len(jobs)
        self.cpu = array.array("d", bytes(8 * len(jobs)))

    def add(self, execution: Execution) -> None:
        number = int(execution.key.split(" ", 1)[0])
        self.findings[number] = sys.intern(f"{execution.outcome} {execution.label}".strip())
        self.cpu[number] = execution.cpu_seconds

    def tally(self) -> dict[str, int]:
        return dict(sorted(Counter(f"{k}: {f}" for k, f in zip(self.kinds, self.findings, strict=True)).items()))

    def cpu_of(self, kind: str) -> dict[str, float]:
        used = sorted(c for k, c in zip(self.kinds, self.cpu, strict=True) if k == kind)
        return {"median": round(statistics.median(used), 3), "most": round(used[-1], 3)}


def family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except OSError:
        return []
    return [p for child in map(int, children) for p in (child, *family(child))]


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def look(pool: Any, done: int) -> dict[str, Any]:
    lanes = [lane.process.pid for lane in pool._lanes]
    pids = [os.getpid(), *lanes]
    return {
        "done": done,
        "descriptors": [len(list(Path(f"/proc/{p}/fd").iterdir())) for p in pids],
        "resident_mb": [round(resident_mb(p), 1) for p in pids],
        "processes": sum(1 + len(family(p)) for p in lanes),
    }


def judged(jobs: list[Program], workers: int) -> tuple[Verdicts, dict[str, Any]]:
    """Every verdict, and what was seen on the way."""
    found = Verdicts(jobs)
    start = time.perf_counter()
    looks: list[dict[str, Any]] = []
    every = max(len(jobs) // 10, 1)
    others = len(family(os.getpid()))
    limits = fork.Config(workers=workers, cpu_seconds=CPU_SECONDS, wall_seconds=WALL_SECONDS, memory_mb=512)
    with fork.build(limits) as pool:
        for done, execution in enumerate(pool.judge(iter(jobs)), start=1):
            found.add(execution)
            if done % every == 0:
                looks.append(look(pool, done))
    seconds = time.perf_counter() - start
    return found, {
        "seconds": round(seconds, 1),
        "samples_per_second": round(len(jobs) / seconds, 1),
        "load_average": os.getloadavg()[0],
        "on_the_way": looks,
        # a judge between two programs has one socket less
        "descriptors_flat": all(max(d) - min(d) <= 1 for d in zip(*(e["descriptors"] for e in looks), strict=True)),
        "memory_growth_mb": [
            round(b - a, 1) for a, b in zip(looks[0]["resident_mb"], looks[-1]["resident_mb"], strict=True)
        ],
        "processes_left": len(family(os.getpid())) - others,
    }


def burn() -> None:
    while True:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "soak.json")
    args = parser.parse_args()
    load_before = os.getloadavg()[0]
    turns = turns_of_the_limit(args.workers)
    jobs = programs(args.programs, turns)
    quiet, on_quiet = judged(jobs, args.workers)
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(3 * (os.cpu_count() or 1))]
    for burner in burners:
        burner.start()
    try:
        loaded, on_loaded = judged(jobs, args.workers)
    finally:
        for burner in burners:
            burner.kill()
            burner.join()
    pairs = zip(jobs, quiet.findings, loaded.findings, strict=True)
    changed = {job.key: [before, under] for job, before, under in pairs if before != under or not before}
    near = "right, 0.6 of the CPU limit"
    result = {
        "programs": len(jobs),
        "workers": args.workers,
        "limits": {"cpu_seconds": CPU_SECONDS, "wall_seconds": WALL_SECONDS},
        "outcomes": quiet.tally(),
        "verdicts_compared": len(jobs),
        "changed_under_load": changed,
        "cpu_seconds_of_right_programs_near_the_limit": {"quiet": quiet.cpu_of(near), "loaded": loaded.cpu_of(near)},
        "busy_processes_beside": len(burners),
        "load_average_before": load_before,
        "quiet": on_quiet,
        "loaded": on_loaded,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    sound = not changed and all(
        part["descriptors_flat"] and not part["processes_left"] and max(part["memory_growth_mb"]) < 8
        for part in (on_quiet, on_loaded)
    )
    print(f"{'sound' if sound else 'NOT SOUND'} → {args.out}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
