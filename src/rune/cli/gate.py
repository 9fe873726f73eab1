"""`rune gate RUN`: decide from verdicts alone. Exit code 0 passed, 10 failed; an error is 2, never 10."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rune import console
from rune.analysis import evidence
from rune.runs import provenance

if TYPE_CHECKING:
    from rune.types import Decision

FAILED = 10


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="a run folder whose cells are scored")


def run(args: argparse.Namespace) -> int:
    from rune.study import combine, reading

    source = reading.source(args.run_folder)
    folder = source.folder
    with folder.lock(), folder.stage("gate") as entry:
        entry["by"] = provenance.worker()
        decision = combine.decide(source)
    if source.single:
        _tables(decision)
        console.note(decision.evidence)
    else:  # every variant's tables and evidence
        console.note((folder / "result.md").read_text(encoding="utf-8"))
    console.out(decision.answer)
    return 0 if decision.passed else FAILED


def _tables(decision: Decision) -> None:
    """The arms, and the differences that were announced."""
    level = f"{100 * decision.arms[0].interval.level:g} % interval over {decision.arms[0].interval.over}"
    arms: list[tuple[object, ...]] = [
        (a.condition, f"{100 * a.pass_at_1:.1f} %", f"{a.interval.low:.1f} – {a.interval.high:.1f}", a.num_passed)
        for a in decision.arms
    ]
    contrasts: list[tuple[object, ...]] = [
        (c.name, evidence.points(c.points), evidence.span(c.interval), evidence.p_promised(c), c.role)
        for c in decision.contrasts
        if c.role != "descriptive"
    ]
    console.note(
        console.table(arms, ("arm", decision.scorer.measure(), level, f"passed of {decision.arms[0].num_samples}"))
        + "\n"
    )
    console.note(console.table(contrasts, ("contrast", "points", level, "p", "role")) + "\n")
