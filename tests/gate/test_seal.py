"""Every touched line after pre-registration is detected, file by file, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rune.analysis import gate
from rune.cli.main import main
from rune.errors import GateError, StoreError
from rune.runs import integrity, preregistration, store
from rune.runs.store import RunDir
from rune.study import config, creation
from rune.types import Verdict
from tests.report import runs

SETTINGS = gate.Config(resamples=500, simulations=100)
SEALED = ("verdicts.jsonl", "config.toml", "problems.jsonl", "samples.jsonl", "trajectories.jsonl", "treatments.jsonl")
Lines = list[str]


def edit(lines: Lines) -> Lines:
    return [*lines[:2], lines[2][:-2] + "7\n", *lines[3:]]


def delete(lines: Lines) -> Lines:
    return [*lines[:2], *lines[3:]]


def reorder(lines: Lines) -> Lines:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def insert(lines: Lines) -> Lines:
    return [*lines[:2], lines[1], *lines[2:]]


def turn(lines: Lines) -> Lines:
    """Another outcome in the third line."""
    verdict = json.loads(lines[2])
    verdict["outcome"] = "failed" if verdict["outcome"] == "passed" else "passed"
    return [*lines[:2], json.dumps(verdict) + "\n", *lines[3:]]


def slow_down(lines: Lines) -> Lines:
    """Other seconds, another error text and another machine in every line."""
    return [json.dumps({**json.loads(x), "cpu_seconds": 9.5, "error": "?", "machine": "x"}) + "\n" for x in lines]


def tear(lines: Lines) -> Lines:
    return [*lines[:-1], lines[-1][:20]]


def scribble(lines: Lines) -> Lines:
    """Something behind the last line that is no verdict of anything."""
    return [*lines, "and one more passed\n"]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return runs.build(tmp_path, held_out=21, n=5, arms=("vanilla", "hypernet"), extras=False)


def touch(run: RunDir, name: str, change: Callable[[Lines], Lines]) -> None:
    lines = (run / name).read_text().splitlines(keepends=True)
    changed = change(lines)
    assert changed != lines
    (run / name).write_text("".join(changed))


def test_the_promise_is_about_the_tasks_as_they_are_and_not_only_about_their_names() -> None:
    """It may be mailed before there is a folder with seals: another test under the same name is another promise."""
    tasks = runs.problems(5, train=5)
    raw = runs.settings("x", n=5, arms=("vanilla", "hypernet"))
    digest = preregistration.freeze(raw, tasks)["digest"]
    assert digest == preregistration.freeze(raw, list(tasks))["digest"]
    for number, change in ((9, {"test": "def check(candidate): pass"}), (9, {"prompt": "?"}), (0, {"prompt": "?"})):
        changed = [replace(p, **change) if i == number else p for i, p in enumerate(tasks)]
        assert preregistration.freeze(raw, changed)["digest"] != digest


def test_an_untouched_run_verifies(run: RunDir) -> None:
    assert integrity.verify(run) == []


@pytest.mark.parametrize("name", SEALED[1:])
@pytest.mark.parametrize(
    ("change", "words"),
    [(edit, "line 3 edited"), (delete, "lines deleted"), (reorder, "lines reordered"), (insert, "lines added")],
)
def test_every_touched_line_stops_the_gate(
    run: RunDir, name: str, change: Callable[[Lines], Lines], words: str
) -> None:
    touch(run, name, change)
    with pytest.raises(GateError) as caught:
        runs.decide(run, SETTINGS)
    assert f"{name}: " in str(caught.value)
    assert words in str(caught.value)
    assert not (run / "decision.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (turn, r"1 outcome edited, the first HumanEval/\d+ \w+ draw \d: (passed → failed|failed → passed)"),
        (delete, r"1 verdict missing, the first HumanEval/\d+ \w+ draw \d"),
        (insert, r"1 verdict added, the first HumanEval/\d+ \w+ draw \d"),
        (edit, r"line 3 is no verdict, 1 verdict missing"),
        (tear, r"line \d+ is no verdict, 1 verdict missing"),
        (scribble, r"line 211 is no verdict"),
    ],
)
def test_another_outcome_stops_the_gate_which_names_the_command_that_helps(
    run: RunDir, change: Callable[[Lines], Lines], words: str
) -> None:
    touch(run, "verdicts.jsonl", change)
    with pytest.raises(GateError, match=rf"verdicts\.jsonl: {words}.*`rune score {run.path} --again`"):
        runs.decide(run, SETTINGS)
    assert not (run / "decision.json").exists()


@pytest.mark.parametrize("change", [reorder, slow_down, lambda lines: slow_down(lines[::-1])])
def test_other_seconds_and_another_order_are_the_same_verdicts(run: RunDir, change: Callable[[Lines], Lines]) -> None:
    before = runs.decide(run, SETTINGS)
    touch(run, "verdicts.jsonl", change)
    assert integrity.verify(run) == []
    integrity.seal(run, "score")
    assert runs.decide(run, SETTINGS) == before


@pytest.mark.parametrize("name", [*SEALED, "preregistration.json"])
def test_a_file_that_is_gone_stops_the_gate(run: RunDir, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(GateError, match=f"{name} is gone"):
        runs.decide(run, SETTINGS)


def test_a_changed_threshold_is_named_with_both_values(run: RunDir) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("[gate]", "[gate]\nthreshold_points = 4.0"))
    with pytest.raises(GateError, match=r"rule.threshold_points: nothing → 4.0"):
        runs.decide(run, SETTINGS)


def test_a_promise_edited_together_with_its_config_is_still_caught(run: RunDir) -> None:
    frozen = store.read_json(run / "preregistration.json")
    frozen["rule"]["threshold_points"] = 1.0
    frozen["digest"] = preregistration.digest(frozen)
    store.write_json(run / "preregistration.json", frozen)
    with pytest.raises(GateError, match="does not match the digest in manifest"):
        runs.decide(run, SETTINGS)


def test_seals_rewritten_to_fit_an_edit_are_caught_by_the_manifest(run: RunDir) -> None:
    touch(run, "verdicts.jsonl", turn)
    seals = store.read_json(run / "seals.json")
    seals["verdicts.jsonl"] = integrity._fingerprint(run, "verdicts.jsonl")
    store.write_json(run / "seals.json", seals)
    with pytest.raises(GateError, match=r"seals\.json was edited"):
        runs.decide(run, SETTINGS)


def test_a_second_seal_does_not_launder_an_edit(run: RunDir) -> None:
    touch(run, "verdicts.jsonl", turn)
    with pytest.raises(StoreError, match=r"1 outcome edited, the first .*, after it was sealed"):
        integrity.seal(run, "score")
    for stage, name in (("collect", "trajectories"), ("adapt", "treatments"), ("sample", "samples")):
        touch(run, f"{name}.jsonl", edit)
        with pytest.raises(StoreError, match="line 3 edited, after it was sealed; put it back"):
            integrity.seal(run, stage)


@pytest.mark.parametrize(
    ("stage", "name", "change", "words"),
    [
        ("score", "verdicts", delete, "1 verdict missing"),
        ("score", "verdicts", tear, r"line \d+ is no verdict"),
        ("sample", "samples", delete, r"1 of \d+ lines deleted, from line 3"),
    ],
)
def test_a_second_seal_does_not_forget_what_was_deleted(
    run: RunDir, stage: str, name: str, change: Callable[[Lines], Lines], words: str
) -> None:
    touch(run, f"{name}.jsonl", change)
    sealed = store.read_json(run / "seals.json")
    with pytest.raises(StoreError, match=words):
        integrity.seal(run, stage)
    assert store.read_json(run / "seals.json") == sealed


def test_a_resumed_stage_may_append(run: RunDir) -> None:
    last = store.read_jsonl(run / "verdicts.jsonl", Verdict)[-1]
    with store.Appender(run / "verdicts.jsonl") as log:
        log.write(replace(last, draw=last.draw + 1))
    assert integrity.verify(run)
    integrity.seal(run, "score")
    assert integrity.verify(run) == []


def test_a_resumed_run_with_another_split_is_refused(run: RunDir) -> None:
    integrity.preregister(run)  # nothing changed: goes on
    touch(run, "problems.jsonl", delete)
    with pytest.raises(GateError, match=r"problems.jsonl"):
        integrity.preregister(run)


def test_a_run_without_a_promise_is_not_decided(run: RunDir) -> None:
    manifest = run.manifest()
    del manifest["preregistration"]
    store.write_json(run.manifest_path, manifest)
    with pytest.raises(GateError, match="no pre-registration"):
        runs.decide(run, SETTINGS)


def test_a_stage_that_ended_without_a_seal_is_noticed(run: RunDir) -> None:
    manifest = run.manifest()
    del manifest["seals"]["verdicts.jsonl"]
    store.write_json(run.manifest_path, manifest)
    assert "verdicts.jsonl was never sealed" in integrity.verify(run)


def test_the_promise_holds_what_was_asked_for(run: RunDir) -> None:
    frozen = store.read_json(run / "preregistration.json")
    assert frozen["arms"] == ["vanilla", "hypernet"]
    assert frozen["sampling"]["n"] == 5
    assert frozen["rule"]["unit"] == "percentage points"
    assert len(frozen["split"]["held_out"]) == 21
    assert frozen["seeds"]["run"] == 0
    assert frozen["primary"] == "hypernet − vanilla"
    assert frozen["digest"] == run.manifest()["preregistration"] == preregistration.digest(frozen)
    assert frozen["gate_digest"] == run.manifest()["gate_digest"]


def test_differences_name_fields_not_digests() -> None:
    raw = json.loads(json.dumps(runs.settings("x", n=5, arms=("vanilla", "hypernet"))))
    before = preregistration.freeze(raw, runs.problems(5))
    assert preregistration.differences(before, before) == []
    raw["sample"]["n"] = 4
    raw["gate"]["n"] = 4
    found = preregistration.differences(before, preregistration.freeze(raw, runs.problems(4)))
    assert "sampling.n: 5 → 4" in found
    assert "split.held_out: − HumanEval/64" in found
    raw = runs.settings("x", n=5, arms=("vanilla", "hypernet")) | {"train": {"steps": 3}}
    assert preregistration.differences(before, preregistration.freeze(raw, runs.problems(5))) == [
        "config: a setting outside the analysis changed"
    ]


def test_preregister_prints_the_promise_and_holds_it_against_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = str(Path(__file__).parents[2] / "configs" / "phase1-0.5b.toml")
    here = f"run.folder={tmp_path}"
    made = creation.create(config.load(Path(plan), [here]), resume=False).folder
    assert main(["preregister", plan, "--set", here, "-o", str(tmp_path / "promise.json")]) == 0
    assert capsys.readouterr().out.strip() == made.manifest()["preregistration"]
    assert store.read_json(tmp_path / "promise.json") == store.read_json(made / "preregistration.json")
    assert main(["preregister", plan, "--set", here, "--check", str(made.path)]) == 0
    for change, words in (
        ("gate.threshold_points=4", "rule.threshold_points: 5.0 → 4.0"),
        ("sample.n=6", "sampling.n: 5 → 6"),
        ("train.hypernet.schedule.steps=7", "train.hypernet.schedule.steps: 120 → 7"),
    ):
        assert main(["preregister", plan, "--set", here, "--set", change, "--check", str(made.path)]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("design", "version", "words"),
    [
        ({}, 1, ("task",)),
        ({"by": "task", "seeds": [1]}, 1, ("task",)),
        ({"by": "domain"}, 2, ("domain",)),
        ({"by": "task", "seeds": [1, 2]}, 2, ("tasks and trainings", "Satterthwaite")),
        ({"by": "domain", "seeds": [1, 2]}, 2, ("domains and trainings", "Satterthwaite")),
    ],
    ids=str,
)
def test_the_promise_says_what_the_interval_will_be_over(
    design: dict[str, object], version: int, words: tuple[str, ...]
) -> None:
    raw = {**runs.settings("x", n=5, arms=("vanilla", "hypernet")), "design": design}
    analysis = preregistration.freeze(raw, runs.problems(5))["analysis"]
    assert analysis["version"] == version
    assert all(word in analysis["interval"] for word in words)
    assert ("domain" in analysis["interval"]) is (design.get("by") == "domain")


@pytest.mark.parametrize("design", list(preregistration.ANALYSES), ids=str)
def test_a_new_version_of_the_analysis_leaves_old_runs_with_the_one_that_they_promised(
    design: preregistration.Design, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {"by": design.unit, "seeds": [0, 1] if design.trainings else [0]}
    changes = {"design": raw}
    run = runs.build(tmp_path, held_out=21, arms=("vanilla", "hypernet"), extras=False, change_settings=changes)
    before = store.read_json(run / "preregistration.json")["analysis"]
    versions = preregistration.ANALYSES[design]
    newer = {**versions[before["version"]], "version": 9, "interval": "drawn from a hat"}
    known = dict(preregistration.ANALYSES)
    monkeypatch.setattr(preregistration, "ANALYSES", {**known, design: {**versions, 9: newer}})
    integrity.demand(run)
    assert preregistration.freeze(config.raw_in(run), runs.problems(21))["analysis"] == newer
    monkeypatch.setattr(preregistration, "ANALYSES", {**known, design: {9: newer}})
    with pytest.raises(GateError, match=rf"version {before['version']} was promised, and 9 is what .*with the commit"):
        integrity.demand(run)


def test_verdicts_made_again_help_only_where_nothing_else_was_touched(run: RunDir) -> None:
    touch(run, "verdicts.jsonl", turn)
    touch(run, "treatments.jsonl", reorder)
    with pytest.raises(
        GateError, match=r"treatments\.jsonl.*verdicts\.jsonl.*Put it back, or start a new run"
    ) as caught:
        runs.decide(run, SETTINGS)
    assert "--again" not in str(caught.value)


def test_a_leak_is_not_looked_for_in_what_was_edited(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    touch(run, "treatments.jsonl", reorder)
    assert main(["leakage", str(run.path)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "treatments.jsonl" in said.err and "changed since pre-registration" in said.err


def test_an_entry_that_went_from_the_seals_is_told_with_what_changed_under_it(run: RunDir) -> None:
    seals = store.read_json(run / "seals.json")
    del seals["treatments.jsonl"]
    store.write_json(run / "seals.json", seals)
    assert integrity.verify(run) == ["seals.json was edited (entry treatments.jsonl)"]
    touch(run, "treatments.jsonl", lambda lines: lines[:-1])
    assert integrity.verify(run) == ["seals.json was edited (entry treatments.jsonl)", "treatments.jsonl changed"]


@pytest.mark.parametrize("count", [4, 5, 7])
def test_of_many_changes_the_first_four_are_told_and_the_rest_counted(run: RunDir, count: int) -> None:
    changes = [f"file {i} is gone" for i in range(count)]
    more = f"; and {count - 4} more" if count > 4 else ""
    said = "; ".join(changes[:4])
    assert integrity._broken(run, changes) == (
        f"{run.path}: changed since pre-registration: {said}{more}. Put it back, or start a new run"
    )


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ("abcd", "f: 2 of 6 lines deleted, from line 5"), ("acdef", "f: 1 of 6 lines deleted, from line 2"),
        ("abcdefgh", "f: 2 lines added, from line 7"), ("xabcdef", "f: 1 lines added, from line 1"),
        ("abdcef", "f: lines reordered, from line 3"), ("abcxef", "f: line 4 edited"),
        ("zbcxeu", "f: line 1, 4, 6 edited"), ("uvwxyf", "f: line 1, 2, 3, 4, 5 edited"),
        ("uvwxyz", "f: line 1, 2, 3, 4, 5, … edited"), ("", "f: 6 of 6 lines deleted, from line 1"),
    ],
)  # fmt: skip
def test_lines_that_changed_are_named(now: str, said: str) -> None:
    def lines(text: str) -> dict[str, Any]:
        return integrity._lines_of("".join(f"{c}\n" for c in text).encode())

    assert lines("abc")["lines"] == 3
    assert integrity._describe("f", lines("abcdef"), lines(now)) == said
