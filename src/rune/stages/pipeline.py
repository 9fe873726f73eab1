"""One config → one run folder → one decision: setup, collect, train, adapt, sample, score, gate, report.

Holds the whole configuration (each section belongs to the stage or part that reads it), makes the machinery
lazily, and runs the stages in order, each once. A stage that is done is skipped; one that was interrupted
goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rune import __version__, config, console, plugins, store, tracking
from rune.benchmarks import _split
from rune.conditions._workshop import Workshop
from rune.errors import ConfigError, DataError, ModelError
from rune.models import resolve
from rune.stages import _check, _provenance, _retrieval, _seal, adapt, collect, gate, report, sample, score, train
from rune.stages._context import Context
from rune.types import Engine, ModelRef, Problem, Sandbox, Split, Trajectory

STAGES = ("collect", "train", "adapt", "sample", "score", "gate", "report")


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """`[run]`: what it is called and where it goes."""

    name: str
    seed: int
    folder: str = "runs"

    def __post_init__(self) -> None:
        if not self.name or any(c in self.name for c in "/\\ \t\n"):
            raise ValueError(f"name must be one word without slashes, found {self.name!r}")


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """`[model]`: the frozen base model."""

    name: str  # see `rune models list`; or a folder, a GGUF file, a hub id
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on cuda, float32 on cpu
    sources: tuple[str, ...] = resolve.SOURCES  # tried in this order


@dataclass(frozen=True, kw_only=True)
class RetrieveSection:
    """`[retrieve]`: which trajectories a held-out task is given, by RAG and by the hypernetwork alike."""

    top_k: int
    per_task: int = 1  # trajectories of one training task at most, so that top_k are of so many tasks; 0 = no limit
    retriever: str = "bm25"
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, found {self.top_k}")
        if self.per_task < 0:
            raise ValueError(f"per_task must be 0 (no limit) or more, found {self.per_task}")


@dataclass(frozen=True, kw_only=True)
class BenchmarkSection:
    """`[benchmark]`: the tasks and their split. The split is a function of these fields alone."""

    name: str = "humaneval"
    held_out: int = 25  # tasks that no trajectory may come from
    split_seed: int = 0
    limit: int = 0  # held-out tasks that are scored, 0 = all of them (a demo scores fewer)
    fold: int = -1  # >= 0: hold out this fold of `folds` instead (cross-fitting)
    folds: int = 6
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fold >= self.folds:
            raise ValueError(f"fold must be below folds ({self.folds}), found {self.fold}")


@dataclass(frozen=True, kw_only=True)
class CrossfitSection:
    """`[crossfit]`: what `rune crossfit` repeats over the folds of `[benchmark]`; a plain run does not read it."""

    seeds: tuple[int, ...] = (0, 1, 2)  # of training and sampling; one whole experiment each
    temperatures: tuple[float, ...] = ()  # every one is sampled and decided; empty: [sample] temperature alone
    start_from: tuple[str, ...] = ()  # a folder of checkpoints for each seed, in place of train.start_from

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must name at least one seed, each once, found {list(self.seeds)}")
        if len(set(self.temperatures)) != len(self.temperatures) or min(self.temperatures, default=0) < 0:
            raise ValueError(f"temperatures must be 0 or more, each once, found {list(self.temperatures)}")
        if self.start_from and len(self.start_from) != len(self.seeds):
            raise ValueError(
                f"start_from needs a folder for each of {len(self.seeds)} seeds, found {len(self.start_from)}"
            )


@dataclass(frozen=True, kw_only=True)
class EngineSection:
    """`[engine]`: who generates."""

    name: str = "torch"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A config file, section by section."""

    run: RunSection
    model: ModelSection
    collect: collect.Config
    retrieve: RetrieveSection
    train: train.Config
    adapt: adapt.Config
    sample: sample.Config
    score: score.Config
    gate: gate.Config
    benchmark: BenchmarkSection = field(default_factory=BenchmarkSection)
    crossfit: CrossfitSection = field(default_factory=CrossfitSection)
    engine: EngineSection = field(default_factory=EngineSection)
    report: report.Config = field(default_factory=report.Config)
    track: tracking.Config = field(default_factory=tracking.Config)


