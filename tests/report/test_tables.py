"""Every cell of the report's tables is the decision's or the records' own number, under its own head."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import pytest

from rune import plugins
from rune.analysis import evidence, gate
from rune.analysis.power import Baseline, Design
from rune.reporting import compare, data, design, tables
from rune.reporting.data import Report
from rune.reporting.tables import Table
from rune.runs import store
from rune.types import Decision
from tests.report import runs


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = runs.build(tmp_path_factory.mktemp("tables"))
    runs.decide(folder, gate.Config(resamples=500, simulations=100))
    return data.gather(folder, programs_per_arm=1, most_programs=10)


def rows(table: Table | None) -> dict[str, dict[str, str]]:
    """Name of a row → head → cell."""
    assert table is not None
    return {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}


def test_every_arm_says_what_it_is() -> None:
    assert sorted(data.MEANING) == plugins.available("conditions")
    assert all(len(text.split()) > 2 for text in data.MEANING.values())
    assert len(set(data.MEANING.values())) == len(data.MEANING) and tables.meaning("hypernet_mean")


def test_the_differences_of_table_1_and_of_the_controls_are_to_the_baseline(report: Report) -> None:
    passes = report.decision.details["passes"]
    first, controls = tables.scores(report)
    assert list(rows(first)) == ["vanilla", "rag", "lora", "hypernet"]
    found = rows(first) | rows(controls)
    assert set(found) == set(passes) and len({sum(c) for c in passes.values()}) > 2
    draws = 5 * len(report.tasks)
    for arm, counts in passes.items():
        row, more = found[arm], sum(counts) - sum(passes["vanilla"])
        assert row["pass@1"] == f"{100 * sum(counts) / draws:.1f} %"
        assert row["passed / draws"] == f"{sum(counts)} / {draws}"
        if arm == "vanilla":
            assert row["Δ vanilla, points"] == row["relative"] == "–"
            continue
        assert row["Δ vanilla, points"] == evidence.points(100 * more / draws)
        assert row["relative"] == f"{100 * more / sum(passes['vanilla']):+.0f} %".replace("-", "−")
        own = next(c for c in report.decision.contrasts if (c.treatment, c.baseline) == (arm, "vanilla"))
        assert row["Δ 95 % interval"] == evidence.span(own.interval)


def test_a_comparison_counts_the_tasks_that_went_better_stayed_and_went_worse(report: Report) -> None:
    passes = report.decision.details["passes"]
    found = rows(tables.contrasts(report))
    for c in report.decision.contrasts:
        change = [a - b for a, b in zip(passes[c.treatment], passes[c.baseline], strict=True)]
        counts = [sum(d > 0 for d in change), sum(d == 0 for d in change), sum(d < 0 for d in change)]
        assert found[c.name]["tasks better / same / worse"] == " / ".join(map(str, counts))
    primary = found["hypernet − vanilla"]
    assert (primary["p"].endswith("(one-sided)"), primary["p, Holm"], primary["role"]) == (True, "–", "primary")


def test_diagnostics_stand_under_their_own_heads(report: Report) -> None:
    first, norms = tables.adapters(report)
    found = report.diagnostics["arms"]["hypernet"]
    row = rows(first)["hypernet"]
    cosine = found["cosine_raw"]["mean_off_diagonal"]
    assert 0.9 < cosine < 1 and row["cosine diversity"] == f"{1 - cosine:.3g}"
    matrix = found["cosine_centred"]["matrix"]
    apart = [abs(v) for i, line in enumerate(matrix) for j, v in enumerate(line) if i != j]
    assert row["centred |cos|"] == f"{mean(apart):.3g}"
    assert row["effective rank"] == "7.3 of 24" and row["adapters"] == "25" and row["‖ΔW‖"] == "1.7"
    assert rows(first)["lora"]["cosine diversity"] == "–"
    per_module = rows(norms)["hypernet"]
    for module, layers in found["frobenius"].items():
        assert per_module[module.removesuffix("_proj")].startswith(f"{mean(layers):.3g} (")


def test_a_trainings_loss_is_the_mean_of_its_last_tenth(report: Report) -> None:
    first, _ = tables.adapters(report)
    for arm, phase in (("lora", "lora"), ("hypernet", "hypernet"), ("static", "hypernet")):
        (losses,) = (t.terms["loss"] for t in report.training if t.name == phase)
        last = mean(losses[-(len(losses) // 10) :])
        assert losses[0] > 2 * last
        assert rows(first)[arm]["training loss"] == f"{last:.3f}"


def test_what_a_swapped_trajectory_changes_stands_under_its_own_head(report: Report) -> None:
    row = rows(tables.swaps(report))["hypernet"]
    assert [row[h] for h in ("log p, own", "log p, swapped", "lead of the own", "mean change")] == [
        "−31.4", "−31.4", "+0.05", "0.21",
    ]  # fmt: skip
    apart = {**report.diagnostics["swap"]["hypernet"], "own_log_prob": -20.0, "mean_lead": -1.5}
    one = replace(report, diagnostics={**report.diagnostics, "swap": {"hypernet": apart}})
    row = rows(tables.swaps(one))["hypernet"]
    assert (row["log p, own"], row["log p, swapped"], row["lead of the own"]) == ("−20.0", "−31.4", "−1.50")


def test_suspicious_tasks_are_shown_before_all_others_however_short_the_table(report: Report) -> None:
    def row(task: str, similarity: float, *, suspicious: bool = False) -> dict[str, Any]:
        flags = dict.fromkeys(("same_id", "same_tree", "same_name", "in_context"), False)
        shares = {"similarity": similarity, "prompt_share": similarity, "solution_share": 0.0}
        why = "its own tests were shown" if suspicious else ""
        return {"task_id": task, "nearest": "x", "suspicious": suspicious, "why": why, **flags, **shares}

    some = [row("T/1", 0.4), row("T/2", 0.1, suspicious=True), row("T/3", 0.45), row("T/4", 0.2, suspicious=True)]
    table = tables.leakage(replace(report, leakage={"rows": some}), most=3)
    assert list(rows(table)) == ["T/4", "T/2", "T/3"]
    assert table is not None and table.note.startswith("1 more tasks, all less similar")
    assert [r["finding"] for r in rows(table).values()] == ["its own tests were shown"] * 2 + ["clean"]


# --------------------------------------------------------------------------- several runs


def entry(decision: Decision, name: str, points: float, tasks: str = "same") -> compare.Entry:
    return compare.Entry(name=name, decision=replace(decision, effect_points=points), settings={}, tasks=tasks)


def test_the_spread_between_runs_is_the_samples_standard_deviation(report: Report) -> None:
    effects = [1.0, 4.0, 10.0]
    some = [entry(report.decision, str(i), points) for i, points in enumerate(effects)]
    said = compare.spread(some)
    assert f"{evidence.points(5.0)} points on average" in said
    assert f"standard deviation between runs {stdev(effects):.1f}; all on the same tasks." in said
    other = [*some[:2], entry(report.decision, "2", 10.0, tasks="others")]
    assert "NOT on the same tasks" in compare.spread(other)


# --------------------------------------------------------------------------- before anything is drawn


def question(**changes: Any) -> design.Question:
    values = {"baseline": Baseline(0.5, 0.5), "design": Design(25, 5), "threshold": 5.0, "alpha": 0.05}
    return design.Question(**{**values, "simulations": 200, **changes})


def test_power_is_of_trainings_that_differ_as_much_as_was_asked() -> None:
    def luck(seed_sd: float) -> float:
        return design._simulate(question(seed_sd=seed_sd), Design(60, 5), 0.0).luck

    assert luck(10.0) > 2 * luck(0.0)


def test_a_proposal_holds_where_the_adapter_helps_some_tasks_and_hurts_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The design between the two would do for an effect that is the same everywhere, and not for a mixed one."""
    monkeypatch.setattr(design, "TASKS", (164, 400))
    monkeypatch.setattr(design, "DRAWS", (5,))
    pairs, best = design.answer(question(seed_sd=0.0, simulations=400))
    alike, mixed = (
        [(p.false_pass <= 0.05 and p.detectable <= 5) for p in column] for column in zip(*pairs, strict=True)
    )
    assert (alike, mixed) == ([False, True, True], [False, False, True])
    assert best is not None and best.design == Design(400, 5)


def test_the_baseline_of_an_earlier_run_is_fitted_to_its_own_arm(report: Report, tmp_path: Any) -> None:
    folder = runs.build(tmp_path, extras=False)
    decision = store.decode(Decision, _decided(folder), where="x")
    for arm in ("vanilla", "hypernet"):
        found = design.baseline_of(folder, arm)
        assert found.mean == pytest.approx(decision.details["hierarchical"]["arms"][arm]["mean"])


def _decided(folder: store.RunDir) -> Any:
    runs.decide(folder, gate.Config(resamples=100, simulations=100))
    return store.read_json(folder / "decision.json")
