"""decision.json and the run's files → report.html (one file, offline), report.md, assessment.md.

Draws and writes only: every number comes from what earlier stages wrote. Loads matplotlib and Jinja2, no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rune.reporting import data, page, words
from rune.runs import store
from rune.runs.records import Records


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[report]`."""

    claim: bool = True  # false: a banner says that nothing may be claimed (the demo)
    programs_per_arm: int = 5  # different programs shown per task and arm
    most_programs: int = 3000  # on the whole page; the rest is in samples.jsonl
    leakage_rows: int = 30

    def __post_init__(self) -> None:
        if min(self.programs_per_arm, self.most_programs, self.leakage_rows) < 1:
            raise ValueError("programs_per_arm, most_programs and leakage_rows must be at least 1")


def run(
    folder: store.RunDir, config: Config, found: Records | None = None, result: Mapping[str, Any] | None = None
) -> Path:
    """Write report.html, report.md and assessment.md; `found` are the records of all cells, by default the folder's.

    `result`: result.json of an experiment of several cells; its variants are shown beside the one that decides.
    Returns the HTML file's path. Raises DataError if there is no decision.
    """
    report = data.gather(
        folder, found, result, programs_per_arm=config.programs_per_arm, most_programs=config.most_programs
    )
    view = page.view(report, claim=config.claim, leakage_rows=config.leakage_rows)
    store.write_atomic(folder / "report.html", page.render("report.html.j2", {**view, "figures": page.figures(report)}))
    store.write_atomic(folder / "report.md", page.render("report.md.j2", view))
    store.write_atomic(folder / "assessment.md", page.render("assessment.md.j2", view))
    return folder / "report.html"


def write_readme(folder: store.RunDir, config: Config, readme: Path, found: Records | None = None) -> None:
    """Replace what stands between the markers. Raises DataError if `readme` has none."""
    report = data.gather(folder, found, programs_per_arm=1, most_programs=1)
    seen = Path(os.path.relpath(folder.path.resolve(), readme.resolve().parent)).as_posix()
    store.replace_block(readme, "result", words.readme(report, claim=config.claim, folder=seen))
