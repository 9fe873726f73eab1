"""A verdicts file that was lost or spoilt is made again from sealed samples, and every message on the way says how."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rune.cli.main import main
from rune.runs import integrity, store
from rune.runs import outcomes as _outcomes
from rune.runs.store import RunDir
from rune.study import config, creation
from rune.types import Outcome, Problem, Sample, Split, Verdict

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the fork backend is Linux's")
CONFIG = Path(__file__).parents[2] / "configs" / "phase1-0.5b.toml"
ARMS = ("vanilla", "hypernet")
Lines = list[str]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with sealed samples and verdicts: three tasks, two arms, three draws; every third fails."""
    root = tmp_path_factory.mktemp("runs")
    settings = config.load(
        CONFIG, [f"run.folder={root}", "design.scored=3", "model.device=cpu", "score.settings.workers=1"]
    )
    folder = creation.create(settings, resume=False).folder
    tasks = [p for p in store.read_jsonl(folder / "problems.jsonl", Problem) if p.split is Split.HELD_OUT]
    assert len(tasks) == 3
    with folder.stage("sample"):
        store.write_jsonl(
            folder / "samples.jsonl", [sample(p, arm, d) for p in tasks for arm in ARMS for d in range(3)]
        )
        integrity.seal(folder, "sample")
    assert main(["score", str(folder.path), "--no-cache"]) == 0
    return folder.path


def sample(problem: Problem, arm: str, draw: int) -> Sample:
    wrong = f"def {problem.entry_point}(*args):\n    return 'wrong'\n"
    program = problem.reference if draw else wrong
    return Sample(
        task_id=problem.task_id,
        condition=arm,
        draw=draw,
        seed=draw,
        completion=program,
        program=program,
        num_tokens=1,
        finish_reason="stop",
    )


