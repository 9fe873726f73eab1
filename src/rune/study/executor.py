"""Runs experiments: every cell through the same stages, then one decision over all of them.

    collect → train → adapt → sample → score      in each cell
    gate → report                                 over all cells

A stage that is done is skipped, one that was interrupted goes on where it stopped. What cells have in common is made
once: the loop's attempts, and every stage whose inputs another cell shares (see `cells.key`), which is then copied.
`run_stage` is the one place that calls a stage of an experiment; what adapters of the registry are measured with calls
`sample` and `score` itself (`measuring.py`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rune import config as configs
from rune import console
from rune.adapters.folders import Folders
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.errors import ConfigError, DataError, ModelError
from rune.reporting import tracking, words
from rune.runs import integrity, provenance, store
from rune.runs.store import RunDir
from rune.stages import adapt, collect, retrieve, sample, score, train
from rune.stages.context import Context
from rune.study import combine, reading, workers
from rune.study.cells import Cell, asked, key, loop_key
from rune.study.config import Loaded, RunConfig
from rune.study.creation import create
from rune.study.folders import CellFolder, Experiment, reopen
from rune.study.machines import Machines, described, device_name
from rune.study.takeover import OUTPUTS, adopt
from rune.types import Problem, Split, Trajectory

if TYPE_CHECKING:
    from rune.adapters.store import AdapterStore, MemoryStore
    from rune.conditions.shared.arm_inputs import Keep

IN_CELLS = ("collect", "train", "adapt", "sample", "score")
OVER_ALL = ("gate", "report")
OVERRIDES = "overrides.json"  # beside weights, where the phase began by override


def run(loaded: Loaded, *, resume: bool, jobs: int = 1, ray: str | None = None) -> Experiment:
    """All of an experiment that is not done. The decision is in decision.json, the report in report.html.

    `jobs` processes share the cells; with `ray` (an address, "" for this machine) they are Ray tasks. Raises
    ConfigError and the stages' own errors.
    """
    return go_on(create(loaded, resume=resume), jobs=jobs, ray=ray)


def go_on(experiment: Experiment, *, jobs: int = 1, ray: str | None = None) -> Experiment:
    """What is left of an experiment, then its decision."""
    alone_or_training("run")
    folder = experiment.folder
    with folder.lock():
        wanted = pending(experiment)
        if (jobs > 1 or ray is not None) and not experiment.single and wanted:
            with contextlib.closing(Runner(experiment)) as runner:
                runner.gather()
            workers.run(experiment, groups(wanted), jobs, ray=ray)
        else:
            with contextlib.closing(Runner(experiment)) as runner:
                runner.run(wanted)
        for name in OVER_ALL:
            if folder.stage_done(name):
                console.note(f"{name}: done before, kept")
            else:
                run_stage(experiment, name)
        if untracked := tracking.record(folder.path, experiment.settings.track):
            console.warn(untracked)
    return experiment


def pending(experiment: Experiment) -> list[CellFolder]:
    """Cells that are not scored yet, in order."""
    return [p for p in experiment.places() if not p.folder.stage_done(IN_CELLS[-1])]


def groups(places: Sequence[CellFolder]) -> list[list[CellFolder]]:
    """Cells that share a training, together: one process does them one after the other."""
    found: dict[str, list[CellFolder]] = {}
    for place in places:
        found.setdefault(key(place.settings, place.cell, "train"), []).append(place)
    return list(found.values())


def work(path: Path, names: Sequence[str], *, together: int) -> None:
    """What one worker process does: some cells of an experiment whose attempts are gathered.

    `together`: processes that share the device's memory.
    """
    experiment = reopen(path)
    wanted = [p for p in experiment.places() if p.cell.name in names]
    with contextlib.closing(Runner(experiment, together=together)) as runner:
        runner.run(wanted)


def run_one(experiment: Experiment, name: str) -> None:
    """One stage by itself, done before or not: of every cell, or over all of them.

    Of several processes that share a training (`hypernet/parallel.py`) the first records the stage. Raises ConfigError
    where several were started for another stage.
    """
    if alone_or_training(name):
        _train_along(experiment)
        return
    with experiment.folder.lock():
        if name in OVER_ALL:
            run_stage(experiment, name)
            return
        with contextlib.closing(Runner(experiment)) as runner:
            for place in experiment.places():
                runner.stage(place, name)


def alone_or_training(name: str) -> int:
    """Which of several processes this is, the first or a process alone being 0. Raises ConfigError but for "train"."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and name != "train":
        raise ConfigError(
            f"`accelerate launch` and `torchrun` are for `rune train RUN`; start `rune {name}` without them "
            "(several GPUs: --jobs, or engine ray)"
        )
    return int(os.environ.get("RANK", "0"))


def _train_along(experiment: Experiment) -> None:
    """What the other processes of a shared training do: its steps, and no file."""
    console.hush()
    with contextlib.closing(Runner(experiment)) as runner:
        for place in experiment.places():
            settings = experiment.located(place)
            train.run(place.folder, settings.train, runner.context(settings, place.cell))


