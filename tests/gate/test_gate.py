"""The decision: what it says, and everything it refuses to decide."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from rune import config
from rune.analysis import gate, leakage
from rune.errors import GateError, NotEnoughSamples
from rune.runs import store
from rune.types import Decision, Outcome, Problem, Scorer, Split, Verdict
from tests.report import runs

SETTINGS = gate.Config(resamples=500, simulations=100)


def tasks(count: int) -> list[Problem]:
    return [
        Problem(task_id=f"T/{i}", benchmark="t", prompt="", entry_point="f", test="", split=Split.HELD_OUT)
        for i in range(count)
    ]


def verdicts(arm: str, passes: Sequence[int], n: int = 5) -> list[Verdict]:
    return [
        Verdict(task_id=f"T/{i}", condition=arm, draw=d, outcome=Outcome.PASSED if d < c else Outcome.FAILED)
        for i, c in enumerate(passes)
        for d in range(n)
    ]


def both(treated: Sequence[int], base: Sequence[int], n: int = 5) -> list[Verdict]:
    return verdicts("vanilla", base, n) + verdicts("hypernet", treated, n)


def decide(records: Iterable[Verdict], count: int = 20, settings: gate.Config = SETTINGS, **more: object) -> Decision:
    return gate.decide(tasks(count), list(records), settings, **more)  # type: ignore[arg-type]


BASE = [2] * 10 + [1] * 10  # 30 of 100
FIVE = [2] * 15 + [1] * 5  # 35 of 100: exactly 5 points


def test_exactly_five_points_pass() -> None:
    decision = decide(both(FIVE, BASE))
    assert decision.passed
    assert decision.answer == "Gate PASSED"
    assert decision.effect_points == 5.0
    assert decision.details["effect_exact"] == "5"
    assert decision.relative_change == pytest.approx(1 / 6)


def test_one_draw_less_fails() -> None:
    decision = decide(both([*FIVE[:-1], 0], BASE))
    assert not decision.passed
    assert decision.answer == "Gate FAILED — reassessing"


def test_the_order_of_the_verdicts_does_not_matter() -> None:
    records = both(FIVE, BASE)
    assert decide(records) == decide(reversed(records))


def test_timeouts_do_not_pass() -> None:
    records = [replace(v, outcome=Outcome.TIMED_OUT) if v.condition == "hypernet" else v for v in both([5] * 20, BASE)]
    assert decide(records).effect_points == -30.0


def test_too_few_draws_are_refused_with_what_to_type() -> None:
    with pytest.raises(
        NotEnoughSamples, match=r"needs 5 samples per task, arm 'hypernet' has 2; run `rune sample --set"
    ):
        decide(both([1] * 20, [1] * 20, n=2))


def test_uneven_draws_are_refused() -> None:
    with pytest.raises(GateError, match="arms must be equal"):
        decide(verdicts("vanilla", BASE, 6) + verdicts("hypernet", FIVE, 5))


def test_a_missing_verdict_is_named() -> None:
    records = [v for v in both(FIVE, BASE) if (v.condition, v.task_id, v.draw) != ("hypernet", "T/7", 3)]
    with pytest.raises(GateError, match="1 verdicts missing, first hypernet, T/7, draw 3"):
        decide(records)


def test_a_task_missing_in_one_arm_is_refused() -> None:
    with pytest.raises(GateError, match="5 verdicts missing, first vanilla, T/19, draw 0"):
        decide(v for v in both(FIVE, BASE) if (v.condition, v.task_id) != ("vanilla", "T/19"))


def test_a_doubled_verdict_is_refused() -> None:
    records = both(FIVE, BASE)
    with pytest.raises(GateError, match="vanilla, T/0, draw 0: two verdicts"):
        decide([*records, records[0]])


def test_a_stray_task_is_refused() -> None:
    with pytest.raises(GateError, match=r"T/20, which is not a held-out task \(9 such tasks\)"):
        decide(both([*FIVE, *[5] * 9], [*BASE, *[0] * 9]))


def test_a_missing_arm_is_refused() -> None:
    with pytest.raises(GateError, match="no verdicts of arm 'hypernet'"):
        decide(verdicts("vanilla", BASE))
    with pytest.raises(GateError, match="no verdicts of arm 'wrong_trajectory'"):
        decide(both(FIVE, BASE), arms=["wrong_trajectory"])


def test_a_base_that_passes_nothing_cannot_be_gated() -> None:
    with pytest.raises(GateError, match="vanilla passed nothing"):
        decide(both(FIVE, [0] * 20))


def test_a_base_that_answers_nothing_is_believed_where_values_are_compared_and_the_floor_is_zero() -> None:
    asked = [replace(p, scorer=Scorer.EXACT_VALUE) for p in tasks(20)]
    zero = replace(SETTINGS, floor=0.0)

    def of(treated: list[int], settings: gate.Config) -> Decision:
        judged = [replace(v, scorer=Scorer.EXACT_VALUE) for v in both(treated, [0] * 20)]
        return gate.decide(asked, judged, settings)

    decision = of(FIVE, zero)
    assert decision.passed and decision.effect_points == 35.0 and decision.relative_change is None
    assert json.loads(store.encode(decision))["relative_change"] is None
    with pytest.raises(GateError, match="vanilla passed nothing"):
        of(FIVE, SETTINGS)  # a floor above nothing
    with pytest.raises(GateError, match="vanilla passed nothing"):
        of([0] * 20, zero)  # nothing at all passed: nothing shows that the scorer works
    with pytest.raises(GateError, match="vanilla passed nothing"):
        decide(both(FIVE, [0] * 20), settings=zero)  # programs are run: a broken sandbox fails them all


@pytest.mark.parametrize("base", [[1] + [0] * 19, [5] * 19 + [1]])
def test_a_base_at_the_floor_or_the_ceiling_cannot_be_gated(base: list[int]) -> None:
    with pytest.raises(GateError, match=r"outside 2–95 %"):
        decide(both(FIVE, base))


def test_nothing_held_out_is_nothing_to_decide() -> None:
    with pytest.raises(GateError, match="no held-out task"):
        gate.decide([], [], SETTINGS)


def test_more_than_fifteen_points_demand_a_leakage_check() -> None:
    decision = decide(both([5] * 4 + BASE[4:], BASE))
    assert decision.effect_points == 12.0
    assert decision.leakage_check == "not required"
    decision = decide(both([4] * 20, BASE))
    assert decision.passed
    assert decision.leakage_check == "required"
    assert decision.grade == "suspended"


def test_a_leak_that_carries_the_effect_suspends_the_claim_but_not_the_answer() -> None:
    carried = decide(both([4] * 20, BASE), leak=leakage.Finding("suspicious", 1.0))
    assert carried.answer == "Gate PASSED"
    assert carried.grade == "suspended"
    harmless = decide(both([4] * 20, BASE), leak=leakage.Finding("suspicious", 40.0))
    assert harmless.grade == "unattributed"
    assert harmless.leakage_check == "suspicious"


def test_the_right_trajectory_must_beat_the_wrong_one_to_be_credited() -> None:
    hyper = [4] * 20
    same = decide(both(hyper, BASE) + verdicts("wrong_trajectory", hyper), leak=leakage.Finding("clean", 50.0))
    assert same.grade == "unattributed"
    assert "not attributable to trajectories" in same.evidence
    better = decide(both(hyper, BASE) + verdicts("wrong_trajectory", BASE), leak=leakage.Finding("clean", 50.0))
    assert better.grade == "attributed"


def test_a_pass_that_luck_explains_says_so() -> None:
    lucky = [5, 5, 5, *BASE[3:9], 0, *BASE[10:]]
    decision = decide(both(lucky, BASE))
    assert decision.passed
    assert decision.grade == "luck"


@pytest.mark.parametrize(
    ("treated", "base", "n", "grade"),
    [
        ([0] * 20, BASE, 5, "harmful"),
        (BASE, BASE, 5, "inconclusive"),
        ([51, 49] * 10, [50] * 20, 100, "absent"),
        ([58, 51] * 10, [50] * 20, 100, "short"),
    ],
)
def test_failures_are_told_apart(treated: list[int], base: list[int], n: int, grade: str) -> None:
    decision = decide(both(treated, base, n))
    assert not decision.passed
    assert decision.grade == grade


def test_contrasts_come_for_whatever_arms_exist_and_only_secondaries_are_adjusted() -> None:
    arms = {"vanilla": BASE, "hypernet": FIVE, "lora": FIVE, "static": BASE, "wrong_trajectory": BASE}
    decision = decide(itertools.chain.from_iterable(verdicts(a, c) for a, c in arms.items()))
    roles = {c.name: c.role for c in decision.contrasts}
    assert decision.contrasts[0].name == "hypernet − vanilla"
    assert roles == {
        "hypernet − vanilla": "primary",
        "hypernet − wrong_trajectory": "secondary",
        "hypernet − static": "secondary",
        "hypernet − lora": "secondary",
        "lora − vanilla": "descriptive",
        "static − vanilla": "descriptive",
        "wrong_trajectory − vanilla": "descriptive",
    }
    by_name = {c.name: c for c in decision.contrasts}
    right_wrong = by_name["hypernet − wrong_trajectory"]
    assert right_wrong.p_value == pytest.approx(2 / 32)  # five tasks changed, all up: 2 · 2⁻⁵
    assert right_wrong.p_adjusted == pytest.approx(6 / 32)
    assert (right_wrong.wins, right_wrong.losses, right_wrong.ties) == (5, 0, 15)
    assert by_name["lora − vanilla"].p_adjusted is None


def test_hypotheses_carry_the_numbers() -> None:
    h0, h1, found = decide(both(FIVE, BASE)).hypotheses
    assert h0.startswith("H0: hypernet does not raise pass@1 over vanilla")
    assert h1.startswith("H1: hypernet raises pass@1 over vanilla")
    assert "30.0 % → 35.0 %, +5.0 points" in found
    assert "p = 0.031" in found
    assert "at least 5 points? Yes." in found


def test_a_decision_survives_the_disk(tmp_path: Path) -> None:
    decision = decide(both(FIVE, BASE))
    store.write_json(tmp_path / "decision.json", decision)
    again = store.decode(Decision, store.read_json(tmp_path / "decision.json"), where="decision.json")
    assert config.plain(again) == config.plain(decision)


def test_a_run_is_decided_from_its_folder_alone(tmp_path: Path) -> None:
    folder = runs.build(tmp_path)
    decision = runs.decide(folder, SETTINGS)
    assert store.read_json(folder / "decision.json")["answer"] == decision.answer
    assert {"wrong_trajectory", "static"} <= {c.baseline for c in decision.contrasts}


def test_an_arm_that_was_treated_but_never_scored_leaves_the_gate_undecided(tmp_path: Path) -> None:
    folder = runs.build(tmp_path, edit_verdicts=lambda v: [x for x in v if x.condition != "static"])
    with pytest.raises(GateError, match="no verdicts of arm 'static'"):
        runs.decide(folder, SETTINGS)


def test_unfinished_scoring_leaves_the_gate_undecided(tmp_path: Path) -> None:
    folder = runs.build(tmp_path)
    manifest = folder.manifest()
    manifest["stages"]["score"]["status"] = "interrupted"
    store.write_json(folder.manifest_path, manifest)
    with pytest.raises(GateError, match="scoring is interrupted"):
        runs.decide(folder, SETTINGS)


@pytest.mark.parametrize(
    "settings",
    [{"n": 0}, {"threshold_points": 0.0}, {"floor": 0.9, "ceiling": 0.5}, {"treatment": "vanilla"}, {"level": 1.0}],
)
def test_settings_without_meaning_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(config.ConfigError):
        config.build(gate.Config, settings, where="gate")


# --------------------------------------------------------------------------- what is counted


def test_verdicts_of_another_scorer_than_the_tasks_ask_for_are_not_decided() -> None:
    asked = [replace(p, scorer=Scorer.EXECUTION_WITH_AND_WITHOUT) for p in tasks(20)]
    plain = both(FIVE, BASE)
    judged = [replace(v, scorer=Scorer.EXECUTION_WITH_AND_WITHOUT) for v in plain]
    for records in (plain, [*judged[:-1], plain[-1]]):
        with pytest.raises(GateError, match=r"judged by execution, but the task asks for execution_with_and_without"):
            gate.decide(asked, records, SETTINGS)
    decision = gate.decide(asked, judged, SETTINGS)
    assert decision.scorer is Scorer.EXECUTION_WITH_AND_WITHOUT
    assert decision.hypotheses[0].startswith("H0: hypernet does not raise UPass@1 over vanilla")
    assert decide(plain).scorer is Scorer.EXECUTION


def test_tasks_of_several_scorers_are_not_decided_together() -> None:
    mixed = [replace(tasks(20)[0], scorer=Scorer.EXACT_VALUE), *tasks(20)[1:]]
    with pytest.raises(
        GateError, match=r"judged by several scorers \(exact_value, execution\), whose passes do not add"
    ):
        gate.decide(mixed, both(FIVE, BASE), SETTINGS)


def test_one_training_alone_has_the_power_of_none() -> None:
    """A spread of trainings cannot be told from one of them, and is not taken for known."""
    one = {"vanilla": tuple(BASE), "hypernet": tuple(FIVE)}
    alone = decide(both(FIVE, BASE), trainings=[one])
    assert alone.details["power"] == decide(both(FIVE, BASE)).details["power"]


def test_of_missing_verdicts_the_first_is_by_name_of_arm_then_in_the_order_of_tasks() -> None:
    every = [v for arm in ("vanilla", "hypernet", "b", "a") for v in verdicts(arm, [2] * 20, 5)]
    kept = [
        v for v in every if not (v.condition in ("a", "b", "hypernet") and v.task_id in ("T/4", "T/3") and v.draw == 1)
    ]
    with pytest.raises(GateError, match=r"6 verdicts missing, first a, T/3, draw 1"):
        decide(kept)
