"""`rune leakage RUN`: look for held-out tasks in what trained or was retrieved. Exit code 1 if any is suspicious.

What was edited after it was sealed is refused: a corpus with the leak taken out would be clean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rune import console
from rune.analysis import evidence


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a scored run folder")


def run(args: argparse.Namespace) -> int:
    from rune.study import combine, reading

    source = reading.source(args.run_folder)
    source.verify()
    found = combine.leaks(source)
    nearest = sorted(found["rows"], key=lambda r: (not r.suspicious, -r.similarity))[:10]
    rows: list[tuple[object, ...]] = [
        (r.task_id, r.nearest or "–", f"{r.prompt_share:.2f}", f"{r.solution_share:.2f}", r.why or "clean")
        for r in nearest
    ]
    console.out(console.table(rows, ("held-out task", "nearest", "prompt", "solution", "finding")))
    rest = found["effect_without"]
    console.out(
        f"\n{found['status']}: {len(found['suspicious'])} of {found['tasks']} tasks against {found['items']} training "
        f"items; effect {evidence.points(found['effect'])} points, without suspicious tasks "
        f"{'none left' if rest is None else evidence.points(rest)}"
    )
    return 0 if found["status"] == "clean" else 1
