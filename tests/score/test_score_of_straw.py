"""The score stage and its self-check with a sandbox of straw: order, counts and words, without running a program."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rune.errors import DataError, GateError, SandboxError
from rune.runs import integrity, store
from rune.stages import score
from rune.types import Execution, FailureKind, Outcome, Problem, Program, Sample, Split, Verdict


def problem(task: str) -> Problem:
    return Problem(
        task_id=task, benchmark="t", prompt="def f():\n", entry_point="f", split=Split.HELD_OUT,
        test="def check(candidate):\n    assert candidate() == 1\n", reference="def f():\n    return 1\n",
    )  # fmt: skip


def sample(task: str, arm: str, draw: int, program: str = "") -> Sample:
    return Sample(
        task_id=task, condition=arm, draw=draw, seed=0, completion="", program=program or f"# {task} {arm} {draw}",
        num_tokens=1, finish_reason="stop",
    )  # fmt: skip


class Straw:
    """A sandbox in which a program passes if it has a word in it."""

    def __init__(self, word: str = "passes") -> None:
        self.word, self.asked, self.hits = word, [], 0  # type: ignore[var-annotated]

    def judge(self, programs: Iterable[Program]) -> Iterator[Execution]:
        for one in programs:
            self.asked.append(one.code)
            passed = self.word in one.code
            yield Execution(
                key=one.key, outcome=Outcome.PASSED if passed else Outcome.FAILED,
                error_kind=FailureKind.NONE if passed else FailureKind.WRONG_ANSWER,
                error="" if passed else "first\nlast",
                settled=True, cpu_seconds=0.5, wall_seconds=1.5,
            )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.RunDir:
    monkeypatch.setattr(score, "self_check", lambda sandbox, problems: checked.append([p.task_id for p in problems]))
    checked.clear()
    made = store.RunDir(tmp_path)
    store.write_json(made.manifest_path, {"stages": {}})
    store.write_jsonl(made / "problems.jsonl", [problem("T/2"), problem("T/1")])
    draws = [(t, a, d) for a in "ba" for d in (1, 0) for t in ("T/1", "T/2")]
    right = ("T/1", "b")
    store.write_jsonl(made / "samples.jsonl", [sample(*one, "passes" if one[:2] == right else "") for one in draws])
    return made


checked: list[list[str]] = []
CONFIG = score.Config(backend="straw")


def context(box: Straw) -> Any:
    return types.SimpleNamespace(sandbox=lambda: box)


def verdicts(folder: store.RunDir, name: str = "verdicts.jsonl") -> list[Verdict]:
    return store.read_jsonl(folder / name, Verdict)


ORDER = [(t, d, a) for t in ("T/2", "T/1") for d in (0, 1) for a in "ab"]


def test_answers_are_judged_task_by_task_draw_by_draw_arm_by_arm(folder: store.RunDir) -> None:
    assert score.run(folder, CONFIG, context(Straw())) == 8
    found = verdicts(folder)
    assert [(v.task_id, v.draw, v.condition) for v in found] == ORDER and checked == [["T/2", "T/1"]]
    for v in found:
        passed = (v.task_id, v.condition) == ("T/1", "b")
        assert v.outcome is (Outcome.PASSED if passed else Outcome.FAILED)
        assert (v.error, v.error_kind) == (
            ("", FailureKind.NONE) if passed else ("first\nlast", FailureKind.WRONG_ANSWER)
        )
        assert (v.cpu_seconds, v.wall_seconds, v.machine) == (0.5, 1.5, score.machine_name(CONFIG))
    assert found[0].machine.endswith(" straw")
    assert score.run(folder, CONFIG, context(Straw())) == 0 and len(checked) == 1


def test_scoring_goes_on_where_it_stopped_and_mends_a_torn_line(folder: store.RunDir) -> None:
    score.run(folder, CONFIG, context(Straw()))
    path = folder / "verdicts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[2:5]) + lines[0][:9])
    assert score.run(folder, CONFIG, context(Straw())) == 5
    assert sorted((v.task_id, v.draw, v.condition) for v in verdicts(folder)) == sorted(ORDER)
    path.write_text("{}\n" + "".join(lines))
    with pytest.raises(DataError, match=r"rune score .* --again` judges all samples anew"):
        score.run(folder, CONFIG, context(Straw()))


def test_answers_of_no_known_task_and_no_answers_at_all_are_refused(folder: store.RunDir) -> None:
    store.write_jsonl(folder / "samples.jsonl", [sample("T/1", "a", 0), sample("T/9", "a", 0)])
    with pytest.raises(DataError, match=r"task 'T/9' is not in problems\.jsonl"):
        score.run(folder, CONFIG, context(Straw()))
    store.write_jsonl(folder / "samples.jsonl", [])
    with pytest.raises(DataError, match="no samples; run `rune sample"):
        score.run(folder, CONFIG, context(Straw()))


def test_all_verdicts_are_made_again_beside_the_old_ones_and_take_their_place(
    folder: store.RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    told: list[str] = []
    monkeypatch.setattr(score.console, "note", told.append)
    monkeypatch.setattr(integrity, "demand_samples", lambda f: heard.append("samples"))
    monkeypatch.setattr(integrity, "forget_verdicts", lambda f: heard.append("forgotten"))

    def compare(f: store.RunDir, path: Path) -> tuple[int, int]:
        heard.append((path.name, len(store.read_jsonl(path, Verdict)), (f / "verdicts.jsonl").read_text()))
        return 5, 8

    monkeypatch.setattr(integrity, "demand_outcomes", compare)
    (folder / "verdicts.jsonl").write_text("old\n")
    (folder / score.AGAIN).write_text("of a try that was stopped\n")
    folder.update(made_again=["before"])
    assert score.again(folder, CONFIG, context(Straw())) == 8
    assert heard == ["samples", (score.AGAIN, 8, "old\n"), "forgotten"]
    assert told == ["score: 8 verdicts made again; 5 of them could be compared with the sealed, all equal"]
    assert len(verdicts(folder)) == 8 and not (folder / score.AGAIN).exists()
    before, record = folder.manifest()["made_again"]
    assert before == "before" and (record["verdicts"], record["compared_with_sealed"]) == (8, 5)

    def refuse(f: store.RunDir) -> None:
        raise GateError("edited")

    monkeypatch.setattr(integrity, "demand_samples", refuse)
    with pytest.raises(GateError, match="edited"):
        score.again(folder, CONFIG, context(Straw()))


# --------------------------------------------------------------------------- the scorer proves itself


class Box:
    """Judges trials by a rule: what, task → passes."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made = [
        types.SimpleNamespace(what=what, problem=problem(task), code=f"{what} of {task}", passes=what == "reference")
        for task in ("T/1", "T/2")
        for what in ("reference", "stub", "forgery")
    ]

    def judge(sandbox: Box, items: Iterable[Any]) -> Iterator[Execution]:
        for item in reversed(list(items)):  # in any order
            one = made[int(item.key)]
            passed = sandbox.rule(one.what, one.problem.task_id)
            yield Execution(
                key=item.key, outcome=Outcome.PASSED if passed else Outcome.FAILED,
                error_kind=FailureKind.NONE if passed else FailureKind.WRONG_ANSWER,
                error="" if passed else "a\n" + "b" * 130,
            )  # fmt: skip

    monkeypatch.setattr(score.judging, "trials", lambda problems, forged: made if forged == 5 else None)
    monkeypatch.setattr(score.judging, "judge", judge)
    return made


