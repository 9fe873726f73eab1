"""What the study on Programming by Backprop counts beside the passes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rune.benchmarks import _pbb_drawn, _pbb_training, pbb
from rune.runs import store

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
    shares = {"tuned": [1.0, 0.0, 0.4, 0.4, 0.4], "tuned_wrong": [0.9, 0.0, 0.0, 0.1, 0.1]}
    scores = {arm: study.Scores(np.array(share), 5) for arm, share in shares.items()}
    assert study.most(scores, ["a", "a", "b", "b", "b"]) == "b"
    assert study.functions_that_pass(scores, ["a", "a", "b", "c", "d"]) == {"tuned": 4, "tuned_wrong": 3}


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


def test_the_third_part_is_told_by_the_rule_that_was_written(third: ModuleType) -> None:
    one = {"points": 3.0, "low": 0.4, "high": 6.0}
    zero = {"points": 0.5, "low": -0.4, "high": 1.0}
    contrasts = {f"{a} - {b}": one for a, b in third.CONTRASTS}
    classes = {"functions": ("composition",), "form": ("trains", "does not train")}
    found = {
        "tasks": 10, "functions": 5, "arms": {arm: {"pass_at_1": 3.0, "draws": 50} for arm in (*third.ARMS, "tuned")},
        "by_seed": {0: dict.fromkeys(third.ARMS, 3.0)}, "answers": {arm: {} for arm in third.ARMS},
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
    assert "the effect is there." in third.came_out(found)
    assert "| vanilla | 2 to 4 | 3.0 | kept |" in third.came_out(found)
    assert "| teacher | 34 to 39 | 3.0 | missed |" in third.came_out(found)
    for _, control in third.RULE:
        worse = {**contrasts, f"hypernet - {control}": zero}
        told = third.came_out({**found, "subsets": {"all tasks": {"tasks": 10, "contrasts": worse}}})
        assert "the effect is not there." in told
