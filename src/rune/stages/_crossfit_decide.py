"""verdicts of all folds → result.json and result.md: each seed, and all seeds together. No model, no torch, no GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rune import config, store
from rune.stages import _counts, _crossfit_tables, gate, leakage
from rune.stages._crossfit_folder import CORPUS, DONE, drawn_at, place, temperatures
from rune.stages.pipeline import RunConfig
from rune.store import RunDir
from rune.types import Problem, Trajectory, Treatment, Verdict


def decide(folder: RunDir, settings: RunConfig) -> dict[str, Any]:
    """result.json and result.md from the verdicts: no model, no torch, no GPU."""
    problems = store.read_jsonl(folder / "problems.jsonl", Problem)
    seeds, folds = settings.crossfit.seeds, range(settings.benchmark.folds)
    by_temperature: dict[str, Any] = {}
    for temperature in temperatures(settings):
        verdicts = {
            seed: [
                v
                for fold in folds
                for v in store.read_jsonl(place(folder, seed, fold) / drawn_at(temperature) / "verdicts.jsonl", Verdict)
            ]
            for seed in seeds
        }
        per_seed = {
            str(seed): _decide(folder, settings, problems, found, [(seed, temperature)], settings.gate)
            for seed, found in verdicts.items()
        }
        n = max((v.draw for found in verdicts.values() for v in found), default=0) + 1
        pooled = [replace(v, draw=v.draw + i * n) for i, found in enumerate(verdicts.values()) for v in found]
        whole = replace(settings.gate, n=settings.gate.n * len(seeds))
        by_temperature[f"{temperature:g}"] = {
            "pooled": _decide(folder, settings, problems, pooled, [(s, temperature) for s in seeds], whole),
            "seeds": per_seed,
        }
    result = {
        "name": folder.path.name,
        "model": folder.manifest().get("model"),
        "device": _devices(folder, settings),
        "folds": settings.benchmark.folds,
        "seeds": list(seeds),
        "temperatures": by_temperature,
        "diagnostics": _diagnostics(folder, settings),
        "seconds": _seconds(folder, settings),
    }
    store.write_json(folder / "result.json", result)
    store.write_atomic(folder / "result.md", _crossfit_tables.page(store.read_json(folder / "result.json")))
    return result


def _decide(
    folder: RunDir,
    settings: RunConfig,
    problems: Sequence[Problem],
    verdicts: Sequence[Verdict],
    drawn: Sequence[tuple[int, float]],
    rule: gate.Config,
) -> dict[str, Any]:
    arms = settings.adapt.arms
    counts = _counts.count(
        problems, verdicts, treatment=rule.treatment, baseline=rule.baseline, least=rule.n, arms=arms
    )
    found = _leaks(folder, settings, counts, drawn, rule)
    decision = gate.decide(problems, verdicts, rule, arms=arms, leak=leakage.finding(found))
    return {"decision": config.plain(decision), "suspicious": found["suspicious"]}


def _leaks(
    folder: RunDir, settings: RunConfig, counts: _counts.Counts, drawn: Sequence[tuple[int, float]], rule: gate.Config
) -> dict[str, Any]:
    """The leakage check fold by fold, each against its own corpus; a task is as suspicious as in its worst seed."""
    rows: dict[str, leakage.Row] = {}
    items = 0
    pool = {t.trajectory_id: t for t in store.read_jsonl(folder / CORPUS, Trajectory)}
    for seed, temperature in drawn:
        for fold in range(settings.benchmark.folds):
            where = place(folder, seed, fold)
            trajectories = [pool[i] for i in store.read_json(where / "corpus.json")]
            items = max(items, len(trajectories))
            for row in leakage.rows(
                store.read_jsonl(where / "problems.jsonl", Problem),
                trajectories,
                store.read_jsonl(where / drawn_at(temperature) / "treatments.jsonl", Treatment),
                compared=[t for t in trajectories if not t.family],
            ):
                if row.task_id not in rows or row.suspicious:
                    rows[row.task_id] = row
    treated, base = counts.passes[rule.treatment], counts.passes[rule.baseline]
    return leakage.assess([rows[t] for t in counts.tasks], items, treated, base, counts.n)


def _diagnostics(folder: RunDir, settings: RunConfig) -> dict[str, Any]:
    """Mean over folds, for each seed: cosines, norms, effective rank, and what a swapped trajectory changes."""
    found: dict[str, Any] = {}
    for seed in settings.crossfit.seeds:
        records = [
            store.read_json(place(folder, seed, fold) / "diagnostics.json") for fold in range(settings.benchmark.folds)
        ]
        arm = settings.gate.treatment
        own = [r["arms"][arm] for r in records if arm in r["arms"]]
        swaps = [r["swap"][arm] for r in records if r["swap"].get(arm)]
        if own:
            found[str(seed)] = {
                "cosine_raw": _mean(o["cosine_raw"]["mean_off_diagonal"] for o in own),
                "cosine_centred": _mean(o["cosine_centred"]["mean_off_diagonal"] for o in own),
                "effective_rank": _mean(o["effective_rank"] for o in own),
                "delta_w_norm": _mean(o["delta_w_norm_mean"] for o in own),
                "ratio": {m: _mean(x for o in own for x in o["ratio"][m]) for m in own[0]["ratio"]},
                "swap_mean_lead_nats": _mean(s["mean_lead"] for s in swaps) if swaps else None,
            }
    return found


def _done(folder: RunDir, settings: RunConfig) -> dict[tuple[int, int], dict[str, Any]]:
    """What each fold left at its end, by seed and fold."""
    return {
        (seed, fold): store.read_json(place(folder, seed, fold) / DONE)
        for seed in settings.crossfit.seeds
        for fold in range(settings.benchmark.folds)
    }


def _devices(folder: RunDir, settings: RunConfig) -> str:
    """What the folds ran on: a run that was gone on with elsewhere names every device and how many folds each did."""
    began = folder.manifest().get("device")
    found = Counter(done.get("device", began) for done in _done(folder, settings).values())
    if len(found) == 1:
        return str(next(iter(found)))
    return ", ".join(f"{name} ({count} of the folds)" for name, count in found.most_common())


def _seconds(folder: RunDir, settings: RunConfig) -> dict[str, float]:
    """Of the collection, and of each fold's last go."""
    found = {"collect": folder.manifest()["stages"].get("collect", {}).get("seconds", 0.0)}
    for (seed, fold), done in _done(folder, settings).items():
        found[f"seed {seed} fold {fold}"] = done.get("seconds", 0.0)
    return found


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None
