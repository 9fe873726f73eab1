"""The sealed study's rule and ranks, by hand; what it refuses."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rune.errors import DataError
from rune.runs import store

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDIES / "updates-sealed"))
    return importlib.import_module("sealed")


def verdicts(right: dict[str, int], wrong: int = 0, tasks: int = 20) -> list[dict[str, Any]]:
    """`right`: training → of five draws so many count on every second task, and one more on the others."""
    found = []
    for n in range(tasks):
        task = f"CodeUpdateArena/math.f{n}:argument:a/0"
        for arm, count in (("vanilla", 0), ("context_sibling1", 1), ("context_own", 5), ("own@41", 4)):
            found += _draws(task, arm, count)
        for seed, count in right.items():
            found += _draws(task, f"written@{seed}", count + n % 2) + _draws(task, f"written_wrong@{seed}", wrong)
    return found


def _draws(task: str, arm: str, count: int) -> list[dict[str, Any]]:
    return [
        {"arm": arm, "task": task, "draw": d, "used": d < count, "named": d < count, "plain": d < count}
        for d in range(5)
    ]


def test_the_rule_asks_for_ten_points_above_zero_of_five_whole_trainings(study: ModuleType, tmp_path: Path) -> None:
    store.write_json(tmp_path / "donors-a.json", {
        "targets": [f"CodeUpdateArena/math.f{n}:argument:a/0" for n in range(4)],
        "nats": [[-1.0 if d == t else -2.0 for t in range(4)] for d in range(4)],
    })  # fmt: skip
    ranks = [tmp_path / "donors-a.json"]
    five = verdicts(dict.fromkeys(map(str, study.TRAININGS), 2))
    five += [{"arm": a, "task": "HumanEval/0", "draw": 0, "used": True, "named": True, "plain": True}
             for a in ("vanilla", "written@41")]  # fmt: skip
    found = study.numbers(five, ranks)
    assert found["used"]["contrasts"][study.DECIDES][0] == 50.0 and found["rank of the right donor"] == 0.125
    assert all(found["answer"].values()), found["answer"]
    more = [v for v in verdicts({"41": 0}, tasks=21) if "math.f20:" in v["task"]]  # one training alone has this task
    cut = study.numbers([*five, *more], ranks)
    assert cut["trainings"] == ["41"] and not cut["answer"]["five trainings"]
    small = study.numbers(verdicts({str(s): 0 for s in study.TRAININGS}), ranks)["answer"]
    assert small["right − wrong at +10 or more"] and not small["ahead of a sibling in context"]
    same = study.numbers(verdicts({str(s): 1 for s in study.TRAININGS}, wrong=1), ranks)
    assert same["used"]["contrasts"][study.DECIDES][0] == 10.0 and same["answer"]["right − wrong at +10 or more"]


def test_nothing_is_made_before_the_recipe_is_chosen_and_another_plan_is_refused(
    study: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="run updates-real-looking first"):
        study.corpus(Namespace(choice=tmp_path / "none.json", out=tmp_path))
    for name in study.FILES:
        (tmp_path / name).write_text("a\n")
    out = tmp_path / "out"
    out.mkdir()
    study.seal(Namespace(corpus=tmp_path, out=out))
    (tmp_path / "renamed.jsonl").write_text("b\n")
    with pytest.raises(DataError, match="another plan, program or corpus"):
        study.Study(Namespace(corpus=tmp_path, out=out))


def test_a_right_donor_behind_all_others_of_other_functions_ranks_last(study: ModuleType) -> None:
    targets = ["CodeUpdateArena/math.f:argument:a/0", "CodeUpdateArena/math.f:argument:b/0",
               "CodeUpdateArena/math.g:argument:a/0"]  # fmt: skip
    nats = [[-3.0, -1.0, -9.0], [-1.0, -2.0, -9.0], [-2.0, -5.0, -9.0]]
    # The first target's rivals are those of math.g alone: one is ahead of it.
    assert study.rank_shares({"targets": targets, "nats": nats}) == [0.75, 0.25, pytest.approx(0.5 / 3)]