def load(path: Path, settings: Sequence[str] = ()) -> RunConfig:
    """Read a config file, apply `--set`, check every section. Loads no model.

    Raises ConfigError with one line for anything that does not fit.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}; see configs/ for examples") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file, expected TOML; see configs/ for examples") from None
    raw = config.override(config.parse(text, where=str(path)), settings)
    result = config.build(RunConfig, raw)
    _check.parts(result)
    if result.gate.n > result.sample.n:
        raise ConfigError(
            f"[gate] n = {result.gate.n} needs at least as many samples, [sample] n = {result.sample.n}; "
            f"add --set sample.n={result.gate.n}"
        )
    return result


def cache_dir() -> Path:
    """What may be deleted at any time: models, features, verdicts. Set RUNE_CACHE to move it."""
    return Path(os.environ.get("RUNE_CACHE", "~/.cache/rune")).expanduser()


# --------------------------------------------------------------------------- machinery


class Machinery:
    """Makes model, engine and sandbox on first use, and closes what it made."""

    def __init__(self, settings: RunConfig) -> None:
        self._settings = settings
        self._exit = contextlib.ExitStack()

    @functools.cached_property
    def device(self) -> str:
        wanted = self._settings.model.device
        if wanted == "cpu":
            return "cpu"
        import torch

        present = torch.cuda.is_available()
        if wanted == "cuda" and not present:
            raise ConfigError("[model] device = 'cuda', but torch sees no GPU; use --set model.device=cpu")
        return "cuda" if present else "cpu"

    @property
    def dtype(self) -> str:
        wanted = self._settings.model.dtype
        return wanted if wanted != "auto" else "bfloat16" if self.device == "cuda" else "float32"

    @functools.cached_property
    def _model(self) -> ModelRef:
        section = self._settings.model
        return resolve.resolve(section.name, sources=section.sources, cache=cache_dir())

    @functools.cached_property
    def _engine(self) -> Engine:
        part = self._settings.engine
        module = plugins.load("engines", part.name)
        settings = config.build(module.Config, part.settings, where="engine.settings")
        engine: Engine = module.build(settings, model=self._model, device=self.device, dtype=self.dtype)
        self._exit.callback(engine.close)
        return engine

    @functools.cached_property
    def _sandbox(self) -> Sandbox:
        sandbox = score.build_sandbox(self._settings.score, cache=cache_dir())
        self._exit.callback(sandbox.close)
        return sandbox

    def context(self) -> Context:
        return Context(
            seed=self._settings.run.seed,
            model=lambda: self._model,
            device=self.device,
            dtype=self.dtype,
            engine=lambda: self._engine,
            sandbox=lambda: self._sandbox,
            cache=cache_dir(),
        )

    def close(self) -> None:
        self._exit.close()


# --------------------------------------------------------------------------- stages


def problems(settings: RunConfig) -> list[Problem]:
    """All tasks with their split. Raises ConfigError if the split cannot be made."""
    section = settings.benchmark
    module = plugins.load("benchmarks", section.name)
    part = config.build(module.Config, section.settings, where="benchmark.settings")
    everything: list[Problem] = module.build(part).problems()
    if section.fold >= 0:
        marked = _split.hold_out_fold(everything, fold=section.fold, folds=section.folds, seed=section.split_seed)
    else:
        marked = _split.split(everything, held_out=section.held_out, seed=section.split_seed)
    held_out = [p for p in marked if p.split is Split.HELD_OUT]
    if section.limit:
        scored = {p.task_id for p in collect.choose(held_out, section.limit, seed=section.split_seed)}
        marked = [p for p in marked if p.split is Split.TRAIN or p.task_id in scored]
    return marked


def create(settings: RunConfig, *, resume: bool) -> store.RunDir:
    """Make or reopen the run folder: config, manifest, problems.jsonl and the pre-registration.

    Whatever can be refused is refused before the folder is made.
    """
    tasks = None
    if not (store.RunDir.place(Path(settings.run.folder), settings.run.name, settings) / "problems.jsonl").exists():
        _check.inputs(settings)
        Machinery(settings).device  # noqa: B018 (raises for a GPU that is not there)
        tasks = problems(settings)
    folder = store.RunDir.create(
        Path(settings.run.folder),
        settings.run.name,
        settings,
        extra={"rune": __version__, "seed": settings.run.seed, "environment": _provenance.environment()},
        resume=resume,
    )
    if tasks is not None:
        store.write_jsonl(folder / "problems.jsonl", tasks)
    _seal.preregister(folder)
    return folder


def reopen(path: Path) -> tuple[store.RunDir, RunConfig]:
    """An existing run and the config it was made with. Raises StoreError if that was edited since."""
    folder = store.RunDir.open(path)
    _seal.demand_config(folder)
    return folder, load(folder / "config.toml")


def run_all(settings: RunConfig, *, resume: bool) -> store.RunDir:
    """Every stage that is not done. The decision is in decision.json, the report in report.html."""
    _check.arms(settings)
    folder = create(settings, resume=resume)
    with folder.lock(), machinery(settings) as context:
        for name in STAGES:
            if folder.stage_done(name):
                console.note(f"{name}: done before, kept")
                continue
            run_stage(folder, settings, context, name)
        if untracked := tracking.record(folder.path, settings.track):
            console.warn(untracked)
    return folder


@contextlib.contextmanager
def machinery(settings: RunConfig) -> Iterator[Context]:
    parts = Machinery(settings)
    try:
        yield parts.context()
    finally:
        parts.close()


def run_stage(folder: store.RunDir, settings: RunConfig, context: Context, name: str) -> None:
    """One stage, recorded in the manifest. A stage sees its own section only."""
    actions: Mapping[str, Callable[[], object]] = {
        "collect": lambda: _collect(folder, settings, context),
        "train": lambda: train.run(folder, settings.train, context),
        "adapt": lambda: adapt.run(folder, settings.adapt, context, workshop=workshop(folder, settings, context)),
        "sample": lambda: sample.run(folder, settings.sample, context),
        "score": lambda: score.run(folder, settings.score, context),
        "gate": lambda: gate.run(folder, settings.gate, context),
        "report": lambda: report.run(folder, settings.report, context),
    }
    with folder.stage(name) as entry:
        entry["by"] = _provenance.worker()
        if name in ("train", "adapt", "sample"):
            _same_model(folder, context)
        actions[name]()
        _seal.seal(folder, name)


def _same_model(folder: store.RunDir, context: Context) -> None:
    """What is at the model's name today must be what the run began with: adapters fit one base model only."""
    before, model = folder.manifest().get("model"), context.model()
    if before and before["sha256"] != model.digest:
        raise ModelError(
            f"{folder.path}: begun with {before['name']} (sha256 {before['sha256'][:12]}…), but that is now "
            f"{model.digest[:12]}…; put the model back, or start a new run"
        )


