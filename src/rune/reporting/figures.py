"""The report's plots: matplotlib draws, colours and fonts come from the page.

Each figure is drawn with marker colours that become CSS variables in the SVG, so that one file serves light,
dark and print. Text stays text. Matrices become one small embedded image, never thousands of paths.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

INK, MUTED, LINE, CARD, GOOD, BAD, ACCENT = (f"#0a0b{i:02x}" for i in range(1, 8))
_NAMES = {INK: "ink", MUTED: "muted", LINE: "line", CARD: "card", GOOD: "good", BAD: "bad", ACCENT: "accent"}
ARMS = ("vanilla", "hypernet", "lora", "rag", "static", "wrong_trajectory", "empty_trajectory", "teacher", "oracle")
_ARM = {arm: f"#0a0c{i:02x}" for i, arm in enumerate(ARMS)}
_NAMES |= {colour: f"arm-{i}" for i, colour in enumerate(_ARM.values())}
WIDE, HALF = 9.0, 4.6  # inches: across the page, or in one of two columns

Draw = Callable[[Any, Any], None]


def arm_colour(arm: str) -> str:
    return _ARM.get(arm, MUTED)


def svg(name: str, label: str, size: tuple[float, float], draw: Draw, *, panels: int = 1) -> str:
    """`draw(figure, axes)` as an inline SVG. `label` is read out instead of the picture; `name` keeps ids apart."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10,
        "axes.edgecolor": LINE,
        "axes.labelcolor": MUTED,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.titlecolor": INK,
        "grid.color": LINE,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.labelcolor": INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for ax in axes:
            ax.patch.set_visible(False)
        draw(figure, axes if panels > 1 else axes[0])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _adapt(buffer.getvalue(), label)


def _adapt(text: str, label: str) -> str:
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    width = re.search(r'width="([\d.]+)pt"', body)
    natural = float(width.group(1)) if width else 360.0
    head = f'<svg role="img" aria-label="{label}" style="max-width:{1.6 * natural:.0f}px" '
    body = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'{head}viewBox="\1">', body, count=1)
    # matplotlib numbers its groups the same way in every figure; keep the ids that something refers to.
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: m.group(0) if m.group(1) in used else "", body)
    for colour, name in _NAMES.items():
        body = body.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", body).strip()


# --------------------------------------------------------------------------- effects


def forest(rows: Sequence[Mapping[str, Any]], threshold: float, *, narrow: bool, measure: str = "pass@1") -> str:
    """Effects with intervals; the gate's threshold as a line. Rows have name, points, low, high, role.

    `measure` is what the effects are differences of.
    """

    def draw(_: Any, ax: Any) -> None:
        ax.axvline(0, color=MUTED, lw=1)
        ax.axvline(threshold, color=ACCENT, lw=1.2, ls=(0, (4, 3)))
        for y, row in enumerate(reversed(rows)):
            first = row["role"] == "primary"
            colour = ACCENT if first else INK if row["role"] == "secondary" else MUTED
            ax.plot([row["low"], row["high"]], [y, y], color=colour, lw=3.2 if first else 1.8, solid_capstyle="round")
            ax.plot([row["points"]], [y], "s" if first else "o", color=colour, ms=8 if first else 6)
            if not narrow:
                text = f"{row['points']:+.1f}  [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")
                ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize=9.5, color=INK)
        ax.set_yticks(range(len(rows)), [r["name"].replace("_trajectory", " traj.") for r in reversed(rows)])
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.set_ylim(-0.7, len(rows) - (0.2 if not narrow else 0.3))
        ax.grid(axis="x", lw=0.5, alpha=0.6)
        ax.set_xlabel(
            "percentage points (dashed: the gate)" if narrow else f"difference in {measure}, percentage points"
        )
        if not narrow:
            ax.annotate(
                f"gate: {threshold:g}", (threshold, len(rows) - 0.2), (4, -2), textcoords="offset points",
                color=ACCENT, fontsize=9, va="top",
            )  # fmt: skip

    size = (HALF, 0.9 + 0.34 * len(rows)) if narrow else (WIDE, 0.9 + 0.36 * len(rows))
    return svg("forest-narrow" if narrow else "forest", "Effects with intervals, one line per comparison", size, draw)