@pytest.fixture
def run(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("RUNE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(scored, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture
def old(run: RunDir) -> RunDir:
    """The same run, its verdicts sealed as runs were before: whole lines."""
    seals = store.read_json(run / "seals.json")
    seals["verdicts.jsonl"] = integrity._lines_of((run / "verdicts.jsonl").read_bytes())
    integrity._write(run, seals)
    assert integrity.verify(run) == []
    return run


def outcomes(run: RunDir) -> dict[_outcomes.Key, Outcome]:
    verdicts = store.read_jsonl(run / "verdicts.jsonl", Verdict)
    found = {_outcomes.Key(v.condition, v.task_id, v.draw): v.outcome for v in verdicts}
    assert len(found) == len(verdicts) == 18
    return found


def edit_outcome(lines: Lines) -> Lines:
    found = json.loads(lines[0])
    found["outcome"] = "failed" if found["outcome"] == "passed" else "passed"
    return [json.dumps(found) + "\n", *lines[1:]]


def edit_seconds(lines: Lines) -> Lines:
    return [json.dumps({**json.loads(lines[0]), "cpu_seconds": 7.5}) + "\n", *lines[1:]]


def reorder(lines: Lines) -> Lines:
    return lines[::-1]


def truncate(lines: Lines) -> Lines:
    return lines[:5]


def tear(lines: Lines) -> Lines:
    return [*lines[:-1], lines[-1][: len(lines[-1]) // 2]]


def spoil(lines: Lines) -> Lines:
    return [*lines[:3], lines[3][:10] + "\n", *lines[4:]]


WAYS = (edit_outcome, edit_seconds, reorder, truncate, tear, spoil)


def test_arms_are_judged_in_turn_task_by_task_and_draw_by_draw(scored: Path) -> None:
    """Whatever the machine does meanwhile, it does to all arms."""
    verdicts = store.read_jsonl(scored / "verdicts.jsonl", Verdict)
    order = [p.task_id for p in store.read_jsonl(scored / "problems.jsonl", Problem) if p.split is Split.HELD_OUT]
    found = [(v.task_id, v.draw) for v in verdicts]
    assert found[::2] == found[1::2] == [(task, draw) for task in order for draw in range(3)]
    assert all({a.condition, b.condition} == set(ARMS) for a, b in zip(verdicts[::2], verdicts[1::2], strict=True))


def touch(run: RunDir, change: Callable[[Lines], Lines] | None) -> None:
    path = run / "verdicts.jsonl"
    if change is None:
        path.unlink()
        return
    lines = path.read_text().splitlines(keepends=True)
    changed = change(lines)
    assert changed != lines
    path.write_text("".join(changed))


def said(run: RunDir, capsys: pytest.CaptureFixture[str], verb: str, *args: str) -> tuple[int, str]:
    code = main([verb, str(run.path), *args])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("change", [None, *WAYS])
@pytest.mark.parametrize("kind", ["run", "old"])
def test_again_mends_every_way_to_lose_verdicts(
    kind: str, change: Callable[[Lines], Lines] | None, request: pytest.FixtureRequest
) -> None:
    run: RunDir = request.getfixturevalue(kind)
    before = outcomes(run)
    touch(run, change)
    assert main(["score", str(run.path), "--again"]) == 0
    assert outcomes(run) == before
    assert integrity.verify(run) == []
    assert run.stage_done("score")
    assert not (run / "verdicts.again.jsonl").exists()
    assert run.manifest()["made_again"][0]["verdicts"] == 18


@pytest.mark.parametrize("change", [None, truncate, tear, edit_seconds, reorder])
def test_plain_score_finds_what_is_missing_and_the_seal_is_content(
    run: RunDir, change: Callable[[Lines], Lines] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = outcomes(run)
    touch(run, change)
    code, _ = said(run, capsys, "score")
    assert code == 0
    assert outcomes(run) == before
    assert integrity.verify(run) == []


@pytest.mark.parametrize("change", [edit_outcome, spoil])
def test_plain_score_refuses_what_it_cannot_mend_and_names_the_command(
    run: RunDir, change: Callable[[Lines], Lines], capsys: pytest.CaptureFixture[str]
) -> None:
    touch(run, change)
    for _ in range(2):  # the first try must not spoil the second
        code, err = said(run, capsys, "score")
        assert code == 2
        assert f"`rune score {run.path} --again`" in err
        assert err.count("\n") == 1
    assert run.stage_done("score")


@pytest.mark.parametrize("change", [None, *WAYS])
def test_of_a_run_sealed_by_lines_every_message_names_the_command(
    old: RunDir, change: Callable[[Lines], Lines] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(old, change)
    for verb in ("gate", "score", "gate"):
        code, err = said(old, capsys, verb)
        assert code == 2
        assert f"`rune score {old.path} --again`" in err, verb
    assert said(old, capsys, "score", "--again")[0] == 0
    assert said(old, capsys, "score")[0] == 0
    assert integrity.verify(old) == []


@pytest.mark.parametrize("name", ["samples.jsonl", "problems.jsonl"])
def test_again_refuses_where_the_samples_are_not_the_sealed_ones(
    run: RunDir, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run / name).read_text()
    (run / name).write_text(text.replace("wrong", "other").replace("\\n", "\\n ", 1))
    touch(run, None)
    code, err = said(run, capsys, "score", "--again")
    assert code == 2
    assert f"{name}: line" in err
    assert "only from what was sealed can verdicts be made again" in err
    assert not (run / "verdicts.jsonl").exists()


def test_again_refuses_samples_that_were_never_sealed(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    seals = store.read_json(run / "seals.json")
    del seals["samples.jsonl"]
    integrity._write(run, seals)
    with run.stage("sample") as entry:
        entry["status"] = "interrupted"
    manifest = run.manifest()
    manifest["stages"]["sample"]["status"] = "interrupted"
    store.write_json(run.manifest_path, manifest)
    code, err = said(run, capsys, "score", "--again")
    assert (code, "samples.jsonl was never sealed; run `rune sample" in err) == (2, True)


@pytest.mark.parametrize("kind", ["run", "old"])
def test_again_does_not_put_other_outcomes_under_an_old_seal(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sealed by a scorer that judged otherwise: here, one that let a wrong program pass."""
    run: RunDir = request.getfixturevalue(kind)
    lines = (run / "verdicts.jsonl").read_text().splitlines(keepends=True)
    (run / "verdicts.jsonl").write_text("".join(edit_outcome(lines)))
    seals = store.read_json(run / "seals.json")
    seals["verdicts.jsonl"] = integrity._fingerprint(run, "verdicts.jsonl", seals["verdicts.jsonl"])
    integrity._write(run, seals)
    before = (run / "verdicts.jsonl").read_bytes()
    code, err = said(run, capsys, "score", "--again")
    assert code == 2
    assert "1 outcome other than sealed, the first HumanEval/" in err
    assert "start a new run" in err
    assert (run / "verdicts.jsonl").read_bytes() == before
    assert (run / "verdicts.again.jsonl").exists()
    assert integrity.verify(run) == []


def test_an_interrupted_again_leaves_the_old_file(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "verdicts.jsonl").read_bytes()

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rune.console.Progress.advance", stop)
    assert main(["score", str(run.path), "--again"]) == 130
    assert (run / "verdicts.jsonl").read_bytes() == before
    assert integrity.verify(run) == []


def test_an_unsealed_file_with_a_spoilt_line_names_the_command(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    integrity.forget_verdicts(run)
    touch(run, spoil)
    code, err = said(run, capsys, "score")
    assert code == 2
    assert "verdicts.jsonl:4: not valid JSON" in err
    assert f"`rune score {run.path} --again`" in err
    assert said(run, capsys, "score", "--again")[0] == 0
    assert run.manifest()["made_again"][0]["compared_with_sealed"] == 0  # there was no seal to hold them against
    assert integrity.verify(run) == []
