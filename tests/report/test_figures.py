"""Figures show the numbers they were given: each is read back out of its SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from rune.reporting import figures
from tests.report.svg_plot import Plot, Point

ARM = {arm: f"arm-{i}" for i, arm in enumerate(figures.ARMS)}


def close(points: Sequence[Point], expected: Sequence[Point], *, rel: float = 2e-3, abs: float = 2e-2) -> bool:
    assert len(points) == len(expected)
    for found, wanted in zip(points, expected, strict=True):
        assert found == pytest.approx(wanted, rel=rel, abs=abs)
    return True


def pixels(matrix: Sequence[Sequence[float]], shades: Any, low: float, high: float) -> np.ndarray:
    shares = (np.asarray(matrix) - low) / (high - low)
    return (shades(shares)[..., :3] * 255).round().astype(int)


# --------------------------------------------------------------------------- matrices


def test_cosines_show_the_raw_matrix_under_raw_and_the_centred_one_under_mean_centred() -> None:
    raw = [[1.0, 0.9, 0.8], [0.9, 1.0, 0.7], [0.8, 0.7, 1.0]]
    centred = [[1.0, -0.5, 0.0], [-0.5, 1.0, 0.3], [0.0, 0.3, 1.0]]
    svg = figures.cosines(raw, centred)
    plot = Plot(svg)
    assert len(plot.images) == 2
    for image, matrix in zip(plot.images, (raw, centred), strict=True):
        assert np.abs(image - pixels(matrix, figures._diverging(), -1, 1)).max() <= 2
    # The images come in the order of their titles, from left to right.
    assert plot.label_at("raw")[0] < plot.label_at("mean-centred")[0]
    assert svg.index(">raw<") < svg.index(">mean-centred<")


def test_the_strip_has_a_row_a_task_and_a_column_an_arm_shaded_by_the_share_that_passed() -> None:
    passes = {"vanilla": [1, 4, 2], "hypernet": [1, 2, 3]}  # neither none nor all: the shades do not stretch
    plot = Plot(figures.strip(["T/1", "T/2", "T/3"], passes, 5))
    expected = [[passes[arm][i] / 5 for arm in passes] for i in range(3)]
    (image,) = plot.images
    assert np.abs(image - pixels(expected, figures._shade(), 0, 1)).max() <= 2
    assert [plot.label_at(t)[1] for t in ("T/1", "T/2", "T/3")] == sorted(plot.label_at(f"T/{i}")[1] for i in (1, 2, 3))
    assert plot.label_at("vanilla")[0] < plot.label_at("hypernet")[0]


def test_shades_of_more_passes_are_other_shades() -> None:
    """The scale runs over its whole range, so that none and all are the farthest apart."""
    for shades in (figures._shade(), figures._diverging()):
        ends = pixels([[0.0, 0.5, 1.0]], shades, 0, 1)[0]
        assert all(np.abs(a - b).sum() > 60 for a, b in ((ends[0], ends[1]), (ends[1], ends[2]), (ends[0], ends[2])))


# --------------------------------------------------------------------------- effects

ROWS = [
    {"name": "hypernet − vanilla", "points": 6.0, "low": -2.0, "high": 14.0, "role": "primary"},
    {"name": "hypernet − wrong_trajectory", "points": -3.0, "low": -9.0, "high": 1.0, "role": "secondary"},
    {"name": "lora − vanilla", "points": 4.0, "low": 1.0, "high": 8.5, "role": "other"},
]


@pytest.mark.parametrize("narrow", [True, False])
def test_a_forest_draws_each_effect_in_its_interval_under_its_name_and_the_gate_as_a_dashed_line(narrow: bool) -> None:
    plot = Plot(figures.forest(ROWS, 5.0, narrow=narrow))
    upright = [line for line in plot.lines if line.points[0][0] == line.points[1][0]]
    assert sorted(round(plot.x(line.points[0][0]), 2) for line in upright) == [0.0, 5.0]
    (dashed,) = [line for line in upright if line.dashed]
    assert plot.x(dashed.points[0][0]) == pytest.approx(5.0, abs=0.02)
    spans = sorted((line for line in plot.lines if line not in upright), key=lambda line: line.points[0][1])
    marks = sorted(plot.marks, key=lambda mark: mark.points[0][1])
    colours = {"primary": "accent", "secondary": "ink", "other": "muted"}
    for row, line, mark in zip(ROWS, spans, marks, strict=True):  # from the top
        ends = [plot.x(x) for x, _ in line.points]
        assert ends == pytest.approx([row["low"], row["high"]], abs=0.05)
        assert plot.x(mark.points[0][0]) == pytest.approx(row["points"], abs=0.05)
        assert mark.points[0][1] == line.points[0][1]
        assert line.colour == mark.colour == colours[str(row["role"])]
        label = plot.label_at(str(row["name"]).replace("_trajectory", " traj."))
        assert abs(label[1] - line.points[0][1]) < 6
        said = f"{row['points']:+.1f}  [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")
        assert (said in [text for text, _ in plot.texts]) is not narrow


def test_pass_at_k_curves_are_in_percent_from_k_1_in_each_arms_colour() -> None:
    by_arm = {"vanilla": [0.2, 0.35, 0.5], "hypernet": [0.1, 0.7, 0.9], "wrong_trajectory": [0.3, 0.4, 0.45]}
    plot = Plot(figures.curves(by_arm))
    for arm, values in by_arm.items():
        (line,) = plot.of(ARM[arm])
        close(plot.data(line), [(k, 100 * value) for k, value in enumerate(values, 1)], abs=0.1)
    assert {"vanilla", "hypernet", "wrong traj."} <= {text for text, _ in plot.texts}


def test_the_power_curve_shows_both_chances_the_gate_and_what_was_measured() -> None:
    curve = [{"true_points": 2.0 * i, "passes": 0.1 * i, "significant": 0.05 + 0.04 * i} for i in range(8)]
    plot = Plot(figures.power_curve(curve, 5.0, 3.5))
    (passes,), (significant,) = plot.of("accent"), [line for line in plot.of("ink") if line.dashed]
    close(plot.data(passes), [(p["true_points"], 100 * p["passes"]) for p in curve], abs=0.1)
    close(plot.data(significant), [(p["true_points"], 100 * p["significant"]) for p in curve], abs=0.1)
    (gate,) = plot.of("muted")
    (measured,) = plot.of("good")
    assert [plot.x(line.points[0][0]) for line in (gate, measured)] == pytest.approx([5.0, 3.5], abs=0.02)
    assert not Plot(figures.power_curve(curve, 5.0, None)).of("good")


# --------------------------------------------------------------------------- adapters and training


def test_the_profile_has_a_bar_at_the_mean_over_layers_and_a_whisker_from_least_to_most() -> None:
    norms = {
        "hypernet": {"q_proj": [1.0, 2.0, 6.0], "up_proj": [4.0, 4.5, 5.0]},
        "lora": {"q_proj": [0.5, 1.5, 1.0], "up_proj": [2.0, 3.0, 2.5]},
    }
    plot = Plot(figures.profile(norms))
    for arm, modules in norms.items():
        own = [bar for bar in plot.bars if bar.colour == ARM[arm]]
        assert len(own) == 2
        for bar, layers in zip(sorted(own, key=lambda b: b.points[0][0]), modules.values(), strict=True):
            heights = [plot.y(y) for _, y in bar.points]
            assert (min(heights), max(heights)) == pytest.approx((0.0, sum(layers) / 3), abs=0.02)
            middle = (bar.points[0][0] + bar.points[1][0]) / 2
            (whisker,) = [w for w in plot.of("ink") if abs(w.points[0][0] - middle) < 0.5]
            assert sorted(plot.y(y) for _, y in whisker.points) == pytest.approx([min(layers), max(layers)], abs=0.02)
    assert plot.label_at("q")[0] < plot.label_at("up")[0]


def test_training_curves_lie_at_their_values_on_a_logarithmic_axis_and_keep_their_steps() -> None:
    steps = [float(i) for i in range(60)]
    loss = [4.0 / (1 + 0.2 * i) for i in range(60)]
    other = [0.5 * 0.97**i for i in range(60)]
    rare = [0.05 * (1 + i % 3) if i % 4 == 0 else 0.0 for i in range(60)]
    terms = {"loss": loss, "cross_entropy": other, "kl_base": rare}
    plot = Plot(figures.losses("x", steps, terms), logarithmic=True)
    (total,) = plot.of("accent")
    close(plot.data(total), list(zip(steps, loss, strict=True)), rel=1e-2, abs=0.02)
    others = sorted((line for line in plot.lines if line.colour != "accent"), key=lambda line: len(line.points))
    drawn = [line for line in others if len(line.points) > 3]
    assert [len(line.points) for line in drawn] == [15, 60]
    close(plot.data(drawn[0]), [(s, v) for s, v in zip(steps, rare, strict=True) if v], rel=1e-2, abs=0.02)
    close(plot.data(drawn[1]), list(zip(steps, other, strict=True)), rel=1e-2, abs=0.02)
    assert total.width > drawn[1].width


def test_a_loss_that_falls_below_zero_is_drawn_on_a_plain_axis() -> None:
    steps = [float(i) for i in range(9)]
    loss = [2.0 - 0.5 * i for i in range(9)]
    plot = Plot(figures.losses("x", steps, {"loss": loss, "norm": [1.0] * 9}))
    (total,) = plot.of("accent")
    close(plot.data(total), list(zip(steps, loss, strict=True)))


def test_thinning_keeps_every_value_in_exactly_one_mean() -> None:
    y = [float(i * i % 37) for i in range(1003)]
    x, means = figures.thin(list(range(1003)), y, most=100)
    assert len(x) == 100 and x[0] == 0 and x == sorted(set(x))
    sizes = np.diff([*x, 1003])
    assert float((np.array(means) * sizes).sum()) == pytest.approx(sum(y))
    assert figures.thin([1, 2], [3.0, 4.0], most=2) == ([1, 2], [3.0, 4.0])


def test_bars_are_as_long_as_their_counts_with_the_largest_on_top() -> None:
    counts = {"NameError": 3, "WrongAnswer": 12, "Timeout": 6}
    plot = Plot(figures.bars("x", "Failures", counts))
    lengths = {}
    for name in counts:
        (bar,) = [
            b
            for b in plot.bars
            if min(y for _, y in b.points) < plot.label_at(name)[1] < max(y for _, y in b.points) + 2
        ]
        lengths[name] = max(x for x, _ in bar.points) - min(x for x, _ in bar.points)
    assert lengths["WrongAnswer"] / lengths["NameError"] == pytest.approx(4.0, rel=1e-3)
    assert lengths["WrongAnswer"] / lengths["Timeout"] == pytest.approx(2.0, rel=1e-3)
    heights = [plot.label_at(name)[1] for name in ("WrongAnswer", "Timeout", "NameError")]
    assert heights == sorted(heights)
    for name, count in counts.items():
        assert abs(plot.label_at(f" {count}")[1] - plot.label_at(name)[1]) < 3
