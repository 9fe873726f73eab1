"""What opens a phase and what does not, told by the words; and what of a decision its verdicts must give again."""

from __future__ import annotations

import copy
import types
from pathlib import Path
from typing import Any

import pytest

from rune.errors import ConfigError, PhaseError, StoreError
from rune.runs import store
from rune.study import admission, cells, phases
from rune.study.cells import Cell
from rune.study.config import Design

DECISION: dict[str, Any] = {
    "passed": True, "answer": "Gate PASSED", "effect_points": 6.0, "threshold_points": 5.0, "evidence": "words",
    "arms": [
        {"condition": "vanilla", "num_tasks": 2, "num_samples": 10, "num_passed": 3, "pass_at_1": 0.3, "more": 1},
        {"condition": "hypernet", "num_tasks": 2, "num_samples": 10, "num_passed": 4, "pass_at_1": 0.4, "more": 1},
    ],
}  # fmt: skip


def test_every_figure_that_verdicts_give_is_held_against_them_and_no_words_are() -> None:
    assert admission._differences(DECISION, copy.deepcopy(DECISION)) == ""
    again = copy.deepcopy(DECISION)
    again["evidence"], again["arms"][0]["more"] = "other words", 2
    assert admission._differences(DECISION, again) == ""
    for name, value in (("passed", False), ("answer", "x"), ("effect_points", 6.1), ("threshold_points", 4.0)):
        again = {**DECISION, name: value}
        assert admission._differences(DECISION, again) == f"{name} is {DECISION[name]}, its verdicts give {value}"
    for number, arm in enumerate(DECISION["arms"]):
        for name in ("condition", "num_tasks", "num_samples", "num_passed", "pass_at_1"):
            again = copy.deepcopy(DECISION)
            again["arms"][number][name] = "else"
            said = f"{arm['condition']}: {name} is {arm[name]}, its verdicts give else"
            assert admission._differences(DECISION, again) == said
    again = {**DECISION, "arms": DECISION["arms"][:1]}
    assert admission._differences(DECISION, again) == "2 arms, its verdicts have 1"


FOUND = {"run": "one", "decision": "d" * 64, "answer": "Gate PASSED"}


def settings(phase: phases.Config) -> Any:
    return types.SimpleNamespace(phase=phase)


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    """Runs of the phase before all pass."""
    asked: list[tuple[Path, int]] = []

    def verify(path: Path, *, number: int) -> dict[str, Any]:
        asked.append((path, number))
        if path.name == "bad":
            raise StoreError("it is broken")
        return {**FOUND, **({"overrides": ["earlier"]} if path.name == "overridden" else {})}

    monkeypatch.setattr(admission, "verify", verify)
    monkeypatch.setattr(admission, "cells", lambda _: [])
    return asked


def test_phase_1_waits_for_nothing(verified: list[tuple[Path, int]]) -> None:
    assert admission.demand(settings(phases.Config()), Path("/b")) == {"number": 1, "title": phases.TITLES[1]}
    assert verified == []


def test_a_phase_opens_by_the_decision_that_it_names(verified: list[tuple[Path, int]]) -> None:
    record = admission.demand(settings(phases.Config(number=3, after="one", decision="d" * 64)), Path("/b"))
    assert record == {"number": 3, "title": phases.TITLES[3], "after": FOUND}
    assert verified == [(Path("/b/one"), 2)]
    record = admission.demand(settings(phases.Config(number=2, after="overridden", decision="d" * 64)), Path("/b"))
    assert record == {"number": 2, "title": phases.TITLES[2], "after": FOUND, "overrides": ["earlier"]}


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ({}, "none is named; set [phase] after to the folder of its run, and decision to its digest"),
        ({"after": "bad"}, "it is broken"),
        ({"after": "one"}, f'one passed, but [phase] decision does not name it; set it to "{"d" * 64}"'),
        (
            {"after": "one", "decision": "e" * 64},
            f"one: its decision is {'d' * 12}…, [phase] decision names {'e' * 12}…; put that decision back, or name "
            "this one",
        ),
    ],
)
def test_what_does_not_open_a_phase_is_said_and_stands_beside_an_override(
    verified: list[tuple[Path, int]], phase: dict[str, str], said: str
) -> None:
    with pytest.raises(PhaseError) as told:
        admission.demand(settings(phases.Config(number=2, **phase)), Path("/b"))  # type: ignore[arg-type]
    assert str(told.value) == (
        f"phase 2 (QLoRA, on an NF4 base) waits for a passed decision of phase 1: {said}; or give --override REASON, "
        "which then stands in everything that the run writes"
    )
    record = admission.demand(settings(phases.Config(number=2, override="why", **phase)), Path("/b"))  # type: ignore[arg-type]
    assert record == {
        "number": 2, "title": phases.TITLES[2], "overrides": [{"phase": 2, "reason": "why", "instead_of": said}],
    }  # fmt: skip


def test_an_override_of_nothing_is_refused(verified: list[tuple[Path, int]]) -> None:
    phase = phases.Config(number=2, after="one", decision="d" * 64, override="why")
    with pytest.raises(PhaseError, match=r"phase 2 .* needs no override: one passed; leave --override out"):
        admission.demand(settings(phase), Path("/b"))


