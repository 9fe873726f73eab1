"""The decision over all cells of an experiment: seals checked, verdicts put together, tables written. Loads no model.

A plain run is one cell: decision.json and leakage.json are its gate's. With several cells there are result.json and
result.md too: for each variant every seed by itself, and all seeds together; decision.json is the first variant's, all
seeds together, which is what the exit code says. Pooled figures take each task's draws of all seeds together; their
intervals are over tasks (or domains) and trainings.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rune import config
from rune.analysis import evidence, relative
from rune.analysis import gate as rule
from rune.errors import GateError
from rune.reporting import words
from rune.runs import records, store
from rune.runs.records import Records
from rune.runs.store import RunDir
from rune.stages import gate, report
from rune.study import phases, tables
from rune.study.cells import MAIN, Cell, variants
from rune.study.folders import Experiment, check_promises
from rune.types import Decision, Problem


class Done(NamedTuple):
    """One cell as the decision sees it."""

    cell: Cell
    records: Records
    device: str
    seconds: float


class Source(NamedTuple):
    """An experiment as the decision sees it, whatever version of the program wrote it."""

    folder: RunDir  # where the results go
    gate: rule.Config
    report: report.Config
    problems: Sequence[Problem]
    variants: Mapping[str, Mapping[str, Any]]  # name → its settings; the first one decides
    cells: Sequence[Done]
    verify: Callable[[], None]  # raises GateError if anything under seal changed
    seconds: Mapping[str, float]  # what was done once for all cells
    by: str = "task"  # "domain": the design draws domains, so intervals are over them

    @property
    def phase(self) -> dict[str, Any]:
        """What opened the experiment's phase, as its manifest has it; empty if an earlier version made it."""
        return dict(self.folder.manifest().get("phase", {}))

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(done.cell.seed for done in self.cells))

    @property
    def folds(self) -> int:
        return len({done.cell.fold for done in self.cells})

    def of(self, variant: str, *seeds: int) -> list[Done]:
        """The cells of a variant, seed by seed."""
        wanted = seeds or self.seeds
        return [d for seed in wanted for d in self.cells if d.cell.variant == variant and d.cell.seed == seed]

    @property
    def single(self) -> bool:
        return len(self.cells) == 1


def of_one_cell(folder: RunDir, raw: Mapping[str, Any]) -> Source:
    """A run folder by itself, of whatever version. Of its config only what decides and shows is read."""
    manifest = folder.manifest()
    cell = Cell(MAIN, int(raw.get("run", {}).get("seed", 0)), -1)
    return Source(
        folder=folder,
        gate=config.build(rule.Config, raw.get("gate", {}), where="gate"),
        report=config.build(report.Config, raw.get("report", {}), where="report"),
        problems=store.read_jsonl(folder / "problems.jsonl", Problem),
        variants={MAIN: {}},
        cells=[Done(cell, records.of_run(folder), str(manifest.get("device", "unknown")), 0.0)],
        verify=lambda: gate.demand(folder),
        seconds={},
        by=str(raw.get("design", {}).get("by", "task")),
    )


def of_experiment(experiment: Experiment) -> Source:
    """An experiment that this version wrote."""
    if experiment.single:
        return of_one_cell(experiment.folder, config.plain(experiment.settings))

    def verify() -> None:
        gate.demand_promise(experiment.folder)
        check_promises(experiment)
        for place in experiment.places():
            gate.demand(place.folder)

    cells = []
    for place in experiment.places():
        manifest = place.folder.manifest() if place.folder.manifest_path.is_file() else {}
        stages = manifest.get("stages", {}).values()
        cells.append(
            Done(
                place.cell,
                records.of_run(place.folder),
                str(manifest.get("device", "unknown")),
                round(sum(float(s.get("seconds", 0.0)) for s in stages), 3),
            )
        )
    return Source(
        folder=experiment.folder,
        gate=experiment.settings.gate,
        report=experiment.settings.report,
        problems=store.read_jsonl(experiment.folder / "problems.jsonl", Problem),
        variants=variants(experiment.settings.design),
        cells=cells,
        verify=verify,
        seconds={},
        by=experiment.settings.design.by,
    )


