"""What the study on Programming by Backprop counts beside the passes."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

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
