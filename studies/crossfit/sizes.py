"""One table of both sizes, from records: the cross-fitted gate, and Phase 1's plain run.

    .venv/bin/python studies/crossfit/sizes.py                      what results/ holds, written into README.md here
    .venv/bin/python studies/crossfit/sizes.py FOLDER FOLDER …      of these run folders, printed

A folder is what `tools/gpu/keep.py RUN --out results/NAME` keeps: result.json of a cross-fit, decision.json of one run.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rune import console
from rune.analysis.evidence import points, span
from rune.errors import DataError
from rune.reporting.tables import Table, markdown
from rune.runs import store
from rune.runs.store import RunDir
from rune.study import reading
from rune.types import Decision

HERE = Path(__file__).resolve().parent
KEPT = ("crossfit-0.5b", "crossfit-1.5b", "phase1-0.5b", "phase1-1.5b")
ARMS = {"vanilla": "bare model", "hypernet": "right trajectory", "wrong_trajectory": "wrong trajectory",
        "empty_trajectory": "empty trajectory", "static": "constant part alone", "lora": "fine-tuned LoRA",
        "rag": "two solved tasks in context"}  # fmt: skip
CONTRASTS = {"hypernet − vanilla": "right − bare", "hypernet − wrong_trajectory": "right − wrong",
             "hypernet − static": "right − constant part", "lora − vanilla": "LoRA − bare"}  # fmt: skip
HEADER = ("model", "tasks × draws × trainings", "temperature", *ARMS.values(), *CONTRASTS.values(), "gate")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    args = parser.parse_args()
    try:
        if args.folders:
            console.out(table(args.folders))
            return 0
        results = HERE.parents[1] / "results"
        there = [results / name for name in KEPT if (results / name).is_dir()]
        lacking = [name for name in KEPT if results / name not in there]
        told = f"\n\nNot there: {', '.join(f'`{name}`' for name in lacking)}." if lacking else ""
        store.replace_block(HERE / "README.md", "sizes", f"{table(there)}{told}")
    except DataError as error:
        print(f"sizes: {error}", file=sys.stderr)
        return 2
    return 0


def table(folders: Sequence[Path]) -> str:
    """pass@1 in % and contrasts in points, a row a run and temperature. Raises DataError where nothing was decided."""
    found = [row for folder in folders for row in rows(folder)]
    over = sorted({d.contrasts[0].interval.over for _, _, _, d in found})
    written = [_row(*row) for row in found]
    return (
        f"{markdown(Table('', HEADER, tuple(written)))}\n\npass@1 in %, contrasts in points, 95 % intervals over "
        f"{' or '.join(over)}."
    )


def rows(folder: Path) -> list[tuple[str, str, int, Decision]]:
    """(model, temperature, trainings, decision) of each design point that a run has decided."""
    run = RunDir.open(folder)
    result = reading.result(run)
    if result is not None:
        seeds = len(result["seeds"])
        return [
            (result["model"]["name"], _temperature(v["settings"]), seeds, _decision(v["pooled"]["decision"], folder))
            for v in result["variants"].values()
        ]
    path = folder / "decision.json"
    if not path.is_file():
        raise DataError(f"{folder}: neither result.json nor decision.json; run `rune gate {folder}`")
    settings = tomllib.loads((folder / "config.toml").read_text())
    temperature = f"{settings['sample']['temperature']:g}"
    return [(settings["model"]["name"], temperature, 1, _decision(store.read_json(path), folder))]


def _temperature(settings: Mapping[str, Any]) -> str:
    return f"{settings['sample.temperature']:g}"


def _decision(record: Mapping[str, Any], folder: Path) -> Decision:
    return store.decode(Decision, record, where=str(folder))


def _row(model: str, temperature: str, trainings: int, decision: Decision) -> tuple[str, ...]:
    arms = {a.condition: f"{100 * a.pass_at_1:.1f}" for a in decision.arms}
    contrasts = {c.name: f"{points(c.points)} {span(c.interval)}" for c in decision.contrasts}
    tasks, draws = len(decision.details["tasks"]), int(decision.details["n"]) // trainings
    return (
        f"`{model}`", f"{tasks} × {draws} × {trainings}", temperature, *(arms.get(a, "–") for a in ARMS),
        *(contrasts.get(c, "–") for c in CONTRASTS), "**passed**" if decision.passed else "**failed**",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
