"""The cross-fitted experiment: every task is held out once, with several training seeds.

    problems ─ k folds ─▶ for each seed and fold: train without the fold, adapt, sample, score ─▶ one decision over all

The loop works on every task once; a fold trains on the trajectories of the other folds only, and is checked for that
like a run. Arms, draws and the gate's rule are those of the config. Adapters go from the hypernetwork to the engine
as tensors where the engine takes them: hundreds of folders would be written for nothing.

    runs/<name>-crossfit-<digest8>/
      manifest.json config.toml problems.jsonl (all tasks) attempts.jsonl imports.json
      corpus.jsonl              every trajectory that some fold trained on
      seed-S/fold-F/            problems.jsonl (the fold's), corpus.json (ids), checkpoints/, diagnostics.json
      seed-S/fold-F/t0.8/       treatments.jsonl, samples.jsonl, verdicts.jsonl
      result.json, result.md    per seed and pooled, for each temperature

Interrupted at any point, `--resume` goes on; a fold that is done is kept. Pooled figures take each task's draws of all
seeds together, so the interval is over tasks; how far seeds differ stands beside it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rune import __version__, config, console, plugins, store
from rune.benchmarks import _exclusion, _split
from rune.corpus import reading
from rune.errors import ConfigError
from rune.stages import _check, _crossfit_workers, _provenance, _seal, adapt, collect, pipeline
from rune.stages import sample as sampling
from rune.stages import score as scoring
from rune.stages import train as training
from rune.stages._context import Context
from rune.stages._crossfit_decide import decide
from rune.stages._crossfit_folder import CORPUS, DONE, Place, drawn_at, place, temperatures
from rune.stages._crossfit_hands import Hands
from rune.stages.pipeline import RunConfig
from rune.store import RunDir
from rune.types import Problem, Split, Trajectory, Treatment


def run(settings: RunConfig, *, resume: bool, jobs: int = 1) -> RunDir:
    """Everything that is not done; folds by `jobs` processes. Raises ConfigError and the stages' own errors."""
    folder = begin(settings, resume=resume)
    go_on(folder, settings, jobs=jobs)
    return folder


def begin(settings: RunConfig, *, resume: bool) -> RunDir:
    """The run's folder, its rule sealed. Raises ConfigError for what a new one cannot use, before it is made."""
    _check.arms(settings)
    name = f"{settings.run.name}-crossfit"
    if not RunDir.place(Path(settings.run.folder), name, settings).exists():
        _check.inputs(settings)
        for start in settings.crossfit.start_from:
            _check.start(start, "crossfit.start_from", settings.train)
        pipeline.Machinery(settings).device  # noqa: B018 (raises for a GPU that is not there)
    _parts(settings, tasks(settings))
    folder = RunDir.create(
        Path(settings.run.folder),
        name,
        settings,
        extra={"rune": __version__, "environment": _provenance.environment()},
        resume=resume,
    )
    # The rule is promised with the rest of the config, before anything is drawn; `reopen` holds it to that.
    if "seals" not in folder.manifest():
        folder.update(seals={"config.toml": store.sha256_file(folder / "config.toml")})
    _seal.demand_config(folder)
    return folder


def go_on(folder: RunDir, settings: RunConfig, *, jobs: int = 1) -> None:
    """What is left of a run, then the decision. `settings` are the folder's own."""
    problems = tasks(settings)
    parts = _parts(settings, problems)
    with folder.lock():
        store.write_jsonl(folder / "problems.jsonl", problems)
        if jobs == 1:
            with pipeline.machinery(settings) as context:
                Experiment(folder, settings, context, problems, parts=parts).run(pending(folder, settings))
        elif wanted := pending(folder, settings):
            gather(folder, settings, problems)
            gpus = _crossfit_workers.gpus() if pipeline.Machinery(settings).device == "cuda" else []
            _crossfit_workers.run(folder, wanted, jobs, gpus=gpus, total=len(settings.crossfit.seeds) * len(parts))
        settle(folder, settings)
    decide(folder, settings)


def gather(folder: RunDir, settings: RunConfig, problems: Sequence[Problem]) -> None:
    """The trajectories that all folds share: what must be there before processes share the folds."""
    with pipeline.machinery(settings) as context:
        Experiment(folder, settings, context, problems, parts=_parts(settings, problems)).collect()


def _parts(settings: RunConfig, problems: Sequence[Problem]) -> list[list[str]]:
    return _split.deal(problems, k=settings.benchmark.folds, seed=settings.benchmark.split_seed)


def pending(folder: RunDir, settings: RunConfig) -> list[Place]:
    """The folds that are not done."""
    every = [Place(s, f) for s in settings.crossfit.seeds for f in range(settings.benchmark.folds)]
    return [p for p in every if not (place(folder, p.seed, p.fold) / DONE).exists()]