def score_again(experiment: Experiment, *, anew: bool) -> None:
    """Score what has no verdict in any cell; `anew`: make all verdicts again from the sealed samples."""
    with experiment.folder.lock(), contextlib.closing(Runner(experiment)) as runner:
        for place in experiment.places():
            if anew:
                settings = experiment.located(place)
                score.again(place.folder, settings.score, runner.context(settings, place.cell))
            else:
                integrity.demand_kept(place.folder, "score", grown=False)
            runner.stage(place, "score")


def run_stage(experiment: Experiment, name: str, place: CellFolder | None = None, runner: Runner | None = None) -> None:
    """One stage, recorded in the manifest and sealed. A stage sees its own section only."""
    folder = place.folder if place else experiment.folder
    with folder.stage(name) as entry:
        entry["by"] = provenance.worker()
        if place and runner:
            _in_cell(experiment, name, place, runner)
            _overridden(folder, name)
            integrity.seal(folder, name)
        elif name == "gate":
            combine.decide(combine.of_experiment(experiment))
            entry["decision"] = combine.digest_of(folder)
        else:
            combine.report_on(combine.of_experiment(experiment), reading.result(experiment.folder))


def _overridden(folder: RunDir, name: str) -> None:
    """What a stage tells of its work, and what it trained, says too that the phase began by override: such files are
    read by themselves, and weights are taken out of their run."""
    if not (said := words.overrides(folder.manifest().get("phase", {}))):
        return
    for file in ("corpus.json", "diagnostics.json"):
        if file in OUTPUTS.get(name, ()) and (folder / file).is_file():
            store.write_json(folder / file, {**store.read_json(folder / file), "overrides": said})
    made = {"train": "checkpoints", "adapt": "adapters"}.get(name)
    for place in {weights.parent for weights in (folder / made).rglob("*.safetensors")} if made else ():
        store.write_json(place / OVERRIDES, {"overrides": said})


def _in_cell(experiment: Experiment, name: str, place: CellFolder, runner: Runner) -> None:
    folder, settings = place.folder, experiment.located(place)
    context = runner.context(settings, place.cell)
    if name in ("train", "adapt", "sample"):
        _same_model(folder, context)
    if name == "collect":
        runner.check_scorer(folder, context)
        model = context.model()
        folder.update(model=described(model))
        folder.update(device=device_name(context.device), dtype=context.dtype)
        looped = replace(context, seed=settings.run.seed)
        calls = asked(settings.benchmark)
        collect.run(folder, settings.collect, looped, attempts=attempts(experiment, place), asked=calls)
    elif name == "train":
        train.run(folder, settings.train, context)
    elif name == "adapt":
        kept = runner.adapters(place, context)
        shared = arm_inputs(folder, settings, context, kept.put)
        adapt.run(folder, settings.adapt, context, arm_inputs=shared, adapters=kept)
    elif name == "sample":
        runner.bring_adapters(place, settings, context)
        drawing = runner.sampling(settings, context)
        if drawing is not context:
            folder.update(drawn_from=described(drawing.model()))
        sample.run(folder, settings.sample, drawing)
    else:
        score.run(folder, settings.score, context)


def attempts(experiment: Experiment, place: CellFolder) -> Path:
    """Where the loop of a cell writes: one file for all cells that loop alike."""
    if experiment.single:
        return place.folder / "attempts.jsonl"
    return experiment.folder / "attempts" / f"{loop_key(place.settings)}.jsonl"


def _same_model(folder: RunDir, context: Context) -> None:
    """What is at the model's name today must be what the run began with: adapters fit one base model only."""
    before, model = folder.manifest().get("model"), context.model()
    if before and before["sha256"] != model.digest:
        raise ModelError(
            f"{folder.path}: begun with {before['name']} (sha256 {before['sha256'][:12]}…), but that is now "
            f"{model.digest[:12]}…; put the model back, or start a new run"
        )


def arm_inputs(folder: RunDir, settings: RunConfig, context: Context, keep: Keep) -> ArmInputs:
    """The same hits for every arm: each held-out task's nearest trajectories, by its prompt alone.

    `keep`: where an arm's adapters go. Raises DataError without trajectories.
    """
    held_out = [p for p in store.read_jsonl(folder / "problems.jsonl", Problem) if p.split is Split.HELD_OUT]
    trajectories = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)
    shown = store.read_jsonl(folder / collect.SHOWN, Trajectory)
    if not trajectories:
        raise DataError(f"{folder / 'trajectories.jsonl'}: no trajectories; run `rune collect {folder.path}` first")
    session = context.session
    return ArmInputs(
        model=context.model(),
        device=context.device,
        dtype=context.dtype,
        seed=context.seed,
        trajectories=tuple(trajectories),
        hits=retrieve.hits(held_out, [*trajectories, *shown], settings.retrieve),
        checkpoints=folder / "checkpoints",
        keep=keep,
        adapters=folder / "adapters",
        base=None if session is None else lambda: session().base,
    )


# --------------------------------------------------------------------------- one process


