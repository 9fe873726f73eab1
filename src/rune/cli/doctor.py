"""`rune doctor`: what this machine can do. `rune doctor --config FILE`: what a config needs here, and how long."""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rune import console
from rune.cli import _estimate
from rune.errors import ConfigError, RuneError

if TYPE_CHECKING:
    from rune.study.config import Loaded

OPTIONAL = {
    "mlflow": "track: MLflow records",
    "vllm": "vllm: the vLLM engine",
    "ray": "ray: several GPUs",
    "bitsandbytes": "qlora: 4-bit base models",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="estimate this config's time and memory here")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="a.b=c", help="with --config: override a setting"
    )


def run(args: argparse.Namespace) -> int:
    if args.config:
        from rune.study import config

        return dry_run(config.load(args.config, args.settings))
    if args.settings:
        raise ConfigError("--set changes a config; add --config FILE")
    for title, rows in (("machine", _machine()), ("sandbox", _sandbox()), ("models", _models()), ("extras", _extras())):
        console.out(f"{title}")
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            console.out(f"  {name.ljust(width)}  {value}")
    return 0


def _machine() -> list[tuple[str, str]]:
    import psutil

    from rune.models import resolve

    memory = psutil.virtual_memory()
    cache = resolve.default_cache()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    rows = [
        ("processors", f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}"),
        ("memory", f"{memory.available / 2**30:.1f} GiB free of {memory.total / 2**30:.1f}"),
        ("disk", f"{shutil.disk_usage(existing).free / 2**30:.0f} GiB free for {cache}"),
    ]
    for number, text in enumerate(_gpus()):
        rows.append((f"gpu {number}", text))
    if len(rows) == 3:
        rows.append(("gpu", "none that torch sees; everything runs on the CPU"))
    rows += _limits()
    data = os.environ.get("RUNE_DATA")
    there = bool(data) and Path(str(data)).is_dir()
    rows.append(("RUNE_DATA", f"{data}{'' if there else ' (no such folder)'}" if data else "not set"))
    return rows


def _limits() -> list[tuple[str, str]]:
    """Hard limits of this shell that are below what Rune asks for itself or for a program."""
    import resource

    wanted = (
        ("-t", "RLIMIT_CPU", 1, 3600, "seconds; below what a judge of many programs, or a training, takes"),
        ("-n", "RLIMIT_NOFILE", 1, 1024, "open files; below 1024, many workers at a time may need more"),
        ("-v", "RLIMIT_AS", 1024, 4 << 20, "KiB of addresses; below 4 GiB, a model may not load"),
        ("-u", "RLIMIT_NPROC", 1, 256, "processes; below 256, many workers at a time may need more"),
    )
    found = []
    for flag, name, unit, least, why in wanted:
        hard = resource.getrlimit(getattr(resource, name))[1]
        if hard != resource.RLIM_INFINITY and hard // unit < least:
            found.append((f"ulimit {flag}", f"{hard // unit} {why}"))
    return found


def _gpus() -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return ["torch is not installed"]
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found.append(f"{torch.cuda.get_device_name(number)}, {free / 2**30:.0f} GiB free of {total / 2**30:.0f}")
    return found


def _sandbox() -> list[tuple[str, str]]:
    from rune.sandbox.isolation import probe as _probe

    rows = [(layer.name, f"{'yes' if layer.present else 'no '}  {layer.detail}".rstrip()) for layer in _probe.probe()]
    lacking = _probe.floor()
    rows.append(("verdict", f"untrusted code is refused: {lacking}" if lacking else "untrusted code can be held"))
    return rows


def _models() -> list[tuple[str, str]]:
    from rune.models import registry, resolve

    cache = resolve.default_cache()
    return [(s.name, "in the cache" if resolve.is_cached(s.name, cache) else "not here") for s in registry.SPECS]


def _extras() -> list[tuple[str, str]]:
    return [(name, "yes" if importlib.util.find_spec(name) else f"no   {what}") for name, what in OPTIONAL.items()]


def dry_run(loaded: Loaded) -> int:
    """Resolve everything a config names, print the memory and time it needs; load no model, write nothing."""
    from rune.models import resolve
    from rune.study import cells, checks
    from rune.study.config import located
    from rune.types import Split

    every = cells.cells(loaded.settings)
    for cell in every:
        written = cells.settings_of(loaded.settings, cell)
        settings = located(written, loaded.base, seed=cell.seed, fold=cell.fold)
        checks.inputs(settings, written)
        checks.arms(settings)
    problems = cells.split(cells.tasks(settings), settings.design, every[-1].fold)
    held_out = sum(p.split is Split.HELD_OUT for p in problems)
    name = settings.model.name
    cache = resolve.default_cache()
    folder = cache / "models" / name.replace("/", "--") if resolve.is_cached(name, cache) else Path(name)
    here = folder.is_dir()
    plan = _estimate.plan(settings, held_out=held_out, train=len(problems) - held_out, folder=folder if here else None)
    console.out(f"config     {settings.run.name}: every section and part resolves")
    console.out(f"model      {name}: {'here' if here else 'not here yet; `rune models pull` fetches it'}")
    console.out(
        f"benchmark  {settings.benchmark.name}: {held_out} held out, {len(problems) - held_out} for trajectories; "
        f"{len(settings.adapt.arms)} arms × {settings.sample.n} samples"
    )
    if len(every) > 1:
        console.out(f"design     {len(every)} cells; what follows is one of them")
    console.out(f"\nmemory, counted for {plan.dtype} (keep a tenth free):")
    for stage, parts in plan.memory.items():
        console.out(f"  {stage.ljust(9)} {_estimate.total(parts):>8}   {_detail(parts)}")
    console.out(f"  all at once at most {_estimate.total(plan.largest)}; this machine: {_room(plan.device)}")
    try:
        probe = _estimate.measure(plan.device, plan.dtype)
    except RuntimeError as error:  # torch's own: no memory, no kernel for this type
        raise RuneError(f"the speed probe failed on {plan.device}: {str(error).splitlines()[0]}") from None
    console.out(f"\ntime, an estimate from a probe of this machine as busy as it is now ({probe.text}):")
    for stage, seconds in _estimate.times(plan, probe).items():
        console.out(f"  {stage.ljust(9)} {_estimate.duration(seconds):>8}")
    return 0


def _detail(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts.items())


def _room(device: str) -> str:
    if device == "cuda":
        return "; ".join(_gpus())
    import psutil

    return f"{psutil.virtual_memory().available / 2**30:.1f} GiB of memory free, no GPU used"
