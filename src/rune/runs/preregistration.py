"""The promise: hypothesis, arms, split, k, sampling, rule, unit, analysis and seeds, under one digest.

Made from a resolved config and its problems before anything is drawn. `rune run` freezes it in the run folder
(`preregistration.json`), `rune preregister CONFIG` prints it to be committed or mailed beforehand, and the
gate refuses to decide if today's config and split would promise something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rune import config
from rune.errors import GateError
from rune.types import Problem, Scorer, Split


class Design(NamedTuple):
    """What the effect's interval is over."""

    unit: str  # "task" or "domain"
    trainings: bool  # several of them, too


def _analysis(version: int, interval: str) -> Mapping[str, Any]:
    return {
        "version": version,
        "estimand": "mean over held-out tasks of (passes / draws), treatment − baseline, paired by task",
        "decision": "exact fraction of integers >= threshold",
        "interval": interval,
        "test": "exact sign-flip test over tasks; primary one-sided (greater), others two-sided",
        "multiplicity": "Holm over the secondary contrasts",
        "hierarchical": "beta-binomial per arm, grid posterior, flat prior on mean and intra-class correlation",
    }


_BOOTSTRAP = "{} bootstrap, percentile with small-sample expansion, the same resamples for all contrasts"
_CROSSED = "{}s and trainings as crossed random effects, t with Satterthwaite's degrees of freedom"

# How the numbers are made: what `analysis/` computes for each design, by version. New runs promise the last one, and a
# run is held to the one that it froze. Whoever changes an estimator adds a version to each design that it touches; an
# older one stays as long as `analysis/` can still compute it, and without it `gate` refuses the runs that promised it.
ANALYSES: Mapping[Design, Mapping[int, Mapping[str, Any]]] = {
    Design("task", trainings=False): {1: _analysis(1, _BOOTSTRAP.format("task"))},
    Design("domain", trainings=False): {2: _analysis(2, _BOOTSTRAP.format("domain"))},
    Design("task", trainings=True): {2: _analysis(2, _CROSSED.format("task"))},
    Design("domain", trainings=True): {2: _analysis(2, _CROSSED.format("domain"))},
}


def freeze(raw: Mapping[str, Any], problems: Sequence[Problem], *, version: int | None = None) -> dict[str, Any]:
    """The promise as plain data. `raw` is the resolved config, section by section. Pure.

    `version`: of the analysis, where a run has promised one; None: the newest. Raises GateError for one that is not
    computed any more.
    """
    gate = dict(raw.get("gate", {}))
    treatment, baseline = gate.get("treatment", "hypernet"), gate.get("baseline", "vanilla")
    threshold = gate.get("threshold_points", 5.0)
    held_out = [p.task_id for p in problems if p.split is Split.HELD_OUT]
    scorer = next((p.scorer for p in problems if p.split is Split.HELD_OUT), Scorer.EXECUTION)
    measure = scorer.measure()
    frozen: dict[str, Any] = {
        "hypothesis": {
            "h0": f"{treatment} does not raise {measure} over {baseline} on held-out tasks (true effect <= 0 points)",
            "h1": f"{treatment} raises {measure} over {baseline} on held-out tasks (true effect > 0 points)",
            "gate": _rule(gate, treatment, threshold),
        },
        "arms": _arms(raw),
        "primary": f"{treatment} − {baseline}",
        "split": {
            "held_out": held_out,
            "train": sum(p.split is Split.TRAIN for p in problems),
            "digest": config.digest(_as_written(raw, problems)),
        },
        **({"design": dict(raw["design"])} if "design" in raw else {}),
        **({"phase": dict(raw["phase"])} if "phase" in raw else {}),
        "sampling": dict(raw.get("sample", {})),
        "model": dict(raw.get("model", {})),
        "rule": {"unit": "percentage points", **gate},
        "analysis": {**_promised(raw.get("design", {}), version), **_counted(scorer)},
        "seeds": {
            "run": raw.get("run", {}).get("seed"),
            "split": raw.get("design", raw.get("benchmark", {})).get("split_seed"),
            "analysis": gate.get("seed"),
        },
        "gate_digest": config.digest(gate),
        "config_digest": config.digest(raw),
    }
    return {**frozen, "digest": digest(frozen)}


