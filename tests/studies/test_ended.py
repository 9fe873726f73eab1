"""tools/gpu/ended.py: of a run that comes back without weights, what cannot go on begins anew and nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from rune.runs import store

TOOLS = Path(__file__).parents[2] / "tools" / "gpu"
DONE, RUNNING = {"status": "done"}, {"status": "running"}


def test_trainings_without_all_their_verdicts_go_with_every_cell_that_shares_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def folder(name: str, stages: dict[str, Any], **cell: Any) -> None:
        store.write_json(tmp_path / name / "manifest.json", {"stages": stages, **({"cell": cell} if cell else {})})

    folder("cross", {})
    whole, cut = {"collect": DONE, "train": DONE, "score": DONE}, {"collect": DONE, "train": RUNNING}
    for fold, (first, second) in enumerate([(whole, whole), (whole, {}), (cut, {}), ({"collect": DONE}, {})]):
        folder(f"cross/cells/hot.{fold}", first, variant="hot", seed=0, fold=fold)
        folder(f"cross/cells/cold.{fold}", second, variant="cold", seed=0, fold=fold)
    folder("judging", {"train": DONE, "score": RUNNING})
    folder("ended", whole)
    folder("collecting", {"collect": RUNNING})
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr("sys.argv", ["ended.py", str(tmp_path)])
    assert importlib.import_module("ended").main() == 0
    left = {str(p.parent.relative_to(tmp_path)) for p in tmp_path.rglob("manifest.json")}
    assert left == {"cross", "ended", "collecting", *(f"cross/cells/{t}.{n}" for t in ("hot", "cold") for n in (0, 3))}
    assert capsys.readouterr().out.count("begins anew") == 5