def _collect(folder: store.RunDir, settings: RunConfig, context: Context) -> None:
    """The instrument is checked before anything depends on it."""
    score.self_check(context.sandbox(), store.read_jsonl(folder / "problems.jsonl", Problem))
    model = context.model()
    folder.update(model={"name": model.name, "sha256": model.digest, "source": model.source})
    folder.update(device=device_name(context.device), dtype=context.dtype)
    collect.run(folder, settings.collect, context)


def workshop(folder: store.RunDir, settings: RunConfig, context: Context) -> Workshop:
    """The same hits for every arm: each held-out task's nearest trajectories, by its prompt alone."""
    held_out = [p for p in store.read_jsonl(folder / "problems.jsonl", Problem) if p.split is Split.HELD_OUT]
    trajectories = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)
    if not trajectories:
        raise DataError(f"{folder / 'trajectories.jsonl'}: no trajectories; run `rune collect {folder.path}` first")
    section = settings.retrieve
    module = plugins.load("retrievers", section.retriever)
    # A family's private convention is no help to a task outside of all families.
    in_families = any(p.family for p in held_out)
    indexed = [t for t in trajectories if t.solved and (in_families or not t.family)]
    retriever = module.build(config.build(module.Config, section.settings, where="retrieve.settings"), indexed)
    return Workshop(
        model=context.model(),
        device=context.device,
        dtype=context.dtype,
        seed=context.seed,
        trajectories=tuple(trajectories),
        hits={
            p.task_id: _retrieval.nearest(
                retriever, p.prompt, ranked=len(indexed), count=section.top_k, per_task=section.per_task
            )
            for p in held_out
        },
        checkpoints=folder / "checkpoints",
        adapters=folder / "adapters",
        cache=context.cache,
    )


def device_name(device: str) -> str:
    """The GPU's own name, or "cpu" with its core count."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return f"cpu ({os.cpu_count()} cores)"
