"""results/corpus-0.5b: what configs/phase1-0.5b-wide.toml imports beside its own trajectories.

    rune collect configs/phase1-0.5b.toml --set run.name=mbpp --set benchmark.name=mbpp \\
        --set benchmark.settings.path=DATA --set collect.keep=2000 --set collect.keep_per_task=2 --set collect.chains=3
    python studies/wide-corpus/corpus.py --mbpp runs/mbpp-…/trajectories.jsonl --families CONVENTIONS.jsonl

CONVENTIONS.jsonl is what studies/private-conventions/corpus.py writes as trajectories.jsonl. Of each MBPP task every
solved trajectory, or one exhausted one (`kl_static` learns from those). Ids 511–600 (MBPP's validation split) stay out:
recipes are chosen on them. Families: some of the training families, drawn by the seed.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path

from rune import console
from rune.runs import store
from rune.types import Trajectory

DEVELOPMENT = range(511, 601)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbpp", type=Path, required=True)
    parser.add_argument("--families", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="families kept")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "results" / "corpus-0.5b")
    args = parser.parse_args()
    tasks: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in store.read_jsonl(args.mbpp, Trajectory):
        if int(trajectory.task_id.partition("/")[2]) not in DEVELOPMENT:
            tasks[trajectory.task_id].append(trajectory)
    mbpp = [t for some in tasks.values() for t in ([t for t in some if t.solved] or some[:1])]
    every = store.read_jsonl(args.families, Trajectory)
    chosen = set(random.Random(args.seed).sample(sorted({t.domain for t in every}), args.count))
    families = [t for t in every if t.domain in chosen]
    for name, found in (("mbpp", mbpp), ("families", families)):
        store.write_jsonl(args.out / f"{name}.jsonl", found)
        console.out(f"{name}: {len(found)} trajectories, {sum(t.solved for t in found)} solved")
    return 0


if __name__ == "__main__":
    sys.exit(main())