def settle(folder: RunDir, settings: RunConfig) -> None:
    """Corpora of finished folds as ids, each trajectory once for all folds."""
    path = folder / CORPUS
    known = {t.trajectory_id for t in store.read_jsonl(path, Trajectory)}
    for seed in settings.crossfit.seeds:
        for fold in range(settings.benchmark.folds):
            where = place(folder, seed, fold)
            corpus = store.read_jsonl(where / "trajectories.jsonl", Trajectory)
            if not corpus or not (where / DONE).exists():
                continue
            with store.Appender(path) as log:
                for trajectory in corpus:
                    if trajectory.trajectory_id not in known:
                        known.add(trajectory.trajectory_id)
                        log.write(trajectory)
            store.write_json(where / "corpus.json", [t.trajectory_id for t in corpus])
            (where / "trajectories.jsonl").unlink()


def work(path: Path, wanted: Sequence[str], *, jobs: int) -> None:
    """What one of `jobs` processes on a device does: folds "seed/fold" of a run whose trajectories are collected."""
    folder, settings = reopen(path)
    if settings.engine.name == "torch" and jobs > 1:
        # Of what the others on the device have left, who have taken theirs already: an even share would be too small.
        share = {"memory_fraction": round(min(0.6, 1.5 / jobs), 3), **settings.engine.settings}
        settings = replace(settings, engine=replace(settings.engine, settings=share))
    problems = store.read_jsonl(folder / "problems.jsonl", Problem)
    places = [Place(*map(int, one.split("/"))) for one in wanted]
    with pipeline.machinery(settings) as context:
        Experiment(folder, settings, context, problems, parts=_parts(settings, problems)).run(places)


def reopen(path: Path) -> tuple[RunDir, RunConfig]:
    """A cross-fitted run and its config. Raises StoreError if the config was edited since."""
    folder = RunDir.open(path)
    _seal.demand_config(folder)
    return folder, pipeline.load(folder / "config.toml")


def tasks(settings: RunConfig) -> list[Problem]:
    """All tasks of the benchmark, each marked held out: every one will be."""
    section = settings.benchmark
    module = plugins.load("benchmarks", section.name)
    found: list[Problem] = module.build(
        config.build(module.Config, section.settings, where="benchmark.settings")
    ).problems()
    if any(p.split is Split.HELD_OUT for p in found):
        raise ConfigError(
            f"[benchmark] {section.name} marks its own evaluation tasks, so they cannot train in turn; "
            "cross-fit a benchmark that has no split of its own, as humaneval"
        )
    found = collect.choose(found, section.limit, seed=section.split_seed) if section.limit else found
    return [replace(p, split=Split.HELD_OUT) for p in found]


