"""What can be refused at once: every part, file and name in a config, before a model is loaded or a folder made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rune import config, plugins
from rune.errors import ConfigError
from rune.models import resolve
from rune.runs import store

if TYPE_CHECKING:
    from rune.stages import train
    from rune.study.config import Machinery, RunConfig


def parts(settings: RunConfig) -> None:
    """Raises ConfigError for a part that does not exist, or a setting that it does not know or cannot use."""
    hypernet = settings.train.hypernet
    _part("engines", settings.engine.name, settings.engine.settings, "engine.settings")
    _part("benchmarks", settings.benchmark.name, settings.benchmark.settings, "benchmark.settings")
    _part("retrievers", settings.retrieve.retriever, settings.retrieve.settings, "retrieve.settings")
    _part("retrievers", settings.train.retriever, {}, "train.retriever")
    _part("encoders", hypernet.encoder, hypernet.encoder_settings, "train.hypernet.encoder_settings")
    _part("sandbox", settings.score.backend, settings.score.settings, "score.settings")
    _quantised(settings)
    for arm in settings.adapt.arms:
        _part("conditions", arm, settings.adapt.settings.get(arm, {}), f"adapt.settings.{arm}")


def _part(folder: str, name: str, settings: Mapping[str, Any], where: str) -> None:
    config.build(plugins.load(folder, name).Config, settings, where=where)


LOADS_ITSELF = ("torch", "ray", "scripted")  # engines that load the base from its folder, by `models/loader.py`


def _quantised(settings: RunConfig) -> None:
    """Raises ConfigError where a base would be quantised by nobody, or an adapter have no folder to be carried from."""
    across = settings.sample.quantize not in ("", settings.model.quantize)
    for where, found in (("model", settings.model.quantize), ("sample", settings.sample.quantize)):
        if found == "nf4" and settings.engine.name not in LOADS_ITSELF:
            raise ConfigError(
                f"[{where}] quantize = 'nf4': the engine {settings.engine.name} loads the base itself and would not "
                f"quantise it; use engine {', '.join(LOADS_ITSELF)}, or leave it out"
            )
    if across and not settings.adapt.save_adapters:
        raise ConfigError(
            f"[sample] quantize = '{settings.sample.quantize}' carries adapters to another base, and they are taken "
            "from their folders; set adapt.save_adapters = true"
        )


def inputs(settings: RunConfig, written: RunConfig) -> None:
    """What a new run reads from outside. Not asked of an old one: its inputs may be gone when it is scored again.

    `settings` have absolute paths, `written` those of the config, for the message. Raises ConfigError for what is not
    there, or does not fit.
    """
    resolve.check_name(settings.model.name, settings.model.sources)
    files = [("imports", *pair) for pair in zip(settings.collect.imports, written.collect.imports, strict=True)]
    files += [("shown", *pair) for pair in zip(settings.collect.shown, written.collect.shown, strict=True)]
    for key, file, name in files:
        if not Path(file).is_file():
            raise ConfigError(
                f"collect.{key}: {name}: no such file ({file}; paths are relative to the config); "
                f"`rune collect --import … -o {name}` makes one"
            )
    if settings.train.start_from:
        start(settings.train.start_from, written.train.start_from, settings.train)
    if settings.train.use:
        used(settings.train.use, written.train.use, settings.adapt.arms)


def device(settings: Machinery) -> str:
    """ "cpu" or "cuda". Raises ConfigError if the config wants a GPU and there is none."""
    wanted = settings.model.device
    if wanted == "cpu":
        return "cpu"
    import torch

    present = torch.cuda.is_available()
    if wanted == "cuda" and not present:
        raise ConfigError("[model] device = 'cuda', but torch sees no GPU; use --set model.device=cpu")
    return "cuda" if present else "cpu"


# What decides the shape of the weights, or what they mean.
FIXED = {
    "lora": ("rank", "alpha", "modules"),
    "hypernet": ("rank", "alpha", "encoder", "encoder_settings", "taps", "inputs"),
}


def start(folder: str, name: str, training: train.Config) -> None:
    """Raises ConfigError if `folder` holds no checkpoints to go on from, or some of another shape than `training`'s.

    `name` is the folder as the config calls it.
    """
    one = Path(folder)
    if not (one / "settings.json").is_file() and not all(
        (one / kind / "settings.json").is_file() for kind in ("lora", "hypernet")
    ):
        raise ConfigError(
            f"train.start_from: {name}: no checkpoints (lora and hypernet, each with settings.json); "
            "give the checkpoints/ folder of a trained run, or one hypernetwork's folder"
        )
    place = one if (one / "settings.json").is_file() else one / "hypernet"
    stored = _settings(place / "settings.json", f"train.start_from: {name}")
    if stored.get("kind") not in (None, "lora", "hypernet"):
        raise ConfigError(
            f"train.start_from: {name}: a hypernetwork of kind '{stored['kind']}', and training goes on from kind "
            "'hypernet' alone; train.use takes it as it is"
        )
    asked = {"lora": config.plain(training.lora), "hypernet": config.plain(training.hypernet)}
    for part, names in FIXED.items():
        for name in names:
            section = stored.get(part)
            had, has = section.get(name) if isinstance(section, dict) else None, asked[part][name]
            if had != has:
                raise ConfigError(
                    f"train.start_from: {place} was made with {part}.{name} = {had}, this config has {has}; "
                    f"set train.{part}.{name} to it, or train from the start"
                )


def used(folder: str, name: str, arms: Sequence[str]) -> None:
    """Raises ConfigError if `folder` holds no hypernetwork, or one that cannot make what an arm wants of it.

    `name` is the folder as the config calls it.
    """
    file = Path(folder) / "settings.json"
    kind = _settings(file, f"train.use: {name}").get("kind") if file.is_file() else ""
    if not kind or kind == "lora":
        what = "a static LoRA" if kind else f"no checkpoint ({'no kind in' if file.is_file() else 'no'} settings.json)"
        raise ConfigError(f"train.use: {name}: {what}; give the folder of a trained hypernetwork")
    if "lora" in arms:
        raise ConfigError("train.use trains nothing, and the arm lora is one trained on the corpus; leave it out")
    for arm in ("static", "empty_trajectory"):
        if arm in arms and kind != "hypernet":
            raise ConfigError(
                f"train.use: {name}: of kind '{kind}', which adds nothing without a trajectory; leave out the arm {arm}"
            )


def _settings(file: Path, where: str) -> dict[str, Any]:
    """Raises ConfigError if they are none."""
    found = store.read_json(file)
    if not isinstance(found, dict):
        raise ConfigError(f"{where}: its settings.json holds no settings; copy it again, or give another folder")
    return found


def arms(settings: RunConfig) -> None:
    """Raises ConfigError if the gate compares an arm that the run does not have, or one has nothing to be made of."""
    if settings.train.kind == "outer_products" and not settings.train.use:
        for name in ("lora", "static", "empty_trajectory"):
            if name in settings.adapt.arms:
                raise ConfigError(
                    f"train.kind = 'outer_products' trains no static LoRA and adds nothing without a trajectory; leave "
                    f"out the arm {name}"
                )
    for role in ("treatment", "baseline"):
        name = getattr(settings.gate, role)
        if name not in settings.adapt.arms:
            raise ConfigError(
                f"[gate] {role} = '{name}' is not among adapt.arms ({', '.join(settings.adapt.arms)}); "
                f"add it there, or set gate.{role}"
            )
