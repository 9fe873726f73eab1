"""The table of both sizes: rows of every run, its page true to the records, what is not decided is named."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from rune.errors import DataError
from rune.runs import store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "crossfit"))
    return importlib.import_module("sizes")


def test_another_size_is_another_row_of_the_same_columns(sizes: ModuleType, tmp_path: Path) -> None:
    first, other = ROOT / "results" / "crossfit-0.5b", tmp_path / "crossfit-1.5b"
    other.mkdir()
    for name in ("manifest.json", "config.toml", "result.json"):
        shutil.copyfile(first / name, other / name)
    result = store.read_json(other / "result.json")
    result["model"]["name"] = "qwen2.5-coder-1.5b-instruct"
    store.write_json(other / "result.json", result)
    lines = sizes.table([first, other, ROOT / "results" / "phase1-0.5b"]).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert [row[:3] for row in rows] == [
        *([f"`qwen2.5-coder-{size}-instruct`", "164 × 5 × 3", t] for size in ("0.5b", "1.5b") for t in ("0.8", "0.2")),
        ["`qwen2.5-coder-0.5b-instruct`", "25 × 5 × 1", "0.8"],
    ]
    assert rows[0][1:] == rows[2][1:] and all(len(row) == len(sizes.HEADER) for row in rows)
    decision = result["variants"]["temperature-0.8"]["pooled"]["decision"]
    bare = next(a["pass_at_1"] for a in decision["arms"] if a["condition"] == "vanilla")
    assert rows[0][3] == f"{100 * bare:.1f}" and rows[0][-1] == "**failed**"


def test_the_page_says_what_the_records_say(sizes: ModuleType) -> None:
    results = ROOT / "results"
    there = [results / name for name in sizes.KEPT if (results / name).is_dir()]
    assert sizes.table(there) in (ROOT / "studies" / "crossfit" / "README.md").read_text()


def test_a_run_that_nothing_was_decided_of_is_named(sizes: ModuleType, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "results" / "crossfit-0.5b" / "manifest.json", tmp_path / "manifest.json")
    with pytest.raises(DataError, match=r"neither result\.json nor decision\.json"):
        sizes.table([tmp_path])