class Experiment:
    """What all folds share: the corpus, the base model in training, the engine."""

    def __init__(
        self,
        folder: RunDir,
        settings: RunConfig,
        context: Context,
        problems: Sequence[Problem],
        *,
        parts: Sequence[Sequence[str]],
        desk: training.Desk | None = None,
    ) -> None:
        """`parts`: the task ids of each fold."""
        self.folder, self.settings, self.context, self.problems = folder, settings, context, problems
        self.parts = parts
        self._desk = desk

    def run(self, wanted: Sequence[Place]) -> None:
        """The given folds, one after the other."""
        if not wanted:
            return
        own, imported = self.collect()
        total = len(self.settings.crossfit.seeds) * len(self.parts)
        done = total - len(pending(self.folder, self.settings))
        with console.Progress("crossfit", total, unit="fold", initial=done) as bar:
            for one in wanted:
                self.fold(one, own, imported)
                bar.advance()
        if self._desk:
            self._desk.close()

    def collect(self) -> tuple[list[Trajectory], list[Trajectory]]:
        """The loop's trajectories of every task, and the imports without what any task forbids."""
        if self.folder.stage_done("collect"):
            return self._corpus()
        with self.folder.stage("collect") as entry:
            entry["by"] = _provenance.worker()
            scoring.self_check(self.context.sandbox(), self.problems)
            model = self.context.model()
            self.folder.update(
                model={"name": model.name, "sha256": model.digest, "source": model.source},
                device=pipeline.device_name(self.context.device),
                dtype=self.context.dtype,
            )
            return self._corpus()

    def _corpus(self) -> tuple[list[Trajectory], list[Trajectory]]:
        every = [replace(p, split=Split.TRAIN) for p in self.problems]
        chosen = collect.choose(every, self.settings.collect.tasks, seed=self.context.seed)
        own = collect.work(self.folder, self.settings.collect, self.context, chosen)
        found = reading.read_all([Path(file) for file in self.settings.collect.imports]).trajectories
        imported, report = _exclusion.decontaminate(found, self.problems)
        if report.dropped:
            console.note(f"imports: left out {', '.join(f'{n} × {why}' for why, n in report.dropped.items())}")
        store.write_json(self.folder / "imports.json", report)
        return own, imported

    def fold(self, one: Place, own: Sequence[Trajectory], imported: Sequence[Trajectory]) -> None:
        """Train without the fold, then treat, sample and score its tasks."""
        started, (seed, fold) = time.monotonic(), one
        settings, where = self.settings, RunDir(place(self.folder, seed, fold))
        context = replace(self.context, seed=seed)
        ids = set(self.parts[fold])
        held_out = [p for p in self.problems if p.task_id in ids]
        corpus = self.corpus(held_out, own, imported)
        store.write_jsonl(where / "problems.jsonl", held_out)
        store.write_jsonl(where / "trajectories.jsonl", corpus)
        plan = settings.train
        if settings.crossfit.start_from:
            plan = replace(plan, start_from=settings.crossfit.start_from[settings.crossfit.seeds.index(seed)])
        if plan.start_from:
            training.check_start(Path(plan.start_from), held_out)
        if self._desk is None:
            self._desk = training.Desk(self.context)
        convergence = training.fit(corpus, plan, context, where / "checkpoints", desk=self._desk)
        missing = [t for t in temperatures(settings) if not (where / drawn_at(t) / "scored.json").exists()]
        if missing:
            hands = Hands(context, where.path)
            try:
                treatments = self._treat(where, held_out, context, hands)
                self._diagnose(where, held_out, treatments, hands, convergence, seed)
                for temperature in missing:
                    self._draw(where, temperature, treatments, context)
            finally:
                hands.drop()
                _make_room(context)
        # Only a training that goes on needs the optimiser's state.
        for kind in ("lora", "hypernet", "hypernet/encoder"):
            (where / "checkpoints" / kind / "state.safetensors").unlink(missing_ok=True)
        seconds = round(time.monotonic() - started, 3)
        device = pipeline.device_name(self.context.device)
        done = {"tasks": sorted(ids), "seconds": seconds, "device": device, "by": _provenance.worker()}
        store.write_json(where / DONE, done)

    def corpus(
        self, held_out: Sequence[Problem], own: Sequence[Trajectory], imported: Sequence[Trajectory]
    ) -> list[Trajectory]:
        """What a fold trains on and retrieves from; raises ContaminationError if a held-out task came in."""
        settings, ids = self.settings.collect, {p.task_id for p in held_out}
        allowed, _ = _exclusion.decontaminate([t for t in own if t.task_id not in ids], held_out)
        found = [*collect.keep(allowed, limit=settings.keep, per_task=settings.keep_per_task), *imported]
        _exclusion.check_corpus(found, held_out, where=str(self.folder / "attempts.jsonl"))
        return found

    def _treat(self, where: RunDir, held_out: Sequence[Problem], context: Context, hands: Hands) -> list[Treatment]:
        """Every arm, by the same conditions as in a run."""
        workshop = replace(pipeline.workshop(where, self.settings, context), keep=hands.keep)
        section, made = self.settings.adapt, []
        total = len(held_out) * len(section.arms)
        with console.Progress("adapt", total, unit="treatment") as bar:
            for arm in section.arms:
                module = plugins.load("conditions", arm)
                given = config.build(module.Config, section.settings.get(arm, {}), where=f"adapt.settings.{arm}")

                def done(treatment: Treatment, arm: str = arm) -> None:
                    made.append(treatment)
                    bar.advance(arm=arm)

                module.build(given, workshop).treat(held_out, done)
        return made

    def _diagnose(
        self,
        where: RunDir,
        held_out: Sequence[Problem],
        treatments: Sequence[Treatment],
        hands: Hands,
        convergence: Mapping[str, Any],
        seed: int,
    ) -> None:
        """No arm is sampled before each of its adapters is proved live; then norms, cosines and swaps."""
        assert self._desk is not None
        base = self._desk.base
        worn = {t.adapter.adapter_id: (t.condition, t.adapter) for t in treatments if t.adapter is not None}
        if worn:
            adapt.prove_live(base, list(worn.values()), held_out[0].prompt, load=hands.adapter)
        arms, swap = {}, {}
        for arm in self.settings.adapt.arms:
            own = {t.task_id: t.adapter for t in treatments if t.condition == arm and t.adapter is not None}
            if not own:
                continue
            arms[arm] = hands.describe(arm, list(own), adapt.base_norms(base, hands.layout))
            if self.settings.adapt.swap_tasks and len({a.adapter_id for a in own.values()}) > 1:
                some = held_out[: self.settings.adapt.swap_tasks]
                swap[arm] = adapt.swapped(base, some, own, seed, load=hands.adapter)
        store.write_json(where / "diagnostics.json", {"arms": arms, "training": convergence, "swap": swap})

    def _draw(self, where: RunDir, temperature: float, treatments: Sequence[Treatment], context: Context) -> None:
        """Samples and verdicts of one temperature; the folder is laid out as a run's."""
        there = RunDir(where / drawn_at(temperature))
        shutil.copy(where / "problems.jsonl", _made(there.path) / "problems.jsonl")
        store.write_jsonl(there / "treatments.jsonl", treatments)
        sampling.run(there, replace(self.settings.sample, temperature=temperature), context)
        judged = scoring.run(there, self.settings.score, context)
        store.write_json(there / "scored.json", {"judged": judged})


def _make_room(context: Context) -> None:
    """Training follows: a small GPU needs the memory of the engine's cache, which it takes again by itself."""
    if context.device == "cuda":
        import torch

        free, total = torch.cuda.mem_get_info()
        if free < total / 2:
            context.engine().close()


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
