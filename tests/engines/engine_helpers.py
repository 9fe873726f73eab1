"""Strong random adapters, and the world that every engine is tested in."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch

from rune.adapters.folders import Folders
from rune.adapters.peft import Adapter, Pair, target_linears
from rune.engines import torch as engine
from rune.engines.local.torch_engine import TorchEngine
from rune.types import AdapterRef, ModelRef

PROMPTS = ("def add(a, b):\n", "class Problem:\n    ", "# a frozen record that explains itself and goes on for long\n")


def wider_tiny_model(folder: Path) -> ModelRef:
    """The shared tiny model with heads of 32: vLLM has no CPU attention for smaller ones."""
    spec = importlib.util.spec_from_file_location("root_conftest", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    shared = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shared)
    model: ModelRef = shared.make_tiny_model(folder, seed=0, hidden=128)
    return model


@dataclass(frozen=True)
class World:
    """What every engine is tested in."""

    model: ModelRef
    adapters: tuple[AdapterRef, AdapterRef]
    root: Path  # below it lie the adapters' folders

    def folder(self, ref: AdapterRef) -> Path:
        return Folders(self.root).folder(ref)


def random_adapter(
    model: torch.nn.Module, *, seed: int, rank: int = 4, scale: float = 1.0, base_model: str = "", spread: float = 0.3
) -> Adapter:
    """An adapter on all seven kinds of module, large enough to change what a tiny model says."""
    rng = torch.Generator().manual_seed(seed)
    pairs = {
        name: Pair(
            torch.randn(linear.in_features, rank, generator=rng) * spread,
            torch.randn(rank, linear.out_features, generator=rng) * spread,
        )
        for name, linear in target_linears(model).items()
    }
    return Adapter(pairs=pairs, scale=scale, base_model=base_model)


def torch_engine(where: World | ModelRef, **settings: object) -> TorchEngine:
    """In a world it finds the adapters that lie there."""
    model, roots = (where.model, [where.root]) if isinstance(where, World) else (where, [])
    config = engine.Config(**settings)  # type: ignore[arg-type]
    return engine.build(config, model=model, device="cpu", dtype="float32", adapters=Folders(*roots))