def decide(source: Source) -> Decision:
    """decision.json and leakage.json; with several cells also result.json and result.md.

    Raises GateError if anything under seal changed in any cell, and for whatever the gate refuses.
    """
    source.verify()
    decide_on = _once(source)
    decision, found = _decided(source, decide_on)
    if not source.single:
        result = {**_head(source), "variants": {name: _variant(source, name, decide_on) for name in source.variants}}
        if source.gate.most_loss:
            result |= {
                "most_loss": source.gate.most_loss,
                "answer": decision.answer,
                "losses": decision.details["losses"],
            }
        store.write_json(source.folder / "result.json", result)
        store.write_atomic(source.folder / "result.md", tables.page(store.read_json(source.folder / "result.json")))
    store.write_json(source.folder / "leakage.json", found)
    store.write_json(source.folder / "decision.json", config.plain(decision))
    return decision


def digest_of(folder: RunDir) -> str:
    """sha256 of what a run decided: decision.json, or result.json where an older version wrote no other."""
    file = folder / "decision.json"
    return store.sha256_file(file if file.is_file() else folder / "result.json")


def made_again(source: Source) -> Decision:
    """The decision as its verdicts give it now, written nowhere. Raises GateError for whatever the gate refuses."""
    return _decided(source, _once(source))[0]


class DecideOn(Protocol):
    """Decision and leakage check over a variant's cells; of these seeds, or of all."""

    def __call__(self, variant: str, *seeds: int) -> tuple[Decision, dict[str, Any]]: ...


def _once(source: Source) -> DecideOn:
    """Each is asked for by the decision, by the losses and by the variant's tables, and made once."""

    @functools.cache
    def made(variant: str, seeds: tuple[int, ...]) -> tuple[Decision, dict[str, Any]]:
        return over(source, source.of(variant, *seeds))

    return lambda variant, *seeds: made(variant, seeds or tuple(source.seeds))


def _decided(source: Source, decide_on: DecideOn) -> tuple[Decision, dict[str, Any]]:
    """The first variant's, by the gate's rule; or by what the others lose against it, if that is the rule."""
    name, *others = source.variants
    decision, found = decide_on(name)
    if not source.gate.most_loss:
        return decision, found
    if not others:
        raise GateError("[gate] most_loss compares variants with the first one, and there is one alone; add another")
    return _by_loss(decision, losses(source, decide_on), source.gate), found


def losses(source: Source, decide_on: DecideOn) -> list[relative.Loss]:
    """What each arm loses from the first variant to each other one. Raises GateError if they cannot be compared."""
    name, *others = source.variants

    def table(variant: str) -> relative.Table:
        return relative.table(decide_on(variant)[0], [decide_on(variant, seed)[0] for seed in source.seeds])

    reference = table(name)
    domains = {p.task_id: p.domain for p in source.problems}
    clusters = [domains[task] for task in reference.tasks] if source.by == "domain" else []
    return [
        loss
        for other in others
        for loss in relative.losses(
            reference,
            table(other),
            variant=other,
            clusters=clusters,
            level=source.gate.level,
            resamples=source.gate.resamples,
            seed=source.gate.seed,
        )
    ]


def _by_loss(decision: Decision, found: Sequence[relative.Loss], settings: rule.Config) -> Decision:
    """Passed if the treated arm loses less than `most_loss` percent in every other variant."""
    own = [loss for loss in found if loss.condition == settings.treatment]
    passed = bool(own) and all(loss.percent < settings.most_loss for loss in own)
    said = "; ".join(
        f"{settings.treatment} loses {loss.percent:.1f} % of its pass@1 in {loss.variant}, "
        f"interval {evidence.span(loss.interval)}"
        for loss in own
    )
    rule_said = f"The rule is a loss below {settings.most_loss:g} %: {said}."
    return replace(
        decision,
        passed=passed,
        answer=rule.PASSED if passed else rule.FAILED,
        evidence=f"{rule_said} Beside it, by the points rule on the first variant: {decision.evidence}",
        reasons=(rule_said, *decision.reasons),
        details={**decision.details, "losses": [config.plain(loss) for loss in found]},
    )


