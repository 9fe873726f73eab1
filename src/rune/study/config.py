"""The whole configuration of an experiment, section by section. Reading one loads neither torch nor transformers.

A path in a config is relative to the config's own file; `[run] folder`, where results go, is relative to where the
command runs. Settings keep paths as they were written, so that an experiment has the same name everywhere; `located`
makes them absolute for the work itself.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from rune import config, shipped
from rune.analysis import gate
from rune.errors import ConfigError
from rune.models import resolve
from rune.reporting import tracking
from rune.runs.store import RunDir
from rune.stages import adapt, collect, report, retrieve, sample, score, train
from rune.study import phases

MOST_FOLDS = 10_000  # far above any benchmark: every task could be a fold of its own


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """`[run]`: what it is called and where it goes."""

    name: str
    seed: int  # of the loop; of training and sampling too, where [design] names no seeds
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
    quantize: Literal["none", "nf4"] = field(default="none", metadata=config.ADDED)  # nf4: for training and sampling


@dataclass(frozen=True, kw_only=True)
class BenchmarkSection:
    """`[benchmark]`: where the tasks come from. Which of them are held out is `[design]`'s."""

    name: str = "humaneval"
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Design:
    """`[design]`: the cells of the experiment. Each (variant, seed, fold) is the same stages on a folder of its own.

    Tasks are held out once: `held_out` of them, or every one in turn in `folds` folds; by task, or whole domains
    together. Variants change any setting: `variants` names them, `grid` crosses lists of values, `temperatures` is
    short for a grid over sample.temperature. What cells have in common is done once.
    """

    held_out: int = 25  # tasks (or domains) that no trajectory may come from; 0: those that the benchmark marks itself
    folds: int = 0  # 2 or more: every task is held out in one of so many folds, instead of `held_out`
    fold: int = -1  # of the folds only this one; -1: all
    by: Literal["task", "domain"] = "task"  # what a split keeps whole
    split_seed: int = 0
    tasks: int = 0  # tasks of the benchmark that take part at all, 0 = all
    scored: int = 0  # held-out tasks that are scored, 0 = all of them (a demo scores fewer)
    seeds: tuple[int, ...] = ()  # of training and sampling, one whole experiment each; (): [run] seed
    temperatures: tuple[float, ...] = ()  # (): [sample] temperature
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # "section.key" → its values
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name → {"section.key": value}

    def __post_init__(self) -> None:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be named once each, found {list(self.seeds)}")
        if len(set(self.temperatures)) != len(self.temperatures) or min(self.temperatures, default=0) < 0:
            raise ValueError(f"temperatures must be 0 or more, each once, found {list(self.temperatures)}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be 2 or more, or 0 for one held-out split, found {self.folds}")
        if self.folds > MOST_FOLDS:
            raise ValueError(f"folds must be no more than there are tasks, found {self.folds} (over {MOST_FOLDS})")
        if self.fold >= max(self.folds, 0) or self.fold < -1:
            raise ValueError(f"fold must be below folds ({self.folds}), or -1 for all of them, found {self.fold}")
        if min(self.held_out, self.tasks, self.scored) < 0:
            raise ValueError("held_out, tasks and scored must be 0 or more")
        for key, values in self.grid.items():
            if not values:
                raise ValueError(f"grid: {key!r} has no values")


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
    retrieve: retrieve.Config
    train: train.Config
    adapt: adapt.Config
    sample: sample.Config
    score: score.Config
    gate: gate.Config
    benchmark: BenchmarkSection = field(default_factory=BenchmarkSection)
    design: Design = field(default_factory=Design)
    engine: EngineSection = field(default_factory=EngineSection)
    report: report.Config = field(default_factory=report.Config)
    track: tracking.Config = field(default_factory=tracking.Config)
    phase: phases.Config = field(default_factory=phases.Config, metadata=config.ADDED)


class Machinery(Protocol):
    """The sections that say how to draw and how to judge, in whatever config they stand."""

    @property
    def model(self) -> ModelSection: ...

    @property
    def engine(self) -> EngineSection: ...

    @property
    def score(self) -> score.Config: ...


class Loaded(NamedTuple):
    """A config and the folder that its paths are relative to."""

    settings: RunConfig
    base: Path


# What stood elsewhere in configs of earlier versions: section, key → what to write now.
_MOVED = {
    ("benchmark", "held_out"): "[design] held_out",
    ("benchmark", "split_seed"): "[design] split_seed",
    ("benchmark", "limit"): "[design] scored (held-out tasks that are scored) or tasks (tasks that take part)",
    ("benchmark", "folds"): "[design] folds",
    ("benchmark", "fold"): "[design] fold",
    ("crossfit", ""): "[design], with folds, seeds and temperatures",
    ("engine.settings", "quantize"): "[model] quantize",
}