def strip(tasks: Sequence[str], passes: Mapping[str, Sequence[int]], n: int) -> str:
    """Tasks down, arms across, colour: share of draws passed. `tasks` come sorted."""

    def draw(figure: Any, ax: Any) -> None:
        shares = [[passes[arm][i] / n for arm in passes] for i in range(len(tasks))]
        image = ax.imshow(shares, cmap=_shade(), vmin=0, vmax=1, aspect="auto", interpolation="none")
        ax.set_xticks(range(len(passes)), [_short(a) for a in passes], rotation=60, ha="left", rotation_mode="anchor")
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        if len(tasks) <= 40:
            ax.set_yticks(range(len(tasks)), tasks, fontsize=8.5)
        else:
            ax.set_yticks([])
            ax.set_ylabel(f"{len(tasks)} tasks, from lost (bottom) to gained (top)")
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        bar = figure.colorbar(image, ax=ax, shrink=0.5, aspect=18, pad=0.02)
        bar.set_ticks([0, 0.5, 1], labels=["0 %", "50 %", "100 %"])
        bar.outline.set_visible(False)

    height = 1.0 + (0.185 * len(tasks) if len(tasks) <= 40 else min(9.0, 0.05 * len(tasks)))
    return svg("strip", "Share of draws passed, per task and arm", (HALF, height), draw)


def curves(by_arm: Mapping[str, Sequence[float]]) -> str:
    """pass@k for k = 1…n."""

    def draw(_: Any, ax: Any) -> None:
        for arm, values in by_arm.items():
            main = arm in ("vanilla", "hypernet")
            ax.plot(
                range(1, len(values) + 1),
                [100 * v for v in values],
                color=arm_colour(arm),
                lw=2.4 if main else 1.3,
                marker="o",
                ms=4 if main else 3,
                label=_short(arm),
            )
        ax.set_xlabel("k, draws per task")
        ax.set_ylabel("pass@k, %")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(axis="y", lw=0.5, alpha=0.6)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return svg("curves", "pass@k by arm", (HALF, 2.9), draw)


def power_curve(
    curve: Sequence[Mapping[str, float]], threshold: float, observed: float | None, *, name: str = "power"
) -> str:
    """Chance that the gate passes, and that the effect is significant, by true effect."""

    def draw(_: Any, ax: Any) -> None:
        x = [p["true_points"] for p in curve]
        ax.plot(x, [100 * p["passes"] for p in curve], color=ACCENT, lw=2.4, marker="o", ms=3.5, label="gate passes")
        ax.plot(x, [100 * p["significant"] for p in curve], color=INK, lw=1.4, ls="--", label="significant (one-sided)")
        ax.axhline(80, color=LINE, lw=1)
        ax.axvline(threshold, color=MUTED, lw=1, ls=":")
        if observed is not None:
            ax.axvline(observed, color=GOOD, lw=1.5)
            ax.text(observed, 103, "measured", color=GOOD, fontsize=8.5, ha="center")
        ax.set_ylim(0, 102)
        ax.set_xlabel("true effect, percentage points")
        ax.set_ylabel("chance, %")
        ax.grid(lw=0.4, alpha=0.5)
        ax.legend(loc="lower right")

    return svg(name, "Power of the gate by true effect", (HALF, 2.9), draw)


# --------------------------------------------------------------------------- adapters and training


