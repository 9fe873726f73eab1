"""Twenty thousand programs in one go, and the same verdicts on a machine three times overloaded.

    python bench/soak.py --programs 20000 --out results/soak.json

Right, wrong, raising, looping, forking, printing and memory-eating programs, every one different. Recorded on the way:
open descriptors and resident memory of the scorer and of its judges, processes alive; at the end, leftovers. Then a
part of them again with three busy processes per processor beside: no verdict may change.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from rune.sandbox import fork  # noqa: E402
from rune.types import Execution, Program  # noqa: E402

TEST = """
def check(candidate):
    for i in range(5):
        assert candidate(list(range(i, 0, -1))) == list(range(1, i + 1))
"""
KINDS = {
    "right": ("def solve(x): return sorted(x)", 60),
    "right, a second of work": (
        "def solve(x):\n    if len(x) == 4:\n        for _ in range(8_000_000): pass\n    return sorted(x)",
        0,
    ),
    "wrong": ("def solve(x): return x", 20),
    "raises": ("def solve(x): return x[10]", 10),
    "syntax": ("def solve(x) return x", 3),
    "prints": ("def solve(x):\n    print('x' * 100000)\n    return sorted(x)", 3),
    "writes": ("def solve(x):\n    open('f', 'w').write('x' * 10000)\n    return sorted(x)", 2),
    "forks": ("import os\ndef solve(x):\n    os.fork()\n    return sorted(x)", 1),
    "exits": ("import os\ndef solve(x): os._exit(0)", 1),
}
RARE = {  # one in many: they cost their whole time limit
    "loops": "def solve(x):\n    while True: pass",
    "eats memory": "def solve(x): return [bytearray(1 << 24) for _ in range(10000)]",
    "sleeps": "import time\ndef solve(x): time.sleep(1000)",
}


def programs(count: int, *, rare_every: int, slow_every: int) -> list[Program]:
    deck = [(kind, code) for kind, (code, weight) in KINDS.items() for _ in range(weight)]
    found = []
    for i in range(count):
        kind, code = deck[i * 37 % len(deck)]
        if i % rare_every == rare_every - 1:
            kind, code = list(RARE.items())[i // rare_every % len(RARE)]
        elif slow_every and i % slow_every == 1:
            kind, (code, _) = "right, a second of work", KINDS["right, a second of work"]
        found.append(Program(key=f"{i} {kind}", code=f"{code}\n# {i}\n", test=TEST, entry_point="solve"))
    return found


def family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [p for child in map(int, children) for p in (child, *family(child))]


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def look(pool: Any, done: int) -> dict[str, Any]:
    pids = [os.getpid(), *(lane.process.pid for lane in pool._lanes)]
    return {
        "done": done,
        "descriptors": [len(list(Path(f"/proc/{p}/fd").iterdir())) for p in pids],
        "resident_mb": [round(resident_mb(p), 1) for p in pids],
        "processes": len(family(os.getpid())),
    }


def settings(workers: int) -> fork.Config:
    return fork.Config(workers=workers, cpu_seconds=3.0, wall_seconds=4.0, memory_mb=512)


def soak(count: int, workers: int) -> dict[str, Any]:
    jobs = programs(count, rare_every=max(count // 12, 1), slow_every=0)
    start = time.perf_counter()
    looks: list[dict[str, Any]] = []
    outcomes: Counter[str] = Counter()
    with fork.build(settings(workers)) as pool:
        for done, execution in enumerate(pool.judge(iter(jobs)), start=1):
            outcomes[f"{execution.key.split(' ', 1)[1]}: {execution.outcome} {execution.error_kind}".strip()] += 1
            if done % max(count // 10, 1) == 0:
                looks.append(look(pool, done))
    seconds = time.perf_counter() - start
    return {
        "programs": count,
        "seconds": round(seconds, 1),
        "samples_per_second": round(count / seconds, 1),
        "outcomes": dict(sorted(outcomes.items())),
        "on_the_way": looks,
        # a judge between two programs has one socket less
        "descriptors_flat": all(max(d) - min(d) <= 1 for d in zip(*(e["descriptors"] for e in looks), strict=True)),
        "memory_growth_mb": [
            round(b - a, 1) for a, b in zip(looks[0]["resident_mb"], looks[-1]["resident_mb"], strict=True)
        ],
        "processes_left": len(family(os.getpid())),
    }


def burn() -> None:
    while True:
        pass


def verdicts(jobs: list[Program], workers: int) -> dict[str, tuple[str, str]]:
    with fork.build(settings(workers)) as pool:
        return {e.key: finding(e) for e in pool.judge(jobs)}


def finding(execution: Execution) -> tuple[str, str]:
    return str(execution.outcome), execution.error_kind


def overload(count: int, workers: int) -> dict[str, Any]:
    jobs = programs(count, rare_every=max(count // 3, 1), slow_every=max(count // 12, 1))
    before = verdicts(jobs, workers)
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(3 * (os.cpu_count() or 1))]
    for burner in burners:
        burner.start()
    try:
        start = time.perf_counter()
        during = verdicts(jobs, workers)
        seconds = time.perf_counter() - start
    finally:
        for burner in burners:
            burner.kill()
            burner.join()
    changed = {key: [before[key], during[key]] for key in before if before[key] != during[key]}
    return {"programs": count, "busy_processes": len(burners), "seconds": round(seconds, 1), "changed": changed}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--overload", type=int, default=300, help="programs judged again under load")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "soak.json")
    args = parser.parse_args()
    result: dict[str, Any] = {"workers": args.workers, "load_average_before": os.getloadavg()}
    result["overload"] = overload(args.overload, args.workers)
    result["soak"] = soak(args.programs, args.workers)
    result["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    sound = (
        result["soak"]["descriptors_flat"]
        and not result["overload"]["changed"]
        and not result["soak"]["processes_left"]
    )
    print(f"{'sound' if sound else 'NOT SOUND'} → {args.out}")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
