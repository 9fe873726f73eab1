"""Damaged inputs of all kinds by the thousand: one line and exit code 2, or a right result.

    python tests/fuzz/campaign.py [--seed 0] [--scale 1.0] [--only KIND …] [--out results/fuzz.json]

No traceback, nothing half written, no endless loop. What a right result is stands with each kind. The inputs follow
from the seed; a find is told by its number, which `--again KIND NUMBER` tries once more. `test_fuzz.py` is a short run.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rune import console
from rune.runs import store
from tests.fuzz import adapters, configs, samples, trajectories

Judge = Callable[[int, Path], str]
KINDS: dict[str, tuple[Judge, int]] = {  # what is damaged → how it is judged, and how many in a whole run
    "trajectory files": (trajectories.judge, 6000),
    "sample files": (functools.partial(samples.judge, "samples"), 300),
    "problem files": (functools.partial(samples.judge, "problems"), 300),
    "configs": (configs.judge, 200),
    "run folders": (configs.damaged_run, 40),
    "adapter folders": (adapters.judge, 3200),
    "checkpoints": (adapters.judge_checkpoint, 120),
}


class Campaign(NamedTuple):
    """What became of the inputs of one kind."""

    became: Counter[str]
    finds: dict[int, str]  # input → what was wrong

    @property
    def inputs(self) -> int:
        return sum(self.became.values()) + len(self.finds)


def campaign(kind: str, count: int, start: int) -> Campaign:
    """`count` inputs of a kind that hypothesis picks, from one seed."""
    found = Campaign(Counter(), {})
    seen: set[int] = set()
    judge, _ = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder).resolve()

        @seed(start)
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.integers(0, 2**63))
        def each(number: int) -> None:
            if number in seen:
                return
            seen.add(number)
            try:
                found.became[judge(number, place)] += 1
            except Exception as error:
                found.finds[number] = str(error) if isinstance(error, AssertionError) else traceback.format_exc()

        each()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of inputs")
    parser.add_argument("--only", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--again", nargs=2, metavar=("KIND", "NUMBER"))
    parser.add_argument("--out", type=Path, default=Path("results/fuzz.json"))
    args = parser.parse_args()
    os.environ["RUNE_CACHE"] = str(Path(tempfile.mkdtemp(prefix="rune-fuzz-cache-")))
    if args.again:
        kind, number = args.again
        with tempfile.TemporaryDirectory() as folder:
            console.out(KINDS[kind][0](int(number), Path(folder).resolve()))
        return 0
    kinds: dict[str, dict[str, Any]] = {}
    if args.out.is_file() and (before := store.read_json(args.out))["seed"] == args.seed:
        kinds = before["kinds"]  # what is not tried now stays as it was found
    for kind in args.only:
        begun = time.monotonic()
        found = campaign(kind, max(1, round(KINDS[kind][1] * args.scale)), args.seed)
        kinds[kind] = {"inputs": found.inputs, "seconds": round(time.monotonic() - begun), "became": dict(found.became)}
        kinds[kind]["finds"] = [{"input": number, "what": what[-2000:]} for number, what in found.finds.items()]
        console.out(f"{kind}: {found.inputs} inputs, {len(found.finds)} finds, {dict(found.became)}")
        for number, what in found.finds.items():
            console.out(f"  {number}: {what}")
    store.write_json(
        args.out,
        {
            "seed": args.seed,
            "python": platform.python_version(),
            "inputs": sum(k["inputs"] for k in kinds.values()),
            "finds": sum(len(k["finds"]) for k in kinds.values()),
            "kinds": kinds,
        },
    )
    return 1 if any(k["finds"] for k in kinds.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
