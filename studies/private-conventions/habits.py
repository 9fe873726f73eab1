"""Which habits of its convention does a program carry: those that training showed in other conventions, or the new one?

    python studies/private-conventions/habits.py CELL --out habits.json

CELL is a scored cell of a run with split = "atom" (its problems.jsonl and samples.jsonl). A habit counts as carried if
every line that the reference has for it stands in the program, spaces at the ends aside.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rune import console
from rune.benchmarks import _families_conventions as conventions
from rune.benchmarks._families_atoms import DIMENSIONS
from rune.benchmarks._families_conventions import Convention
from rune.runs import store
from rune.types import Problem, Sample, Split


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cell", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    problems = store.read_jsonl(args.cell / "problems.jsonl", Problem)
    result = shares(problems, store.read_jsonl(args.cell / "samples.jsonl", Sample))
    store.write_json(args.out, result)
    for arm, one in result["arms"].items():
        console.out(f"{arm}: known {one['known'][0]:.1f} % of {one['known'][1]}, new {one['new'][0]:.1f} % of "
                    f"{one['new'][1]}; all known ones of a program {one['all known']:.1f} %")  # fmt: skip
    return 0


def shares(problems: list[Problem], samples: list[Sample]) -> dict[str, Any]:
    """Arm → share in percent of known and of new habits carried, with their numbers, and by dimension.

    Where a new habit is missing, does a known one of its kind stand in its place?
    """
    known = {p.task_id: conventions.parse(p.domain) for p in problems}
    shown = {label for p in problems if p.split is Split.TRAIN for label in known[p.task_id].labels}
    habits: dict[str, list[set[str]]] = defaultdict(list)
    for convention in {conventions.parse(p.domain) for p in problems if p.split is Split.TRAIN}:
        for dimension in convention.active:
            place = dimension if dimension != "value" else f"value {convention.kind}"
            if (lines := wanted(convention, dimension)) not in habits[place]:
                habits[place].append(lines)
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for s in samples:
        convention = known[s.task_id]
        lines = {line.strip() for line in s.program.splitlines()}
        all_known = []
        for dimension, atom in zip(DIMENSIONS, convention.habits, strict=True):
            if atom is None:
                continue
            carried = wanted(convention, dimension) <= lines
            seen = conventions.label(dimension, convention.kind, atom) in shown
            hits[s.condition]["known" if seen else "new"].append(carried)
            if not seen:
                others = habits[dimension if dimension != "value" else f"value {convention.kind}"]
                hits[s.condition]["another known one in a new one's place"].append(
                    any(some <= lines for some in others if some != wanted(convention, dimension))
                )
            hits[s.condition][f"{dimension}, {'known' if seen else 'new'}"].append(carried)
            all_known += [carried] if seen else []
        hits[s.condition]["all known"].append(all(all_known))
    return {
        "conventions": len({p.domain for p in problems if p.split is Split.HELD_OUT}),
        "arms": {
            arm: {
                **{what: [_percent(some), len(some)] for what, some in sorted(one.items()) if what != "all known"},
                "all known": _percent(one["all known"]),
            }
            for arm, one in sorted(hits.items())
        },
    }


def wanted(convention: Convention, dimension: str) -> set[str]:
    """The lines that a solution has for one habit."""
    atom = convention.habits[DIMENSIONS.index(dimension)]
    if atom is None:
        return set()
    if dimension == "error":
        return {f"return {atom.code}"}
    name, target = {
        "input": ("data", "data = "), "value": ("result", "result = "), "wrap": ("result", "return ")
    }[dimension]  # fmt: skip
    return {line.strip() for line in conventions._use(atom, name, target)}


def _percent(hits: list[bool]) -> float:
    return 100 * sum(hits) / len(hits) if hits else float("nan")


if __name__ == "__main__":
    sys.exit(main())
