"""result.md of an experiment of several cells, and its block for a README, from result.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rune.analysis import evidence
from rune.analysis.relative import Loss
from rune.models import identity
from rune.reporting import words
from rune.reporting.tables import Table, markdown
from rune.runs import store
from rune.types import Contrast, Decision

SHOWN = ("vanilla", "rag", "lora", "static", "hypernet", "wrong_trajectory")  # in the README's block


def page(result: Mapping[str, Any]) -> str:
    """Each variant: the pooled answer, arms, contrasts, one line a seed; then the adapters."""
    model, seeds = result["model"] or {}, result["seeds"]
    lines = [
        f"# {result['name']}",
        "",
        f"`{model.get('name')}` (sha256 `{str(model.get('sha256'))[:12]}`), "
        f"{identity.words(model, str(result.get('dtype') or ''))}, {result['device']}; "
        f"{_how(result)}, seeds {', '.join(map(str, seeds))}.",
        *(["", f"{said}."] if (said := words.phase(result.get("phase", {}))) else []),
        *(line for one in words.overrides(result.get("phase", {})) for line in ("", f"**{one}.**")),
    ]
    if "losses" in result:
        title = f"**{result['answer']}**: pass@1 may lose less than {result['most_loss']:g} %."
        lines += ["", "## What each arm loses", "", title, "", markdown(_losses(result))]
    for name, found in result["variants"].items():
        pooled = _decision(found["pooled"])
        lines += [
            "",
            f"## {_title(name, found['settings'])}",
            "",
            f"**{pooled.answer}** over all seeds together. {pooled.evidence}",
        ]
        for table in (_arms(pooled), _contrasts(pooled), _seeds(found["seeds"])):
            lines += ["", f"### {table.title}", "", markdown(table)]
        if suspicious := found["pooled"]["suspicious"]:
            lines += ["", f"Suspicious in the leakage check: {', '.join(suspicious)}."]
        if found["diagnostics"]:
            lines += ["", "### Adapters", "", markdown(_adapters(found["diagnostics"]))]
    return "\n".join(lines) + "\n"


def _how(result: Mapping[str, Any]) -> str:
    if result["folds"] > 1:
        return f"{result['folds']} folds, every task held out once"
    return "one held-out split"


def _title(name: str, settings: Mapping[str, Any]) -> str:
    if set(settings) == {"sample.temperature"}:
        return f"Temperature {settings['sample.temperature']:g}"
    return name if not settings else f"{name}: " + ", ".join(f"{k} = {v}" for k, v in settings.items())


def brief(result: Mapping[str, Any]) -> str:
    """The README's version: one row a variant, the answer and the two differences that matter."""
    only_heat = all(set(v["settings"]) == {"sample.temperature"} for v in result["variants"].values())
    header = ("temperature" if only_heat else "variant", *SHOWN, "effect, points", "right − wrong", "answer")
    rows, cosines, tasks, measure = [], [], 0, ""
    for name, found in result["variants"].items():
        pooled = _decision(found["pooled"])
        tasks, measure = len(pooled.details["tasks"]), pooled.scorer.measure()
        arms = {a.condition: f"{100 * a.pass_at_1:.1f}" for a in pooled.arms}
        wrong = next((c for c in pooled.contrasts if c.baseline == "wrong_trajectory"), None)
        cells = [_difference(c) if c else "–" for c in (pooled.contrasts[0], wrong)]
        label = f"{found['settings']['sample.temperature']:g}" if only_heat else name
        rows.append((label, *(arms.get(a, "–") for a in SHOWN), *cells, f"**{pooled.answer}**: {_why(pooled)}"))
        cosines += [d["cosine_raw"] for d in found["diagnostics"].values()]
    held = f"each held out once in {result['folds']} folds" if result["folds"] > 1 else "held out"
    said = "".join(f"\n\n**{one}.**" for one in words.overrides(result.get("phase", {})))
    return (
        f"{markdown(Table('', header, tuple(rows)))}\n\n{measure} in %, {tasks} tasks, {held}, training seeds: "
        f"{', '.join(map(str, result['seeds']))}; {result['device']}; mean cosine of the generated ΔW "
        f"{_number(_mean(cosines), 3)}; {_interval(_decision(next(iter(result['variants'].values()))['pooled']))}."
        f"{said}"
    )


