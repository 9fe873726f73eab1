"""What configs/families-0.5b.toml reads: trajectories of training conventions, and those that held-out tasks are given.

    python studies/private-conventions/corpus.py [--config configs/families-0.5b.toml]

Written where the config's collect.imports and collect.shown say, from the conventions of its [benchmark]: the loop has
nothing to collect where the bare model solves nothing, so each trajectory is the plain default, its error, perhaps a
half-way repair, and the solution (`benchmarks/families.py: trajectories`). The same config gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rune import config, console
from rune.benchmarks import families
from rune.runs import store
from rune.study.config import Loaded, load, located
from rune.types import Split

CONFIG = Path(__file__).parents[2] / "configs" / "families-0.5b.toml"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    write(load(parser.parse_args().config))
    return 0


def write(loaded: Loaded) -> None:
    """Both files of a config of private conventions."""
    settings = located(loaded.settings, loaded.base, seed=0, fold=-1)
    asked = config.build(families.Config, settings.benchmark.settings, where="benchmark.settings")
    problems = families.generate(asked)
    for file, split in ((settings.collect.imports[0], Split.TRAIN), (settings.collect.shown[0], Split.HELD_OUT)):
        made = families.trajectories([p for p in problems if p.split is split], None, seed=asked.seed)
        store.write_jsonl(Path(file), made)
        console.out(f"{file}: {len(made)} trajectories of {len({t.domain for t in made})} conventions")


if __name__ == "__main__":
    sys.exit(main())