def _rule(gate: Mapping[str, Any], treatment: str, threshold: float) -> str:
    if most := gate.get("most_loss"):
        return f"passed if {treatment} loses less than {most:g} % of its pass@1 in every variant after the first"
    return f"passed if the measured effect is at least {threshold:g} percentage points, else failed"


def version_in(frozen: Any) -> int | None:
    """Of the analysis that a promise on disk names; None if it names none, as one that was edited may."""
    analysis = frozen.get("analysis") if isinstance(frozen, Mapping) else None
    version = analysis.get("version") if isinstance(analysis, Mapping) else None
    return int(version) if isinstance(version, int) else None


def _promised(design: Mapping[str, Any], version: int | None) -> Mapping[str, Any]:
    unit = "domain" if design.get("by") == "domain" else "task"
    known = ANALYSES[Design(unit, trainings=len(design.get("seeds", ())) > 1)]
    if version is not None and version not in known:
        raise GateError(
            f"analysis version {version} was promised, and {', '.join(map(str, known))} is what this rune computes for "
            "such a design; decide with the commit that manifest.json names"
        )
    return known[max(known) if version is None else version]


def _counted(scorer: Scorer) -> dict[str, Any]:
    """What a pass is, where it is more or other than the program's own test: most promises never said it."""
    return {} if scorer is Scorer.EXECUTION else {"scorer": scorer.value, "measure": scorer.measure()}


# Fields of a task in version 1, whose configs have no [design]: its promises must still be found kept.
_VERSION_1 = (
    *("task_id", "benchmark", "prompt", "entry_point", "test", "reference", "category", "split", "prelude"),
    "family",
)


def _as_written(raw: Mapping[str, Any], problems: Sequence[Problem]) -> list[Any]:
    rows: list[dict[str, Any]] = [config.plain(p) for p in problems]
    for row in rows:  # promises of before tasks named a scorer must still be found kept
        if row["scorer"] == Scorer.EXECUTION:
            del row["scorer"]
    if "design" in raw:
        return rows
    return [{k: row["domain" if k == "family" else k] for k in _VERSION_1} for row in rows]


def digest(frozen: Mapping[str, Any]) -> str:
    """Over everything but the digest itself."""
    return config.digest({k: v for k, v in frozen.items() if k != "digest"})


def differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """What changed between two promises: "rule.threshold_points: 5.0 → 4.0". Digests are left to the cause."""
    changes: list[str] = []
    for key in [*before, *(k for k in now if k not in before)]:
        path = f"{where}{key}"
        old, new = before.get(key), now.get(key)
        if old == new or (not where and key in ("digest", "gate_digest", "config_digest")):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += differences(old, new, f"{path}.")
        elif isinstance(old, list) and isinstance(new, list):
            changes.append(f"{path}: {_list_change(old, new)}")
        else:
            changes.append(f"{path}: {_short(old)} → {_short(new)}")
    # A setting outside the named fields (say, [train] steps) shows only in the whole config's digest.
    if not where and not changes and before.get("config_digest") != now.get("config_digest"):
        changes.append("config: a setting outside the analysis changed")
    return changes


def _list_change(old: Sequence[Any], new: Sequence[Any]) -> str:
    gone, come = [v for v in old if v not in new], [v for v in new if v not in old]
    if not gone and not come:
        return "order changed"
    parts = [f"− {_short(v)}" for v in gone[:3]] + [f"+ {_short(v)}" for v in come[:3]]
    return ", ".join(parts)


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 24 else text[:12] + "…"


def _arms(raw: Mapping[str, Any]) -> list[str]:
    adapt = raw.get("adapt", {})
    return [*adapt.get("arms", ()), *adapt.get("controls", ())]