def test_a_sound_scorer_tries_everything_and_never_asks_the_cache(trials: list[Any]) -> None:
    box = Box(lambda what, task: what == "reference")
    assert score.self_check(box, [problem("T/1")]) == 6  # type: ignore[arg-type]
    cached = types.SimpleNamespace(inner=box, rule=None)
    assert score.self_check(cached, [problem("T/1")]) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda what, task: what != "forgery", "the stub of T/1 passes; and 1 more"),
        (
            lambda what, task: (what == "reference") is not (task == "T/2" and what == "forgery"),
            "the forgery of T/2 passes",
        ),
        (lambda what, task: True, "the stub of T/1 passes; and 3 more"),
    ],
)
def test_a_scorer_that_is_wrong_names_the_first_and_counts_the_rest(trials: list[Any], rule: Any, said: str) -> None:
    with pytest.raises(SandboxError, match=rf"the scorer failed its own check, nothing is scored: {said}$"):
        score.self_check(Box(rule), [problem("T/1")])  # type: ignore[arg-type]


def test_a_reference_that_fails_says_its_last_line_and_not_all_of_it(trials: list[Any]) -> None:
    with pytest.raises(SandboxError) as found:
        score.self_check(Box(lambda what, task: False), [problem("T/1")])  # type: ignore[arg-type]
    line = "b" * 119 + "…"
    assert f"the reference of T/1 fails (WrongAnswer: {line}); and 1 more" in str(found.value)
    assert (score._line(""), score._line(" \n"), score._line("x\ny \n")) == ("", "", "y")
    assert (score._line("c" * 120), score._line("c" * 121)) == ("c" * 120, "c" * 119 + "…")