def load(path: Path, changes: Sequence[str] = ()) -> Loaded:
    """Read a config file, apply `--set`, check every section and part. Loads no model.

    `path` may be the bare name of a config that comes with Rune, such as phase1-demo, where no file is called so.
    Raises ConfigError with one line for anything that does not fit.
    """
    if not path.exists():
        path = shipped.config(str(path)) or path
    raw = _extended(_read(path), path)
    return Loaded(build(config.override(raw, changes)), path.parent)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        names = ", ".join(shipped.config_names())
        raise ConfigError(
            f"{path}: cannot read the config: {error.strerror}; give a TOML file, or one that comes with Rune: {names}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file, expected TOML; see configs/ for examples") from None
    return config.parse(text, where=str(path))


def _extended(raw: dict[str, Any], path: Path, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """`extends = "other.toml"`: that config with this one's values in it, section by section; lists are replaced.

    `above`: the configs that extend this one, the first of them first.
    """
    name = raw.pop("extends", None)
    if name is None:
        return raw
    if not isinstance(name, str) or Path(name).name != name:
        raise ConfigError(f"{path}: extends names a config in the same folder, found {name!r}")
    other = path.with_name(name)
    if not other.is_file():
        raise ConfigError(f"{path}: extends {name}, and there is no such file beside it")
    chain = (*above, path.name)
    if name in chain:
        circle = " → ".join((*chain[chain.index(name) :], name))
        raise ConfigError(f"{other}: extends itself: {circle}; take `extends` out of one of them")
    return _merged(_extended(_read(other), other, chain), raw)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        k: _merged(first[k], v) for k, v in second.items() if isinstance(v, Mapping) and isinstance(first.get(k), dict)
    }
    return {**first, **second, **both}


def build(raw: Mapping[str, Any]) -> RunConfig:
    """A raw config as settings, every part checked. Raises ConfigError with one line for anything that does not fit."""
    from rune.study import checks

    for (section, key), now in _MOVED.items():
        there: Any = raw
        for part in section.split("."):
            there = there.get(part) if isinstance(there, Mapping) else None
        if there is not None and (not key or (isinstance(there, Mapping) and key in there)):
            raise ConfigError(f"[{section}] {key}".rstrip() + f" is {now} now; move it there")
    result = config.build(RunConfig, raw)
    checks.parts(result)
    if result.gate.n > result.sample.n:
        raise ConfigError(
            f"[gate] n = {result.gate.n} needs at least as many samples, [sample] n = {result.sample.n}; "
            f"add --set sample.n={result.gate.n}"
        )
    return result


def raw_in(folder: RunDir) -> dict[str, Any]:
    """The config of a run folder, of whatever version."""
    return config.parse((folder / "config.toml").read_text(encoding="utf-8"), where=str(folder / "config.toml"))


def raw_of(settings: RunConfig) -> dict[str, Any]:
    """Settings as a run folder's config.toml will hold them."""
    return config.parse(config.dump_toml(settings), where="config")


def changed(settings: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Settings with some values ("section.key" → value) in place of others. Raises ConfigError like `build`."""
    raw: dict[str, Any] = json.loads(json.dumps(config.plain(settings)))
    for path, value in changes.items():
        node = raw
        *parents, leaf = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict):
            raise ConfigError(f"[design] {path}: a part of it is a value, not a section")
        node[leaf] = value
    return build(raw)


def _of_cell(name: str, folder: str, *, seed: int, fold: int) -> str:
    try:
        return folder.format(seed=seed, fold=fold)
    except (LookupError, ValueError, AttributeError):
        raise ConfigError(
            f"train.{name}: {folder}: in braces only {{seed}} and {{fold}} are known; "
            "write {{ and }} for braces of the folder's own name"
        ) from None


def located(settings: RunConfig, base: Path, *, seed: int, fold: int) -> RunConfig:
    """Settings whose input paths are absolute. `{seed}` and `{fold}` in train.start_from and .use are the cell's."""
    at = functools.partial(path_at, base)
    start, use = (_of_cell(name, getattr(settings.train, name), seed=seed, fold=fold) for name in ("start_from", "use"))
    hypernet = replace(settings.train.hypernet, reconstruct_from=at(settings.train.hypernet.reconstruct_from))
    return replace(
        settings,
        model=located_model(settings.model, base),
        collect=replace(
            settings.collect,
            imports=tuple(map(at, settings.collect.imports)),
            shown=tuple(map(at, settings.collect.shown)),
        ),
        train=replace(settings.train, start_from=at(start), use=at(use), hypernet=hypernet),
        benchmark=located_benchmark(settings.benchmark, base),
    )


def path_at(base: Path, path: str) -> str:
    """A path as a config writes it, absolute; "" stays."""
    return str((base / Path(path).expanduser()).resolve()) if path else ""


def located_model(section: ModelSection, base: Path) -> ModelSection:
    """A model's name may be a folder relative to the config."""
    return replace(section, name=_if_there(base, section.name))


def located_benchmark(section: BenchmarkSection, base: Path) -> BenchmarkSection:
    """With its data's paths absolute, where they lead to something."""
    part = section.settings
    places = {k: _if_there(base, str(part[k])) for k in ("path", "clones") if part.get(k)}
    return replace(section, settings={**part, **places})


def _if_there(base: Path, path: str) -> str:
    found = path_at(base, path)
    return found if path and Path(found).exists() else path