class Runner:
    """What one process holds while it does cells: model, engine, sandbox and training base, each made when needed."""

    def __init__(self, experiment: Experiment, *, together: int = 1) -> None:
        self._experiment, self._together = experiment, together
        self._machines: Machines | None = None
        self._folders = Folders(*(place.folder / "adapters" for place in experiment.places()))
        self._stores: dict[str, MemoryStore] = {}  # cell → its adapters, while they are in the engine
        self._checked: set[str] = set()
        self._keys: dict[tuple[Cell, str], str] = {}

    def run(self, places: Sequence[CellFolder]) -> None:
        """The given cells through all their stages."""
        remaining = list(places)
        for group in groups(places):
            for place in group:
                with contextlib.ExitStack() as stack:
                    if not self._experiment.single:
                        stack.enter_context(place.folder.lock())
                        console.note(f"cell {place.cell.name}")
                    for name in IN_CELLS:
                        if place.folder.stage_done(name):
                            if self._experiment.single:
                                console.note(f"{name}: done before, kept")
                        elif twin := self._twin(place, name):
                            adopt(twin, place, name)
                        else:
                            if name == "sample" and len(remaining) == 1 and self._machines:
                                self._machines.close_session()  # nothing is trained after this
                            self.stage(place, name)
                remaining.remove(place)
            self._drop_adapters()

    def gather(self) -> None:
        """The loop's attempts of all cells: what must be there before processes share the cells."""
        for place in self._experiment.places():
            if place.folder.stage_done("collect"):
                continue
            if twin := self._twin(place, "collect"):
                adopt(twin, place, "collect")
            else:
                self.stage(place, "collect")

    def stage(self, place: CellFolder, name: str) -> None:
        run_stage(self._experiment, name, place, self)

    def _twin(self, place: CellFolder, name: str) -> CellFolder | None:
        """Another cell that has done the very same stage."""
        wanted = self._key(place, name)
        for other in self._experiment.places():
            if other.cell != place.cell and self._key(other, name) == wanted and other.folder.stage_done(name):
                return other
        return None

    def _key(self, place: CellFolder, stage: str) -> str:
        if (place.cell, stage) not in self._keys:
            self._keys[place.cell, stage] = key(place.settings, place.cell, stage)
        return self._keys[place.cell, stage]

    # ----------------------------------------------------------------- machinery

    def context(self, settings: RunConfig, cell: Cell) -> Context:
        """For one cell. Another model, engine or sandbox than the last cell's is made anew."""
        wanted = configs.digest([settings.model, settings.engine, settings.score])
        if self._machines is None or self._machines.name != wanted:
            self._close_machines()
            self._machines = Machines(settings, wanted, together=self._together, adapters=self._folders)
        return self._machines.context(cell.seed)

    def sampling(self, settings: RunConfig, context: Context) -> Context:
        """What completions are drawn with: the same, unless [sample] wants the base loaded otherwise."""
        assert self._machines is not None
        wanted = settings.sample.quantize
        if wanted in ("", settings.model.quantize):
            return context
        machines = self._machines
        return replace(context, engine=lambda: machines.engine(wanted), model=lambda: machines.model(wanted))

    def check_scorer(self, folder: RunDir, context: Context) -> None:
        """The instrument is checked before anything depends on it: once a process for the same tasks."""
        problems = store.read_jsonl(folder / "problems.jsonl", Problem)
        name = configs.digest(sorted(p.task_id for p in problems))
        if name not in self._checked:
            score.self_check(context.sandbox(), problems)
            self._checked.add(name)

    # ----------------------------------------------------------------- adapters in memory

    def adapters(self, place: CellFolder, context: Context) -> AdapterStore:
        """Where a cell's adapters go."""
        from rune.adapters.store import FolderStore, MemoryStore

        how = {"dtype": context.dtype, "device": context.device}
        if place.settings.adapt.save_adapters or not hasattr(context.engine(), "put_adapter"):
            return FolderStore(place.folder / "adapters", context.model(), folders=self._folders, **how)
        kept = MemoryStore(context.engine(), context.model(), **how)
        self._stores[place.cell.name] = kept
        return kept

    def bring_adapters(self, place: CellFolder, settings: RunConfig, context: Context) -> None:
        """Adapters that are in no folder must be in the engine: made here, by a cell like this one, or made again."""
        self._folders.first(place.folder / "adapters")
        if place.settings.adapt.save_adapters or not hasattr(context.engine(), "put_adapter"):
            return
        if any(name in self._stores for name in (place.cell.name, *self._alike(place))):
            return
        shared = arm_inputs(place.folder, settings, context, self.adapters(place, context).put)
        adapt.remake(place.folder, settings.adapt, arm_inputs=shared)

    def _alike(self, place: CellFolder) -> list[str]:
        wanted = self._key(place, "adapt")
        return [o.cell.name for o in self._experiment.places() if self._key(o, "adapt") == wanted]

    def _drop_adapters(self) -> None:
        for kept in self._stores.values():
            kept.close()
        self._stores.clear()
        if self._machines:
            self._machines.make_room()

    def _close_machines(self) -> None:
        self._stores.clear()
        if self._machines:
            self._machines.close()
            self._machines = None

    def close(self) -> None:
        self._close_machines()
