"""What the study on Programming by Backprop counts beside the passes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rune.analysis import stats
from rune.benchmarks import _pbb_drawn, _pbb_training, pbb
from rune.runs import store
from rune.types import Treatment

STUDY = Path(__file__).parents[2] / "studies" / "pbb"
CODE = "def f(xs):\n    return xs[1:]\n"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module("pbb")


@pytest.mark.parametrize(("answer", "recalled"), [("xs[1:]", True), ("[2, 3]", False), ("1", False), ("ys[1:]", False)])
def test_recalled_code_is_told_from_values(study: ModuleType, answer: str, recalled: bool) -> None:
    assert study.code_of(answer, CODE) is recalled


def test_the_best_function_is_the_one_that_the_difference_owes_most_to(study: ModuleType) -> None:
    passes = {"tuned": [10, 0, 4, 4, 4], "tuned_wrong": [9, 0, 0, 1, 1]}
    scores = {arm: study.Scores(np.array(passed)[:, None], 10) for arm, passed in passes.items()}
    assert study.most(scores, ["a", "a", "b", "b", "b"]) == "b"
    assert study.functions_that_pass(scores, ["a", "a", "b", "c", "d"]) == {"tuned": 4, "tuned_wrong": 3}


def test_passes_stand_by_task_and_seed_and_an_unfinished_run_is_refused(study: ModuleType) -> None:
    found = {1: {"x": [True, True], "y": [False, False]}, 0: {"x": [True, False], "y": [False, False]}}
    scores = study.scored(found, ["y", "x"])
    assert scores.passed_TS.tolist() == [[0, 0], [1, 2]] and scores.draws == 8
    assert scores.share_T.tolist() == [0.0, 0.75]
    found[1]["y"].pop()
    with pytest.raises(ValueError, match=r"tasks with \[1, 2\] draws; finish the run first"):
        study.scored(found, ["y", "x"])


def test_trainings_that_disagree_widen_the_second_interval_and_a_single_one_has_none(study: ModuleType) -> None:
    domains = ["a", "a", "b", "c", "d", "e"]
    base = np.array([0, 1, 0, 2, 1, 0])
    none = np.zeros((6, 2), int)

    def told(*seeds: np.ndarray, others: int = 2) -> dict[str, Any]:
        scores = {"one": study.Scores(np.stack(seeds, axis=1), 5), "other": study.Scores(none[:, :others], 5)}
        found: dict[str, Any] = study.contrast(scores, domains, np.ones(6, bool), "one", "other")
        return found

    alike, apart = told(base + 1, base + 1), told(base, base + 2)
    assert alike["points"] == pytest.approx(apart["points"]) and 0 < alike["low"] == pytest.approx(apart["low"])
    expected = stats.mean_interval(
        20 * np.stack([base, base + 2], axis=1), domains, stats.task_weights(5, 10, 0), level=0.95, low=-100, high=100
    )
    assert apart["and_trainings"] == pytest.approx({"low": expected.low, "high": expected.high})
    assert expected.over == "domains and trainings" and expected.low < 0 < alike["and_trainings"]["low"]
    assert not [others for others in (1, 2) if "and_trainings" in told(base, others=others)]
    text = study.span(apart)
    assert text.count("[") == 2 and text.endswith(f" / [{expected.low:+.1f}, {expected.high:+.1f}]")
    assert study.span({"points": 1.0, "low": 0.5, "high": 2.0}) == "+1.0 [+0.5, +2.0]"


def test_the_rule_is_over_functions_and_what_trainings_add_is_said_beside_it(study: ModuleType) -> None:
    def verdict(low: float, /, **more: float) -> str:
        one = {"points": 3.0, "low": low, "high": 6.0, **({"and_trainings": more} if more else {})}
        both = {"tuned - tuned_wrong": one, "tuned - tuned_mean": one}
        run = {"arms": {"teacher": {"pass_at_1": 40.0}}, "contrasts": both}
        said: str = study.verdict({**run, "taken_today": {"arms": {"teacher": 40.0}, "contrasts": both}})
        return said

    assert verdict(0.2) == "the effect is there." and verdict(-0.2) == "the effect is not there."
    assert verdict(0.2, low=-0.5) == "the effect is there; with trainings in the intervals it is not shown."
    assert verdict(0.2, low=0.1) == "the effect is there; with trainings in the intervals it is there as well."


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch, study: ModuleType) -> ModuleType:
    return importlib.import_module("hypernet")


def test_the_third_parts_predictions_are_those_of_the_page(third: ModuleType) -> None:
    page = (STUDY / "README.md").read_text(encoding="utf-8").partition("# A hypernetwork trained for it")[2]
    rows = re.findall(r"^\| (.*?) \| [−+]?[\d.]+ \((.*?) to (.*?)\) \|$", page, re.MULTILINE)
    told = {
        what.replace("`", "").replace(" − ", " - ").replace(" of the part above", ""): tuple(
            float(bound.replace("−", "-")) for bound in bounds
        )
        for what, *bounds in rows
    }
    assert told == third.PREDICTED and len(told) == 14


def test_a_form_that_trains_is_told_by_the_corpus(third: ModuleType, tmp_path: Path) -> None:
    part = pbb.Config(tier="easy", functions=64, held_out=44, assertion=True)
    lessons = _pbb_training.own(part, pairs=2)
    store.write_jsonl(tmp_path / "train.jsonl", lessons)
    forms = third.forms_that_train(tmp_path / "train.jsonl")
    assert len(forms) <= len([t for t in lessons if t.benchmark == "pbb"]) == 19
    for one in pbb.functions(part):
        trains = any(t.domain == one.name for t in lessons)
        assert not trains or _pbb_drawn.form(one.source.code) in forms
    assert not {_pbb_drawn.form(one.source.code) for one in _pbb_training.apart(part)} & forms


def test_a_wrong_function_is_of_a_kind_where_it_gives_the_same_kind_of_value(third: ModuleType, tmp_path: Path) -> None:
    part = pbb.Config(tier="easy", assertion=True)
    given = {t.trajectory_id: t for t in pbb.given(part)}
    single = [t for t in pbb.tasks(part) if len(t.functions) == 1]
    numbers = list({t.problem.domain: t for t in single if third.kind(t.problem.test) == "int"}.values())[:3]
    (text,) = list({t.problem.domain: t for t in single if third.kind(t.problem.test) == "str"}.values())[:1]
    read = {t.domain: t.trajectory_id for t in given.values()}
    asked = [*numbers[:2], text]
    wrong = {  # number 0: of a kind in seed 0 alone; number 1: in both; the text: never
        0: (numbers[2], numbers[2], numbers[2]), 1: (text, numbers[2], numbers[0]),
    }  # fmt: skip
    places = []
    for seed, functions in wrong.items():
        made = [
            Treatment(
                condition=arm, task_id=t.problem.task_id, trajectory_ids=(read[other.problem.domain],),
            )
            for t, other in zip(asked, functions, strict=True)
            for arm in third.RULE[0]
        ]  # fmt: skip
        store.write_jsonl(tmp_path / str(seed) / "treatments.jsonl", made)
        places.append(SimpleNamespace(cell=SimpleNamespace(seed=seed), folder=tmp_path / str(seed)))
    scores = {
        "hypernet": third.Scores(np.array([[4, 0], [2, 1], [5, 5]]), 5),
        "wrong_trajectory": third.Scores(np.array([[1, 5], [0, 1], [5, 5]]), 5),
    }
    found = third.wrong_of_a_kind(SimpleNamespace(places=lambda: places), scores, asked, given)
    assert (found["tasks"], found["functions"]) == (2, 2)
    assert found["arms"] == pytest.approx({"hypernet": 55, "wrong_trajectory": 15})
    told = found["hypernet - wrong_trajectory"]
    assert told["points"] == pytest.approx(40) and told["low"] < 40 < told["high"]


def test_the_third_part_is_told_by_the_rule_that_was_written(third: ModuleType) -> None:
    one = {"points": 3.0, "low": 0.4, "high": 6.0}
    zero = {"points": 0.5, "low": -0.4, "high": 1.0}
    contrasts = {f"{a} - {b}": one for a, b in third.CONTRASTS}
    classes = {
        "functions": ("composition",), "form": ("trains", "does not train"), "steps executed": ("few", "some", "many"),
        "kind": (*third.EASIER, *third.HARDER),
    }  # fmt: skip
    found = {
        "tasks": 10, "functions": 5, "arms": {arm: {"pass_at_1": 3.0, "draws": 50} for arm in (*third.ARMS, "tuned")},
        "by_seed": {0: dict.fromkeys(third.ARMS, 3.0)}, "answers": {arm: {} for arm in third.ARMS},
        "wrong_of_a_kind": {
            "tasks": 4, "functions": 2, "arms": dict.fromkeys(third.RULE[0], 3.0), "hypernet - wrong_trajectory": one,
        },
        "functions_that_pass": {"hypernet": 2}, "best_function": {"solution": CODE, "arms": {"hypernet": 40.0}},
        "subsets": {"all tasks": {"tasks": 10, "contrasts": contrasts}},
        "by": {
            by: {
                label: {
                    "tasks": 5, "arms": dict.fromkeys((*third.ARMS, "tuned"), 3.0), "hypernet - wrong_trajectory": one,
                }
                for label in labels
            }
            for by, labels in classes.items()
        },
    }  # fmt: skip
    assert "the effect is there.**\n" in third.came_out(found)
    for low, words in {0.1: "there as well", -0.1: "not shown"}.items():
        several = {what: {**one, "and_trainings": {"low": low, "high": 7.0}} for what in contrasts}
        told = third.came_out({**found, "subsets": {"all tasks": {"tasks": 10, "contrasts": several}}})
        assert f"the effect is there.** With trainings in the intervals it is {words}." in told
    assert "| vanilla | 2 to 4 | 3.0 | kept |" in third.came_out(found)
    words = third.in_words(found["by"])[0]
    assert words.count("missed") == 2 and "few 3.0, some 3.0, many 3.0" in words
    for by, labels in {"steps executed": ("few", "some", "many"), "kind": (*third.EASIER, *third.HARDER)}.items():
        for value, label in enumerate(reversed(labels)):
            found["by"][by][label]["arms"] = {**found["by"][by][label]["arms"], "hypernet": float(value)}
    assert third.in_words(found["by"])[0].count("kept") == 2
    assert "| teacher | 34 to 39 | 3.0 | missed |" in third.came_out(found)
    for _, control in third.RULE:
        worse = {**contrasts, f"hypernet - {control}": zero}
        told = third.came_out({**found, "subsets": {"all tasks": {"tasks": 10, "contrasts": worse}}})
        assert "the effect is not there." in told