def test_overrides_of_the_run_before_are_kept_as_far_as_they_can_be_read(tmp_path: Path) -> None:
    def inherited(after: str) -> list[Any]:
        return admission._inherited(phases.Config(number=2, after=after), tmp_path)

    assert inherited("") == inherited("nowhere") == []
    for name, manifest in (("one", {"phase": {"overrides": [1]}}), ("two", {}), ("three", {"phase": 3})):
        (tmp_path / name).mkdir()
        store.write_json(tmp_path / name / "manifest.json", {"schema_version": store.SCHEMA_VERSION, **manifest})
    assert inherited("two") == inherited("three") == []
    assert inherited("one") == [1]


@pytest.mark.parametrize(
    ("number", "quantize", "drawn", "refused"),
    [
        (1, "", "", ""), (1, "none", "none", ""), (1, "nf4", "", "[model] quantize"),
        (1, "", "nf4", "[sample] quantize"), (2, "nf4", "nf4", ""),
    ],
)  # fmt: skip
def test_phase_1_takes_no_quantised_base(
    monkeypatch: pytest.MonkeyPatch, number: int, quantize: str, drawn: str, refused: str
) -> None:
    own = types.SimpleNamespace(
        model=types.SimpleNamespace(quantize=quantize), sample=types.SimpleNamespace(quantize=drawn)
    )
    monkeypatch.setattr(admission, "cells", lambda _: ["a", "b"])
    monkeypatch.setattr(admission, "settings_of", lambda _, cell: own if cell == "b" else good)
    good = types.SimpleNamespace(model=types.SimpleNamespace(quantize=""), sample=types.SimpleNamespace(quantize=""))
    phase: Any = settings(phases.Config(number=number))
    if not refused:
        admission._check_bases(phase)
        return
    with pytest.raises(PhaseError) as told:
        admission._check_bases(phase)
    assert str(told.value).startswith(f"{refused} = 'nf4': phase 1 (the gate, on a base that is not quantised)")


# -- cells and their names


def test_cells_are_every_seed_fold_and_variant_and_are_called_by_them() -> None:
    def names(design: Design, seed: int = 7) -> list[str]:
        return [c.name for c in cells.cells(types.SimpleNamespace(design=design, run=types.SimpleNamespace(seed=seed)))]  # type: ignore[arg-type]

    assert names(Design()) == ["main.seed-7.held-out"]
    assert names(Design(folds=2, seeds=(1, 0), temperatures=(0.8, 0.0))) == [
        f"temperature-{t}.seed-{s}.fold-{f}" for s in (1, 0) for f in (0, 1) for t in ("0.8", "0")
    ]
    assert names(Design(folds=3, fold=2)) == ["main.seed-7.fold-2"]
    assert names(Design(folds=3, fold=0)) == ["main.seed-7.fold-0"]
    assert Cell("v", 0, -1).name == "v.seed-0.held-out"


def test_variants_cross_named_ones_with_the_grid_in_the_configs_order() -> None:
    design = Design(
        variants={"a": {"adapt.x": 1}, "b": {"adapt.x": 2, "sample.n": 3}},
        grid={"train.rank": (4, [8]), "retrieve.within": ("any",)}, temperatures=(0.5,),
    )  # fmt: skip
    found = cells.variants(design)
    assert list(found) == [f"{name}_rank-{rank}_within-any_temperature-0.5" for name in "ab" for rank in ("4", "1")]
    assert found["b_rank-1_within-any_temperature-0.5"] == {
        "adapt.x": 2, "sample.n": 3, "train.rank": [8], "retrieve.within": "any", "sample.temperature": 0.5,
    }  # fmt: skip
    assert cells.variants(Design()) == {"main": {}}
    with pytest.raises(ConfigError, match="two variants are called 'rank-4'"):
        cells.variants(Design(grid={"train.rank": (4, "4")}))
    for key in ("gate.n", "run.seed", "design.folds", "phase.number"):
        for how in ({"grid": {key: (1,)}}, {"variants": {"a": {key: 1}}}):
            with pytest.raises(ConfigError, match=f"{key} cannot differ between variants"):
                cells.variants(Design(**how))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "word"),
    [(0.8, "0.8"), (1.0, "1"), (3, "3"), (True, "True"), ("any", "any"),
     ("a/b", "7"), ("", "7"), (-1, "7"), ([1], "7"), (1e-9, "7"), (None, "7")],
)  # fmt: skip
def test_a_value_is_a_word_of_a_name_where_it_is_one(value: object, word: str) -> None:
    assert cells._word(value, 7) == word


def test_a_phase_is_named_and_marked_from_the_second_on() -> None:
    assert phases.name(4) == "phase 4 (ablation grid and the manifold of adapters)"
    for settings_, said in (
        ({"number": 0}, "there is no phase 0"), ({"number": 5}, "there is no phase 5"),
        ({"number": 2, "override": " "}, "only"),
        ({"after": "x"}, "after: phase 1 waits"), ({"decision": "x"}, "decision: phase 1"),
        ({"override": "x"}, "override: phase 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            phases.Config(**settings_)  # type: ignore[arg-type]
