"""What version 1 wrote, and is committed under results/, still opens and gives the figures that README prints."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rune.cli.main import main
from rune.runs import store
from rune.runs.store import RunDir
from rune.study import reading, tables, version1
from rune.types import Problem, Trajectory

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
UNDECIDED = "pbb-0.5b-reason"  # no draw of any arm passed, and the gate refuses
CROSSFITS = sorted({p.parent.name for p in RESULTS.glob("*/run.tar.xz")} - {UNDECIDED})


def block(name: str) -> str:
    """What README has between the markers of a name."""
    found = re.search(
        rf"<!-- rune:{name}:begin -->\n(.*?)\n<!-- rune:{name}:end -->", (ROOT / "README.md").read_text(), re.S
    )
    assert found
    return found.group(1)


@pytest.fixture
def copy(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RUNE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(RESULTS / request.param, tmp_path / request.param))


@pytest.mark.parametrize("name", [*CROSSFITS, "phase1-0.5b"])
def test_show_tells_of_every_committed_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(RESULTS / name)]) == 0
    out = capsys.readouterr().out
    answer = reading.decision(RunDir.open(RESULTS / name)).answer
    assert out.strip().endswith(answer) and "pass@1 %" in out


def test_show_names_what_was_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """There the baseline is not the bare model, which passes nothing either."""
    assert main(["show", str(RESULTS / "families-atom-0.5b")]) == 0
    assert "\neffect  hypernet − teacher: -37.97 points (threshold 5.0)\n" in capsys.readouterr().out
    assert main(["show", str(RESULTS / "crossfit-0.5b")]) == 0
    out = capsys.readouterr().out
    assert "hypernet − vanilla, points  answer\n" in out and "\neffect  hypernet − vanilla: +3.62 points" in out


def test_show_says_that_a_committed_run_is_not_decided(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(RESULTS / UNDECIDED)]) == 0
    assert capsys.readouterr().out.strip().endswith("not decided")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[:1000], "not valid JSON: "),
        (lambda text: text.replace('"answer"', '"anwser"'), "unknown field 'anwser' for Decision"),
        (
            lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "arms"}),
            "field 'arms' is missing",
        ),
        (lambda text: json.dumps({**json.loads(text), "contrasts": []}), "field 'contrasts' is empty"),
    ],
)
@pytest.mark.parametrize("copy", ["phase1-0.5b"], indirect=True)
def test_a_damaged_decision_is_refused_and_not_passed_over(
    copy: Path, damage: Callable[[str], str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (copy / "decision.json").read_text()
    (copy / "decision.json").write_text(damage(whole))
    said = {}
    for verb, path in (("show", copy), ("list", copy.parent), ("report", copy)):
        assert main(["show" if verb == "list" else verb, str(path)]) == 2
        out, said[verb] = capsys.readouterr()
        assert "not decided" not in out and ("  damaged\n" in out) == (verb == "list")
    assert said["show"] == said["list"] == said["report"]
    assert said["show"].startswith(f"rune: {copy / 'decision.json'}: {words}") and said["show"].count("\n") == 1
    (copy / "decision.json").unlink()
    assert main(["show", str(copy.parent)]) == main(["show", str(copy)]) == 0
    assert capsys.readouterr().out.count("not decided") == 2


def test_a_result_of_neither_version_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.toml", "manifest.json", "result.json"):
        shutil.copy(ROOT / "results" / "crossfit-0.5b" / name, run)
    assert main(["show", str(run)]) == 0
    whole = {"name": "a", "temperatures": {}, "diagnostics": {}}
    for lost in whole:
        store.write_json(run / "result.json", {k: v for k, v in whole.items() if k != lost})
        capsys.readouterr()
        assert main(["show", str(run)]) == 2
        said = capsys.readouterr().err
        assert f"result.json lacks {lost!r}" in said and said.count("\n") == 1


@pytest.mark.parametrize("copy", ["phase1-0.5b"], indirect=True)
def test_every_damaged_decision_of_a_folder_is_named_beside_its_whole_runs(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("second", "whole"):
        shutil.copytree(copy, copy.with_name(name))
    for folder in (copy, copy.with_name("second")):
        (folder / "decision.json").write_text("{")
    assert main(["show", str(copy.parent)]) == 2
    out, error = capsys.readouterr()
    assert out.count("  damaged\n") == 2 and out.count("Gate FAILED — reassessing\n") == 1
    warned, refused = error.splitlines()
    assert warned.startswith(f"warning: {copy.with_name('second') / 'decision.json'}: not valid JSON")
    assert refused.startswith(f"rune: {copy / 'decision.json'}: not valid JSON")


@pytest.mark.parametrize("copy", ["phase1-0.5b"], indirect=True)
def test_the_plain_run_is_decided_reported_and_compared_as_it_was(copy: Path, tmp_path: Path) -> None:
    before = store.read_json(copy / "decision.json")
    assert main(["gate", str(copy)]) == 10
    after = store.read_json(copy / "decision.json")
    for name in ("answer", "effect_points", "arms", "contrasts", "grade"):
        assert json.dumps(after[name]).replace(', "over": "tasks, one training"', "") == json.dumps(before[name])
    readme = tmp_path / "README.md"
    readme.write_text("<!-- rune:result:begin -->\n<!-- rune:result:end -->\n")
    assert main(["report", str(copy), "--readme", str(readme)]) == 0
    figures = [line for line in block("result").splitlines() if line.startswith("|")]
    assert figures and all(line in readme.read_text() for line in figures)
    assert main(["compare", str(copy), str(RESULTS / "crossfit-0.5b"), "-o", str(tmp_path / "compared")]) == 0
    assert (tmp_path / "compared" / "compare.html").exists()


@pytest.mark.parametrize("copy", ["phase1-0.5b"], indirect=True)
@pytest.mark.parametrize("name", ["verdicts.jsonl", "problems.jsonl", "config.toml", "trajectories.jsonl"])
def test_a_touched_record_of_the_plain_run_stops_its_gate(
    copy: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (copy / name).read_text()
    (copy / name).write_text(text.replace("0", "1", 1))
    assert main(["gate", str(copy)]) == 2
    assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("copy", "marked"),
    [("crossfit-0.5b-wide", "phase1-0.5b-wide2"), ("crossfit-0.5b", "phase1-0.5b")],
    indirect=["copy"],
)
def test_readme_prints_what_the_committed_result_says(copy: Path, marked: str) -> None:
    result = reading.result(RunDir(copy))
    assert result and result["run"] == marked
    assert tables.brief(result) == block(marked)


@pytest.mark.slow
@pytest.mark.parametrize("copy", ["crossfit-0.5b-wide-harmless-again"], indirect=True)
def test_a_cross_fitted_archive_is_decided_again_and_reported(copy: Path) -> None:
    source = reading.source(copy)
    assert len(source.cells) == 18 and source.seeds == [3, 4, 5] and source.folds == 6
    before = reading.decision(RunDir(copy))
    assert main(["gate", str(copy)]) == 10
    after = reading.decision(RunDir(copy))
    assert (after.answer, after.effect_points, after.arms) == (before.answer, before.effect_points, before.arms)
    assert [c.points for c in after.contrasts] == [c.points for c in before.contrasts]
    assert main(["report", str(copy)]) == 0
    assert after.answer in (copy / "report.html").read_text()


@pytest.mark.parametrize("copy", ["crossfit-0.5b-harmless"], indirect=True)
def test_an_edited_rule_of_an_archive_decides_nothing(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (copy / "config.toml").read_text()
    (copy / "config.toml").write_text(text.replace("threshold_points = 5.0", "threshold_points = 1.0"))
    assert main(["gate", str(copy)]) == 2
    assert "edited after the run was made" in capsys.readouterr().err


@pytest.mark.parametrize("copy", ["phase1-0.5b"], indirect=True)
def test_an_old_run_is_not_gone_on_with(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(copy)]) == 2
    assert "made by an earlier version" in capsys.readouterr().err


def test_the_field_that_was_renamed_is_read_from_old_records() -> None:
    old = {"task_id": "a", "benchmark": "b", "prompt": "p", "entry_point": "f", "test": "t", "family": "x"}
    assert store.decode(Problem, old, where="here").domain == "x"
    first = next(store.read_lines(RESULTS / "corpus-0.5b" / "families.jsonl"))[1]
    assert "family" in first and store.decode(Trajectory, first, where="here").domain == first["family"]


def test_a_folder_without_its_records_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(RESULTS / "crossfit-0.5b", copy, ignore=shutil.ignore_patterns(version1.ARCHIVE))
    assert main(["gate", str(copy)]) == 2
    assert "its records are elsewhere" in capsys.readouterr().err
