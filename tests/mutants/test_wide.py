"""Random breakages: each drawn mutant changes one place and still compiles; counts say what was caught of what."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = '''"""A module."""
LIMIT: int = 3

def mean(values, *, skip=False):
    """Not `a < b`."""
    if skip and len(values) < LIMIT:
        raise ValueError("too few: 2 < 3")
    total = 0.0
    for value in values:
        total += value
    print(f"{total + 1}")
    return total / len(values)
'''


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = ROOT / "tools" / "mutants_wide.py"
    if not path.exists():
        pytest.skip("no tools/ in this copy of the tree: it is a mutant's")
    spec = importlib.util.spec_from_file_location("mutants_wide", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _texts(tool: ModuleType, folder: Path, source: str = SOURCE) -> dict[str, str]:
    path = folder / "m.py"
    path.write_text(source)
    data = path.read_bytes()
    return {
        m.what: (data[: m.start] + m.new.encode() + data[m.end :]).decode()
        for m in tool.mutations(path, "x", root=folder)
    }


def test_each_mutant_changes_one_place_and_words_to_people_stay(tool: ModuleType, tmp_path: Path) -> None:
    found = _texts(tool, tmp_path)
    assert found["comparison: `<` → `<=`"] == SOURCE.replace("len(values) < LIMIT", "len(values) <= LIMIT")
    assert found["and/or: `and` → `or`"] == SOURCE.replace("skip and", "skip or")
    assert found["number: `3` → `4`"] == SOURCE.replace("LIMIT: int = 3", "LIMIT: int = 4")
    assert found["truth value: `False` → `True`"] == SOURCE.replace("skip=False", "skip=True")
    assert found["statement left out: `total += value` → `pass`"] == SOURCE.replace("total += value", "pass")
    assert found["arithmetic: `/` → `*`"] == SOURCE.replace("total / len", "total * len")
    assert all('"too few: 2 < 3"' in text or "raise left out" in what for what, text in found.items())
    assert all('f"{total + 1}"' in text or "print" in what for what, text in found.items())


def test_a_mutant_keeps_its_key_when_other_functions_change(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(SOURCE)
    before = {m.key: m.what for m in tool.mutations(path, "x", root=tmp_path)}
    path.write_text(SOURCE.replace("LIMIT: int = 3\n", "LIMIT: int = 3\n\ndef other(x):\n    return x < 1\n"))
    after = {m.key: m.what for m in tool.mutations(path, "x", root=tmp_path)}
    assert before.items() <= after.items()
    assert len(after) > len(before)


def test_the_same_seed_draws_the_same_mutants_and_another_draws_others(tool: ModuleType) -> None:
    path = ROOT / "src" / "rune" / "analysis/stats.py"
    every = tool.mutations(path, "statistics")
    assert len(every) > 100
    assert tool.choose(every, 20, 1) == tool.choose(list(reversed(every)), 20, 1)
    assert tool.choose(every, 20, 1) != tool.choose(every, 20, 2)


def test_the_areas_name_files_and_tests_that_are_there(tool: ModuleType) -> None:
    names = {area.name for area in tool.areas()}
    assert {"statistics", "evidence and gate", "verdict path"} <= names


def test_a_survivor_counts_until_it_is_shown_to_be_equivalent(tool: ModuleType) -> None:
    def tried(key: str, outcome: str) -> object:
        return tool.Tried(
            key=key, file="f", line=1, area="a", what="w", outcome=outcome, by="", tests=1, seconds=0.0
        )  # fmt: skip

    ten = [tried("a", "survived"), tried("b", "survived"), *(tried(str(i), "caught") for i in range(8))]
    assert tool.summary(ten, {})["caught_percent"] == 80.0
    assert tool.summary(ten, {"a": "accepted"})["caught_percent"] == 80.0
    found = tool.summary(ten, {"a": "equivalent"})
    assert (found["caught_percent"], found["open"], found["equivalent"]) == (88.9, 1, 1)


def test_every_triaged_survivor_is_still_a_mutant_of_the_source(tool: ModuleType) -> None:
    """One whose line has changed is no longer argued: its entry goes."""
    keys: dict[str, dict[str, object]] = {}
    for entry in tomllib.loads(tool.SURVIVORS.read_text(encoding="utf-8"))["survivor"]:
        file = entry["file"]
        if file not in keys:
            keys[file] = {m.key: m.what for m in tool.mutations(ROOT / file, "")}
        assert keys[file].get(entry["key"]) == entry["what"], f"{file}: {entry['key']} {entry['what']}"
    assert set(tool.triaged().values()) <= set(tool.VERDICTS)


def test_a_triage_without_a_reason_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "survivors.toml"
    path.write_text('[[survivor]]\nkey = "a"\nverdict = "equivalent"\n')
    with pytest.raises(ValueError, match=r"a: needs verdict .* and why"):
        tool.triaged(path)


@pytest.mark.check  # it starts pytest several times
def test_a_mutant_is_caught_by_a_failing_test_and_its_file_is_put_back(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "m.py"
    file.write_text("def one():\n    return 1\n\ndef two():\n    return 2\n")
    (tmp_path / "test_m.py").write_text("from m import one\ndef test_one():\n    assert one() == 1\n")
    outcomes = {}
    for mutation in tool.mutations(file, "x", root=tmp_path):
        outcomes[mutation.what] = tool.try_one(mutation, tmp_path, ["test_m.py"], 60).outcome
    assert outcomes == {
        "returns None: `return 1` → `return None`": "caught",
        "number: `1` → `2`": "caught",
        "returns None: `return 2` → `return None`": "survived",
        "number: `2` → `3`": "survived",
    }
    assert file.read_text().endswith("return 2\n")


@pytest.mark.check  # it starts pytest several times
def test_a_mutant_meets_the_tests_that_reach_its_line_and_where_none_does_all(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "src" / "rune").mkdir(parents=True)
    file = tmp_path / "src" / "rune" / "m.py"
    file.write_text("LIMIT = 3\n\ndef one():\n    return 1\n\ndef two():\n    return 2\n\ndef three():\n    return 3\n")
    (tmp_path / "src" / "rune" / "__init__.py").touch()
    (tmp_path / "test_m.py").write_text(
        "import time\nfrom rune.m import one, two\n\n"
        "class Test:\n    def test_one(self):\n        assert one() == 1\n\n"
        "def test_both():\n    time.sleep(0.3)\n    assert one() + two() == 3\n"
    )
    tool.record(tmp_path / "reach", tmp_path, ["test_m.py"])
    reach = tool.Reach(tmp_path / "reach")
    one, both = "test_m.py::Test::test_one", "test_m.py::test_both"
    found = {m.line: reach.tests(m, 100) for m in tool.mutations(file, "x", root=tmp_path)}
    assert found == {1: [one, both], 4: [one, both], 7: [both], 10: [one, both]}
    reach.seconds[both] = 101  # too slow, but better than none
    found = {m.line: reach.tests(m, 100) for m in tool.mutations(file, "x", root=tmp_path)}
    assert found == {1: [one], 4: [one], 7: [both], 10: [one]}
    (tmp_path / "test_m.py").write_text("def test_wrong():\n    assert False\n")
    with pytest.raises(RuntimeError, match=r"the unbroken tree fails already \(pytest ended with [12]\)"):
        tool.record(tmp_path / "again", tmp_path, ["test_m.py"])


def test_tests_that_cannot_run_notice_nothing(tool: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "m.py"
    file.write_text("def one():\n    return 1\n")
    (mutation, *_) = tool.mutations(file, "x", root=tmp_path)
    assert tool.try_one(mutation, tmp_path, ["test_gone.py"], 60).outcome == "unfit"


@pytest.mark.check
def test_tests_that_fail_without_a_mutant_catch_none(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that could not run in a copied tree once "caught" all mutants that it was given."""
    monkeypatch.setattr(tool.listed, "copy_tree", lambda _: None)
    monkeypatch.setattr(tool.listed, "run_tests", lambda *_, **__: (1, "FAILED tests/x.py::test_y - no data\n"))
    monkeypatch.setattr(tool, "try_one", lambda *_: pytest.fail("a mutant was tried"))
    out = tmp_path / "tried.jsonl"
    typed = f"mutants-wide --only analysis/stats.py --sample 1 --tests tests/x.py --out {out}"
    monkeypatch.setattr(sys, "argv", typed.split())
    assert tool.main() == 2
    assert "--tests fail without a mutant" in capsys.readouterr().err and not out.exists()