def _decision(found: Mapping[str, Any]) -> Decision:
    return store.decode(Decision, found["decision"], where="result.json")


def _why(decision: Decision) -> str:
    """The evidence's first clause: a pass that is no trajectory's says so wherever the answer stands."""
    clause = decision.evidence.partition(";")[0]
    return clause[:1].lower() + clause[1:]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _difference(contrast: Contrast) -> str:
    return f"{evidence.points(contrast.points)} {evidence.span(contrast.interval)}"


def _interval(decision: Decision) -> str:
    """ "95 % interval over tasks and trainings"."""
    found = decision.contrasts[0].interval
    return f"{100 * found.level:g} % interval over {found.over}"


def _losses(result: Mapping[str, Any]) -> Table:
    """Relative loss of pass@1 against the first variant, percent, by arm."""
    first = next(iter(result["variants"]))
    rows = []
    for raw in result["losses"]:
        loss = store.decode(Loss, raw, where="result.json")
        shares = (f"{100 * loss.reference_pass_at_1:.1f}", f"{100 * loss.pass_at_1:.1f}")
        interval = f"[{_signed(loss.interval.low)}, {_signed(loss.interval.high)}]"
        rows.append((loss.condition, loss.variant, *shares, _signed(loss.percent), interval))
    over = store.decode(Loss, result["losses"][0], where="result.json").interval.over
    header = ("arm", "variant", f"{first}, %", "variant, %", "loss, %", f"95 % interval over {over}")
    return Table("", header, tuple(rows))


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _arms(decision: Decision) -> Table:
    rows = [
        (
            a.condition,
            f"{100 * a.pass_at_1:.1f}",
            f"{a.interval.low:.1f} – {a.interval.high:.1f}",
            f"{a.num_passed} / {a.num_samples}",
        )
        for a in decision.arms
    ]
    return Table("Arms", ("arm", f"{decision.scorer.measure()}, %", _interval(decision), "passed / draws"), tuple(rows))


def _contrasts(decision: Decision) -> Table:
    rows = [
        (
            c.name,
            evidence.points(c.points),
            evidence.span(c.interval),
            evidence.p_promised(c),
            "–" if c.p_adjusted is None else evidence.p_text(c.p_adjusted),
        )
        for c in decision.contrasts
    ]
    return Table(
        "Paired differences, points",
        ("contrast", "points", _interval(decision), "p, over tasks", "p, Holm"),
        tuple(rows),
    )


def _seeds(seeds: Mapping[str, Any]) -> Table:
    decisions = {seed: _decision(found) for seed, found in seeds.items()}
    contrasts = next(iter(decisions.values())).contrasts
    shown = [c.name for c in contrasts if c.treatment == contrasts[0].treatment]
    rows = []
    for seed, decision in decisions.items():
        by_name = {c.name: c for c in decision.contrasts}
        rows.append((seed, decision.answer, *(_difference(by_name[n]) for n in shown)))
    return Table(f"Seed by seed, {_interval(next(iter(decisions.values())))}", ("seed", "answer", *shown), tuple(rows))


def _adapters(diagnostics: Mapping[str, Any]) -> Table:
    rows = [
        (
            seed,
            _number(d["cosine_raw"], 4),
            _number(d["cosine_centred"], 4),
            _number(d["effective_rank"], 1),
            _number(d["delta_w_norm"], 2),
            _number(d["swap_mean_lead_nats"], 2),
        )
        for seed, d in diagnostics.items()
    ]
    header = ("seed", "mean cosine of ΔW", "mean-centred", "effective rank", "‖ΔW‖_F", "own − swapped, nats")
    return Table("Adapters", header, tuple(rows))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