def over(source: Source, cells: Sequence[Done]) -> tuple[Decision, dict[str, Any]]:
    """Decision and leakage check over some cells, both with the phase and its overrides."""
    decision, found = rule.over(
        source.problems,
        [done.records for done in cells],
        source.gate,
        seeds=[done.cell.seed for done in cells],
        by=source.by,
    )
    said = words.overrides(source.phase)
    return phases.marked(decision, source.phase), {**found, **({"overrides": said} if said else {})}


def leaks(source: Source) -> dict[str, Any]:
    """leakage.json made again: the check of the first variant's cells."""
    first, *_ = source.variants
    _, found = over(source, source.of(first))
    store.write_json(source.folder / "leakage.json", found)
    return found


def report_on(source: Source, result: Mapping[str, Any] | None) -> Path:
    """report.html, report.md and assessment.md over all cells of the first variant, and each variant's own tables.

    `result`: result.json, where there are several cells.
    """
    return report.run(source.folder, source.report, pooled(source), result)


def pooled(source: Source) -> Records:
    """The records behind decision.json."""
    first, *_ = source.variants
    some = source.of(first)
    return some[0].records if source.single else records.together(source.problems, [d.records for d in some])


def readme(source: Source, path: Path) -> None:
    """Put the result between a README's markers: `result` for one cell, the run's name for several."""
    if source.single:
        report.write_readme(source.folder, source.report, path, pooled(source))
        return
    result = store.read_json(source.folder / "result.json")
    store.replace_block(path, str(result["run"]), tables.brief(result))


def _head(source: Source) -> dict[str, Any]:
    manifest = source.folder.told()
    dtype = manifest.get("dtype")
    return {
        "name": source.folder.path.name,
        "run": str(manifest.get("name", "")).removesuffix("-crossfit"),
        "model": manifest.get("model"),
        **({"dtype": dtype} if dtype else {}),
        "device": _devices(source.cells),
        **({"phase": source.phase} if source.phase.get("number", 1) > 1 else {}),
        "folds": source.folds,
        "seeds": source.seeds,
        "seconds": {**source.seconds, **{done.cell.name: done.seconds for done in source.cells}},
    }


def _variant(source: Source, name: str, decide_on: DecideOn) -> dict[str, Any]:
    """One variant: all seeds together, seed by seed, and its adapters."""

    def told(*seeds: int) -> dict[str, Any]:
        decision, found = decide_on(name, *seeds)
        return {"decision": config.plain(decision), "suspicious": found["suspicious"]}

    return {
        "settings": source.variants[name],
        "pooled": told(),
        "seeds": {str(seed): told(seed) for seed in source.seeds},
        "diagnostics": {
            str(seed): seen
            for seed in source.seeds
            if (seen := _adapters(source.of(name, seed), source.gate.treatment))
        },
    }


def _adapters(cells: Sequence[Done], arm: str) -> dict[str, Any]:
    """Mean over cells: cosines, norms, effective rank, and what a swapped trajectory changes."""
    diagnostics = [done.records.diagnostics for done in cells]
    own = [d["arms"][arm] for d in diagnostics if arm in d.get("arms", {})]
    swaps = [d["swap"][arm] for d in diagnostics if d.get("swap", {}).get(arm)]
    if not own:
        return {}
    return {
        "cosine_raw": tables.mean(o["cosine_raw"]["mean_off_diagonal"] for o in own),
        "cosine_centred": tables.mean(o["cosine_centred"]["mean_off_diagonal"] for o in own),
        "effective_rank": tables.mean(o["effective_rank"] for o in own),
        "delta_w_norm": tables.mean(o["delta_w_norm_mean"] for o in own),
        "ratio": {m: tables.mean(x for o in own for x in o["ratio"][m]) for m in own[0]["ratio"]},
        "swap_mean_lead_nats": tables.mean(s["mean_lead"] for s in swaps),
    }


def _devices(cells: Sequence[Done]) -> str:
    """What the cells ran on: an experiment gone on with elsewhere names every device and how many cells each did."""
    found = Counter(done.device for done in cells)
    if len(found) == 1:
        return next(iter(found))
    return ", ".join(f"{name} ({count} of the cells)" for name, count in found.most_common())