def profile(by_arm: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """‖ΔW‖_F per module type: bars are means over layers, whiskers the smallest and largest layer."""

    def draw(_: Any, ax: Any) -> None:
        modules = list(dict.fromkeys(m for arm in by_arm.values() for m in arm))
        width = 0.8 / len(by_arm)
        for i, (arm, values) in enumerate(by_arm.items()):
            for j, module in enumerate(modules):
                layers = values.get(module) or [0.0]
                mean = sum(layers) / len(layers)
                x = j + (i - (len(by_arm) - 1) / 2) * width
                ax.bar(x, mean, width * 0.9, color=arm_colour(arm), label=_short(arm) if j == 0 else None)
                ax.plot([x, x], [min(layers), max(layers)], color=INK, lw=0.8)
        ax.set_xticks(range(len(modules)), [m.removesuffix("_proj") for m in modules])
        ax.set_ylabel("‖ΔW‖ (Frobenius)")
        ax.grid(axis="y", lw=0.5, alpha=0.6)
        ax.legend(loc="upper left")

    return svg("profile", "Norm of the weight change per module type", (HALF, 2.9), draw)


def cosines(raw: Sequence[Sequence[float]], centred: Sequence[Sequence[float]]) -> str:
    """Pairwise cosine of ΔW between tasks, raw and mean-centred, on one scale from −1 to 1."""

    def draw(figure: Any, axes: Any) -> None:
        for ax, matrix, title in zip(axes, (raw, centred), ("raw", "mean-centred"), strict=True):
            image = ax.imshow(matrix, cmap=_diverging(), vmin=-1, vmax=1, interpolation="none")
            ax.set_title(title)
            ax.set_xticks([])
            ax.set_yticks([])
            for side in ("left", "bottom"):
                ax.spines[side].set_visible(False)
        bar = figure.colorbar(image, ax=list(axes), shrink=0.8, aspect=18, pad=0.02)
        bar.outline.set_visible(False)

    return svg("cosines", "Cosine between the adapters of two tasks", (HALF, 2.5), draw, panels=2)


def losses(name: str, steps: Sequence[float], terms: Mapping[str, Sequence[float]]) -> str:
    """Training curves of one phase; the total loss bold.

    Left out: a term that equals the loss, one that is no loss (a lead in nats), and steps at which a term was not
    computed (recorded as 0), which a logarithmic axis would draw as a cliff.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    def draw(_: Any, ax: Any) -> None:
        logarithmic = all(v > 0 for v in terms.get("loss", [0]))
        shown = [t for t in terms if t == "loss" or (terms[t] != terms.get("loss") and not t.endswith("_lead"))]
        for i, term in enumerate(shown[:8]):
            kept = [(s, v) for s, v in zip(steps, terms[term], strict=True) if v > 0 or not logarithmic]
            if not kept:
                continue
            x, y = thin([s for s, _ in kept], [v for _, v in kept])
            total = term == "loss"
            colour = ACCENT if total else list(_ARM.values())[2 + i % 7]
            ax.plot(x, y, color=colour, lw=2.2 if total else 1.2, label=term.replace("_", " "))
        if logarithmic:
            ax.set_yscale("log")
            plain = FuncFormatter(lambda value, _: f"{value:g}")
            ax.yaxis.set_major_formatter(plain)
            low, high = ax.get_ylim()
            ax.yaxis.set_minor_formatter(plain if high / low < 12 else NullFormatter())
        ax.set_xlabel("step")
        ax.set_ylabel("loss")
        ax.grid(axis="y", lw=0.5, alpha=0.6)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0, handlelength=1.2)

    return svg(f"loss-{name}", f"Training loss of {name}", (HALF, 2.9), draw)


def thin(x: Sequence[float], y: Sequence[float], most: int = 200) -> tuple[list[float], list[float]]:
    """At most `most` points: means over equal blocks of steps."""
    if len(x) <= most:
        return list(x), list(y)
    edges = [round(i * len(x) / most) for i in range(most + 1)]
    blocks = [(a, b) for a, b in itertools.pairwise(edges) if b > a]
    return [x[a] for a, _ in blocks], [sum(y[a:b]) / (b - a) for a, b in blocks]


def bars(name: str, label: str, values: Mapping[str, int]) -> str:
    """Horizontal bars, longest first, the number at the end."""

    def draw(_: Any, ax: Any) -> None:
        ordered = sorted(values.items(), key=lambda kv: kv[1])
        ax.barh([k for k, _ in ordered], [v for _, v in ordered], color=ACCENT, height=0.62)
        for y, (_, value) in enumerate(ordered):
            ax.text(value, y, f" {value}", va="center", fontsize=9, color=INK)
        ax.set_xticks([])
        ax.tick_params(axis="y", length=0)
        ax.spines["bottom"].set_visible(False)
        ax.set_xlim(0, 1.12 * max(values.values()))
        ax.set_ylim(-0.5, max(2, len(values)) - 0.5)

    return svg(name, label, (HALF, 0.4 + 0.3 * max(2, len(values))), draw)


def _short(arm: str) -> str:
    return arm.replace("_trajectory", " traj.")


def _shade() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("passes", ["#d9a38f", "#d8cfa8", "#7fb8a4", "#1f7a6d"])


def _diverging() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("cosine", ["#2f6fb0", "#9dbbd6", "#e9e4da", "#e0a07c", "#b4462c"])
