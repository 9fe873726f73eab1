"""A small run folder: real family tasks and trajectories, a tiny random base model, settings that train in seconds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rune.adapters.store import FolderStore
from rune.benchmarks import families
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.hypernet.settings import HypernetConfig, LoraConfig, PairMix, Schedule, Weights
from rune.runs import store
from rune.stages import train
from rune.stages.context import Context
from rune.types import Hit, ModelRef, Problem, Split, Trajectory

SMALL = {"width": 32, "latents": 4, "hidden": 64}


def settings(*, lora_steps: int = 6, steps: int = 8, checkpoint_every: int = 3, **changes: object) -> train.Config:
    """Both phases, a few steps each, every loss term that needs no extra data switched on."""
    lora = LoraConfig(
        schedule=Schedule(steps=lora_steps, learning_rate=1e-3, checkpoint_every=checkpoint_every),
        rank=2,
        alpha=4.0,
        rows=4,
        max_tokens=700,
    )
    hypernet = HypernetConfig(
        schedule=Schedule(steps=steps, learning_rate=1e-3, checkpoint_every=checkpoint_every),
        rank=2,
        alpha=4.0,
        groups=3,
        targets=2,
        pairs=PairMix(recall=0.4, family=0.4, retrieved=0.2, max_sources=2),
        weights=Weights(target_contrast=0.2, source_contrast=0.2, kl_base=0.05, norm=0.1, variance=0.05),
        encoder_settings=SMALL,
        taps=(0, 1),
        unrelated_every=2,
        max_tokens=700,
    )
    return train.Config(lora=lora, hypernet=dataclasses.replace(hypernet, **changes))


@pytest.fixture(scope="session")
def corpus() -> tuple[list[Problem], list[Trajectory]]:
    """12 families, 3 held out; trajectories of the training ones and, second, of all."""
    problems = families.generate(families.Config(families=12, held_out=3, tasks=3, seed=5, split="atom"))
    return problems, families.trajectories(problems, None)


def make_run(root: Path, corpus: tuple[list[Problem], list[Trajectory]]) -> store.RunDir:
    """A run folder as collect leaves it."""
    problems, trajectories = corpus
    folder = store.RunDir.create(root, "tiny", {"tiny": True}, extra={}, resume=True)
    held_out = {p.task_id for p in problems if p.split is Split.HELD_OUT}
    store.write_jsonl(folder / "problems.jsonl", problems)
    store.write_jsonl(folder / "trajectories.jsonl", [t for t in trajectories if t.task_id not in held_out])
    return folder


def make_context(model: ModelRef, cache: Path) -> Context:
    def none() -> object:
        raise AssertionError("train and adapt need neither engine nor sandbox")

    return Context(
        seed=7,
        model=lambda: model,
        device="cpu",
        dtype="float32",
        engine=none,  # type: ignore[arg-type]
        sandbox=none,  # type: ignore[arg-type]
        cache=cache,
    )


def make_arm_inputs(
    folder: store.RunDir, context: Context, corpus: tuple[list[Problem], list[Trajectory]], *, siblings: bool
) -> ArmInputs:
    """Held-out tasks with trajectories of their own family (siblings), or the first two of the training corpus."""
    problems, everything = corpus
    trained = store.read_jsonl(folder / "trajectories.jsonl", Trajectory)
    hits = {}
    for problem in problems:
        if problem.split is Split.HELD_OUT:
            own = [t for t in everything if t.domain == problem.domain and t.task_id != problem.task_id]
            chosen = own[:2] if siblings else trained[:2]
            hits[problem.task_id] = tuple(Hit(trajectory=t, snippet=t.solution, score=1.0) for t in chosen)
    return ArmInputs(
        model=context.model(),
        device="cpu",
        dtype="float32",
        seed=context.seed,
        trajectories=tuple(trained),
        hits=hits,
        checkpoints=folder / "checkpoints",
        keep=FolderStore(folder / "adapters", context.model(), dtype="float32").put,
        adapters=folder / "adapters",
    )


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: ModelRef, corpus: tuple[list[Problem], list[Trajectory]]
) -> tuple[store.RunDir, Context]:
    """A run whose train stage is done. Tests must not change it."""
    root = tmp_path_factory.mktemp("trained")
    folder, context = make_run(root, corpus), make_context(tiny_model, root / "cache")
    train.run(folder, settings(), context)
    return folder, context
