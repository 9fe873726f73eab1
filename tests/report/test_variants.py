"""Every variant of an experiment is shown with its own decision, not the first one alone."""

from __future__ import annotations

from pathlib import Path

from rune.reporting import variants
from rune.runs import store
from rune.study import version1

RESULTS = Path(__file__).parents[2] / "results"


def committed(name: str) -> list[variants.Variant]:
    return variants.read(version1.result(store.read_json(RESULTS / name / "result.json")))


def test_the_overview_has_a_row_a_variant_with_its_own_answer() -> None:
    """The gate passes at one temperature and fails at the other."""
    found = committed("crossfit-0.5b-wide")
    assert [(v.title, v.decision.answer) for v in found] == [
        ("Temperature 0.8", "Gate PASSED"),
        ("Temperature 0.2", "Gate FAILED — reassessing"),
    ]
    table = variants.overview(found)
    assert table.header[1:4] == ("vanilla, %", "hypernet, %", "effect, points")
    assert [(row[0], *row[1:3]) for row in table.rows] == [
        ("Temperature 0.8", "49.3", "54.9"),
        ("Temperature 0.2", "54.1", "57.8"),
    ]
    assert [row[3].split()[0] for row in table.rows] == ["+5.6", "+3.7"]
    assert [row[-1].partition(":")[0] for row in table.rows] == [v.decision.answer for v in found]


def test_a_variants_tables_are_of_its_own_arms_contrasts_and_seeds() -> None:
    hot, cold = committed("crossfit-0.5b-wide")
    for variant in (hot, cold):
        arms, differences, seeds = variant.tables
        rates = {row[0]: row[1] for row in arms.rows}
        assert rates == {a.condition: f"{100 * a.pass_at_1:.1f}" for a in variant.decision.arms}
        assert [row[0] for row in differences.rows] == [c.name for c in variant.decision.contrasts]
        assert [row[0] for row in seeds.rows] == ["0", "1", "2"]
        assert variant.adapters and len(variant.adapters.rows) == 3
    assert hot.tables[0].rows != cold.tables[0].rows
