"""Random breakages: each drawn mutant changes one place and still compiles; counts say what was caught of what."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
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


def test_what_a_machine_cannot_decide_counts_as_open_until_another_does(tool: ModuleType) -> None:
    def tried(key: str, area: str, outcome: str, budget: float = 8.0) -> object:
        return tool.Tried(
            key=key, file="f", line=1, area=area, what="w", outcome=outcome, by="", tests=1, seconds=0.0, budget=budget
        )  # fmt: skip

    lines = [tried("a", "x", "survived"), tried("b", "x", "undecided"), tried("c", "y", "caught")]
    found = tool.summary(lines, {})
    assert (found["caught_percent"], found["open"], found["undecided"]) == (33.3, 2, 1)
    lines += [tried("b", "x", "caught"), tried("c", "y", "survived"), tried("a", "x", "survived", 40.0)]
    last = tool.latest(lines)
    assert {k: (t.outcome, t.budget) for k, t in last.items()} == {
        "a": ("survived", 40.0), "b": ("caught", 8.0), "c": ("caught", 8.0),
    }  # fmt: skip
    each = tool.by_area(list(last.values()), {"a": "equivalent"})
    assert {name: (counts["tried"], counts["caught_percent"]) for name, counts in each.items()} == {
        "x": (2, 100.0), "y": (1, 100.0),
    }  # fmt: skip


def test_a_test_that_fails_without_the_mutant_catches_nothing(tool: ModuleType, tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(_: Path, tests: list[str], *__: str, seconds: float) -> tuple[int, str]:
        asked.append(list(tests))
        return {"t.py::good": 0, "t.py::wrong": 1, "t.py::endless": 124}[tests[-1]], ""

    def tried(outcome: str, by: str) -> object:
        return tool.Tried(
            key="k", file="f", line=1, area="a", what="w", outcome=outcome, by=by, tests=1, seconds=0.0
        )  # fmt: skip

    sound = tool.Sound()
    assert sound(tried("survived", ""), tmp_path, ["t.py::wrong"], 9, run) and not asked
    assert sound(tried("caught", "t.py::good"), tmp_path, ["t.py::wrong", "t.py::good"], 9, run)
    assert not sound(tried("caught", "t.py::wrong"), tmp_path, ["t.py::wrong"], 9, run)
    assert sound(tried("caught", "t.py::good"), tmp_path, ["t.py::good"], 9, run) and len(asked) == 2, "asked twice"
    assert not sound(tried("caught", tool.DO_NOT_END), tmp_path, ["t.py::endless"], 9, run)
    assert sound(tried("caught", tool.DO_NOT_END), tmp_path, ["t.py::good"], 9, run)


def _recorded(tool: ModuleType, folder: Path, lines: dict[str, list[int]], seconds: dict[str, float]) -> object:
    """A `Reach` of one file, made as coverage.py would: a bit a line for each test."""
    folder.mkdir()
    base = sqlite3.connect(folder / "coverage.db")
    base.execute("create table context (id integer, context text)")
    base.execute("create table file (id integer, path text)")
    base.execute("create table line_bits (file_id integer, context_id integer, numbits blob)")
    base.execute("insert into file values (1, '/somewhere/src/rune/m.py')")
    for number, (test, reached) in enumerate(lines.items()):
        base.execute("insert into context values (?, ?)", (number, f"{test}|run"))
        bits = bytearray(8)
        for line in reached:
            bits[line // 8] |= 1 << line % 8
        base.execute("insert into line_bits values (1, ?, ?)", (number, bytes(bits)))
    base.commit()
    base.close()
    (folder / "seconds.json").write_text(json.dumps(seconds))
    (folder / "left-out.json").write_text(json.dumps([t for t in lines if t not in seconds]))
    return tool.Reach(folder)


def test_tests_are_chosen_quickest_first_but_run_file_by_file(tool: ModuleType, tmp_path: Path) -> None:
    lines = {t: [4] for t in ("a.py::slow", "a.py::quick", "b.py::middle", "c.py::absent")} | {"c.py::other": [9]}
    seconds = {"a.py::slow": 3.0, "a.py::quick": 0.25, "b.py::middle": 1.0, "c.py::other": 0.5}
    reach = _recorded(tool, tmp_path / "reach", lines, seconds)

    def at(line: int) -> object:
        return tool.Mutation(
            key="k", file="src/rune/m.py", line=line, area="a", what="w", start=0, end=1, new=""
        )  # fmt: skip

    # the first of a.py costs what its tests share too: as much as the slowest but one
    assert reach.tests(at(4), 0.4) == ["a.py::quick"]
    assert reach.tests(at(4), 1.5) == ["a.py::quick", "b.py::middle"]
    assert reach.tests(at(4), 9) == ["b.py::middle", "a.py::quick", "a.py::slow"], "a file's tests lie together"
    assert reach.cost(reach.tests(at(4), 9)) == pytest.approx(0.25 + 1 + 3 + 0.25)
    assert reach.undecided(at(4)) and not reach.undecided(at(9)), "one that reaches line 4 was left out"
    assert reach.undecided(at(1), ("c.py",)), "nobody reaches it: any test of the area may be the one"


@pytest.mark.check  # a process that imports pytest, and a fork a run
def test_a_fork_of_a_warm_process_runs_tests_as_a_process_of_their_own_would(tool: ModuleType, tmp_path: Path) -> None:
    tree = tmp_path / "rune"
    (tree / "src").mkdir(parents=True)
    (tree / "src" / "m.py").write_text("def one():\n    return 1\n")
    (tree / "test_m.py").write_text(
        "import os, subprocess, sys, time\nfrom pathlib import Path\n\n"
        "def test_one():\n    from m import one\n    assert one() == 1\n\n"
        "def test_sleeps():\n    time.sleep(60)\n\n"
        "def test_leaves_a_process():\n"
        "    child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "    Path('pid').write_text(str(child.pid))\n"
    )
    warm = tool.Warm(["pytest"])
    try:
        run = tool._warm_runner(warm)
        assert run(tree, ["test_m.py::test_one"], seconds=60)[0] == 0
        (tree / "src" / "m.py").write_text("def one():\n    return 2\n")
        code, output = run(tree, ["test_m.py::test_one"], seconds=60)
        assert code == 1 and tool.listed._first_failure(output) == "test_m.py::test_one"
        assert run(tree, ["test_m.py::test_sleeps"], seconds=5)[0] == 124
        assert run(tree, ["test_m.py::test_leaves_a_process"], seconds=60)[0] == 0
        with pytest.raises(ProcessLookupError):
            os.kill(int((tree / "pid").read_text()), 0)
    finally:
        warm.close()


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
