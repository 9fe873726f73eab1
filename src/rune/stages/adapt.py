"""trajectories + checkpoints → treatments.jsonl, adapters/ and diagnostics.json.

Every arm is a file in conditions/; all get the same ArmInputs. When all are made, each adapter is proved live before
anything is sampled: its ΔW is not zero, and it moves the logits of a probe prompt. An arm that changes nothing would
score like the base model and pass for "no effect".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rune
from rune import console, plugins
from rune.adapters.modules import MODULES
from rune.conditions.shared.arm_inputs import ArmInputs
from rune.config import ADDED, derive_seed
from rune.config import build as build_config
from rune.errors import AdapterError
from rune.models import registry
from rune.runs import store
from rune.stages.context import Context
from rune.types import AdapterRef, Condition, ModelRef, Problem, Split, Trajectory, Treatment

if TYPE_CHECKING:
    from rune.adapters.factors import LoraTargets
    from rune.adapters.peft import Adapter
    from rune.adapters.store import AdapterStore
    from rune.hypernet.base import Base

PROBE_BATCH = 8  # adapters active at once by the liveness probe


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[adapt]`."""

    arms: tuple[str, ...]  # files in conditions/
    settings: Mapping[str, Any] = field(default_factory=dict)  # arm → its own settings
    swap_tasks: int = 48  # tasks over which swapped adapters are compared; 0 skips it
    # Tasks whose references are read under every one of their adapters, to rank the right donor; 0 skips it.
    rank_tasks: int = field(default=0, metadata=ADDED)
    save_adapters: bool = True  # as PEFT folders; false: they go to the engine as tensors, if it takes them

    def __post_init__(self) -> None:
        if not self.arms or len(set(self.arms)) != len(self.arms):
            raise ValueError("arms must name at least one condition, each once")
        if self.swap_tasks < 0 or self.rank_tasks < 0:
            raise ValueError("swap_tasks and rank_tasks must be 0 (skipped) or more")
        stray = [name for name in self.settings if name not in self.arms]
        if stray:
            raise ValueError(f"settings for '{stray[0]}', which is not among the arms")


def run(
    folder: store.RunDir,
    config: Config,
    context: Context,
    *,
    arm_inputs: ArmInputs,
    adapters: AdapterStore,
) -> list[Treatment]:
    """Make what is missing, prove adapters live, write diagnostics. Returns all treatments.

    `adapters` gives back what `arm_inputs.keep` took. Raises AdapterError for a dead adapter, ConfigError for an
    unknown arm or setting.
    """
    conditions = build(config, arm_inputs)
    problems = [p for p in store.read_jsonl(folder / "problems.jsonl", Problem) if p.split is Split.HELD_OUT]
    path = folder / "treatments.jsonl"
    if path.exists():
        store.repair(path)
    if adapters.in_memory and not folder.stage_done("adapt"):
        path.unlink(missing_ok=True)  # what was in memory went with the process
    done = {(t.condition, t.task_id) for t in store.read_jsonl(path, Treatment)}
    with store.Appender(path) as log:
        _treat(conditions, problems, log.write, done)
    treatments = store.read_jsonl(path, Treatment)
    _inspect(folder, config, context, problems, treatments, adapters)
    return treatments


def build(config: Config, arm_inputs: ArmInputs) -> dict[str, Condition]:
    """Every arm. Raises ConfigError for an unknown one, or a setting that it does not know."""
    conditions: dict[str, Condition] = {}
    for arm in config.arms:
        module = plugins.load("conditions", arm)
        settings = build_config(module.Config, config.settings.get(arm, {}), where=f"adapt.settings.{arm}")
        conditions[arm] = module.build(settings, arm_inputs)
    return conditions


def _treat(
    conditions: Mapping[str, Condition],
    problems: Sequence[Problem],
    keep: Callable[[Treatment], None],
    done: set[tuple[str, str]],
) -> None:
    total = len(problems) * len(conditions)
    with console.Progress("adapt", total, unit="treatment", initial=len(done)) as bar:
        for arm, condition in conditions.items():
            missing = [p for p in problems if (arm, p.task_id) not in done]

            def on_done(treatment: Treatment, arm: str = arm) -> None:
                keep(treatment)
                bar.advance(arm=arm)

            if missing:
                condition.treat(missing, on_done)


def remake(folder: store.RunDir, config: Config, *, arm_inputs: ArmInputs) -> None:
    """Adapters that were in another process's memory, made again. Raises AdapterError if one comes out different."""
    problems = [p for p in store.read_jsonl(folder / "problems.jsonl", Problem) if p.split is Split.HELD_OUT]
    made: list[Treatment] = []
    _treat(build(config, arm_inputs), problems, made.append, set())
    again = {(t.condition, t.task_id): t for t in made}
    for treatment in store.read_jsonl(folder / "treatments.jsonl", Treatment):
        found = again.get((treatment.condition, treatment.task_id))
        if found is None or (found.adapter is None) != (treatment.adapter is None):
            raise AdapterError(f"{folder.path}: made again, {treatment.condition} of {treatment.task_id} is another")
        if found.adapter and treatment.adapter and found.adapter.adapter_id != treatment.adapter.adapter_id:
            raise AdapterError(
                f"{folder.path}: made again here, the adapter of {treatment.condition} for {treatment.task_id} is "
                f"another than the one in treatments.jsonl; go on where it was made, with the rune that made it, or "
                "remove this folder to do all of it again"
            )


def _inspect(
    folder: store.RunDir,
    config: Config,
    context: Context,
    problems: Sequence[Problem],
    treatments: Sequence[Treatment],
    adapters: AdapterStore,
) -> None:
    """Liveness of every adapter, then diagnostics.json."""
    applied = {t.adapter.adapter_id: (t.condition, t.adapter) for t in treatments if t.adapter is not None}
    training = _training(folder / "checkpoints" / "metrics.jsonl")
    if not applied:
        store.write_json(folder / "diagnostics.json", {"arms": {}, "training": training, "swap": {}})
        return
    from rune.hypernet import base as bases

    held = context.session().base if context.session else None
    arms = {}
    swap = {}
    donors = {}
    with bases.lent(held, context.model(), device=context.device, dtype=context.dtype) as base:
        layout = base.layout(MODULES)
        prove_live(base, list(applied.values()), problems[0].prompt, load=adapters.adapter)
        for arm in config.arms:
            own = {t.task_id: t.adapter for t in treatments if t.condition == arm and t.adapter is not None}
            if not own:
                continue
            arms[arm] = describe(base, layout, own, adapters)
            if config.swap_tasks and len({a.adapter_id for a in own.values()}) > 1:
                some = [p for p in problems if p.task_id in own][: config.swap_tasks]
                swap[arm] = swapped(base, some, own, context.seed, load=adapters.adapter)
            if config.rank_tasks and len({a.adapter_id for a in own.values()}) > 1:
                some = [p for p in problems if p.task_id in own and p.reference][: config.rank_tasks]
                donors[arm] = ranked(base, some, own, load=adapters.adapter)
    found = {"arms": arms, "training": training, "swap": swap}
    store.write_json(folder / "diagnostics.json", {**found, **({"donors": donors} if config.rank_tasks else {})})


Load = Callable[[AdapterRef], "Adapter"]  # how an adapter's tensors are had from its record


def prove_live(base: Base, adapters: Sequence[tuple[str, AdapterRef]], prompt: str, *, load: Load) -> None:
    """Raises AdapterError for the first adapter that is zero or moves no logit of the prompt's last token."""
    import torch

    from rune.adapters.peft import stack

    ids = torch.tensor([base.encode(prompt, "").ids], device=base.device)
    model: Any = base.model

    def last_logits(count: int) -> torch.Tensor:
        hidden = model.model(input_ids=ids.expand(count, -1), use_cache=False).last_hidden_state[:, -1]
        logits: torch.Tensor = model.lm_head(hidden).float()
        return logits

    with torch.no_grad():
        for start in range(0, len(adapters), PROBE_BATCH):
            some = adapters[start : start + PROBE_BATCH]
            # The bare model in a batch of the same size: rounding differs between sizes and would pass for an effect.
            bare = last_logits(len(some))
            loaded = [load(ref) for _, ref in some]
            with base.hooks.using(stack(loaded, device=base.device)):
                moved = (last_logits(len(some)) - bare).abs().amax(-1).tolist()
            for (arm, ref), change in zip(some, moved, strict=True):
                if not ref.delta_w_norm > 0 or not change > 0:
                    what = "ΔW is zero" if not ref.delta_w_norm > 0 else "it does not move the model's logits"
                    raise AdapterError(
                        f"{arm}: the adapter {ref.adapter_id} is dead ({what}); train longer, or check its base model, "
                        "then run it again"
                    )


def describe(base: Base, layout: LoraTargets, own: Mapping[str, AdapterRef], adapters: AdapterStore) -> dict[str, Any]:
    """Norms, cosines and rank of one arm's distinct adapters (by task), one linear layer at a time."""
    import torch

    from rune.hypernet import diagnostics

    first: dict[str, str] = {}
    for task, ref in own.items():
        first.setdefault(ref.adapter_id, task)
    refs = [own[task] for task in first.values()]
    has = adapters.adapter(refs[0]).pairs  # an arm's adapters are of one form, and may leave modules as they are
    layout = base.layout(tuple(module for module, path in layout.paths.items() if path.format(0) in has))
    norms = base_norms(base, layout)

    def layer(module: str, y: int) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [adapters.layer(ref, layout.paths[module].format(y)) for ref in refs]
        return torch.stack([down_RI for down_RI, _ in pairs]), torch.stack([up_RO for _, up_RO in pairs])

    return diagnostics.describe(list(first.values()), diagnostics.profile(layer, layout.layers, norms))


def base_norms(base: Base, layout: LoraTargets) -> dict[str, list[float]]:
    """‖W‖_F of the base model's adapted layers, by module type."""
    from rune.adapters.factors import weights_of

    norms: dict[str, list[float]] = {module: [] for module in layout.sizes}
    for module, _, weight in weights_of(base.model, layout):
        norms[module].append(float(weight.float().norm()))
    return norms


def swapped(
    base: Base, problems: Sequence[Problem], adapters: Mapping[str, AdapterRef], seed: int, *, load: Load
) -> dict[str, Any]:
    """Log-probability of each task's reference under its own adapter and under another task's: does the source matter?

    References are read here only, long after training; nothing flows back.
    """
    import random

    import torch

    from rune.adapters.peft import stack
    from rune.hypernet.losses import sequence_log_prob

    chosen = [p for p in problems if p.reference]
    if len(chosen) < 2:
        return {}
    order = list(range(len(chosen)))
    random.Random(derive_seed(seed, "swap")).shuffle(order)
    other = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    own, theirs = [], []
    with torch.no_grad():
        for i, problem in enumerate(chosen):
            rows = base.rows([base.encode(problem.prompt, problem.reference, answer=problem.scorer.answer)] * 2)
            pair = [load(adapters[chosen[j].task_id]) for j in (i, other[i])]
            log_prob_P = base.log_prob(rows, stack(pair, device=base.device))
            mine, swapped_in = sequence_log_prob(log_prob_P, rows.row_P, 2).tolist()
            own.append(mine)
            theirs.append(swapped_in)
    differences = [a - b for a, b in zip(own, theirs, strict=True)]
    return {
        "tasks": len(chosen),
        "mean_abs_delta_log_prob": sum(map(abs, differences)) / len(differences),
        "mean_lead": sum(differences) / len(differences),
        "own_log_prob": sum(own) / len(own),
        "swapped_log_prob": sum(theirs) / len(theirs),
    }


def ranked(
    base: Base, problems: Sequence[Problem], adapters: Mapping[str, AdapterRef], *, load: Load
) -> dict[str, Any]:
    """The right donor's rank among all: 1 if a task's reference is likeliest under its own adapter; ties count half.

    Donors are the adapters of these tasks, each once. Those of the task's own domain but its own take no part: they
    teach the same. Share 0 is the first of all, 0.5 what chance gives. References are read here only; nothing flows
    back. {} where no task has another's adapter to be compared with.
    """
    import torch

    from rune.adapters.peft import stack
    from rune.hypernet.losses import sequence_log_prob

    donors = {adapters[p.task_id].adapter_id: adapters[p.task_id] for p in problems}
    of_domain: dict[str, set[str]] = {}
    for problem in problems:
        of_domain.setdefault(problem.domain or problem.task_id, set()).add(adapters[problem.task_id].adapter_id)
    ids, log_probs = list(donors), {p.task_id: dict.fromkeys(donors, 0.0) for p in problems}
    with torch.no_grad():
        for start in range(0, len(ids), PROBE_BATCH):  # each donor is loaded once
            some = ids[start : start + PROBE_BATCH]
            applied = stack([load(donors[name]) for name in some], device=base.device)
            for problem in problems:
                text = base.encode(problem.prompt, problem.reference, answer=problem.scorer.answer)
                rows = base.rows([text] * len(some))
                found = sequence_log_prob(base.log_prob(rows, applied), rows.row_P, len(some)).tolist()
                log_probs[problem.task_id].update(zip(some, found, strict=True))
    ranks: dict[str, float] = {}
    shares = []
    for problem in problems:
        own = adapters[problem.task_id].adapter_id
        others = donors.keys() - of_domain[problem.domain or problem.task_id]
        if not others:
            continue
        known = log_probs[problem.task_id]
        # "not less": an adapter whose log-probability is no number is the last of all, and not the first
        ahead = sum(0.5 if known[o] == known[own] else float(not known[o] < known[own]) for o in others)
        ranks[problem.task_id] = 1 + ahead
        shares.append(ahead / len(others))
    if not shares:
        return {}
    return {
        "tasks": len(shares),
        "donors": len(donors),
        "mean_rank": sum(ranks.values()) / len(ranks),
        "mean_share": sum(shares) / len(shares),
        "first": sum(rank == 1 for rank in ranks.values()) / len(ranks),
        "best_quarter": sum(share <= 0.25 for share in shares) / len(shares),
        "ranks": ranks,
    }


def _training(metrics: Path) -> dict[str, Any]:
    if not metrics.exists():
        return {}
    from rune.hypernet.diagnostics import convergence

    curves: dict[str, list[float]] = {}
    for _, row in store.read_lines(metrics):
        curves.setdefault(row["phase"], []).append(row["loss"])
    return {phase: convergence(losses) for phase, losses in curves.items()}


def one(
    trajectories: Sequence[Trajectory], output: Path, checkpoint: Path, model: ModelRef, *, strength: float
) -> AdapterRef:
    """One adapter from all of these trajectories, for use outside of any run: a PEFT folder, made on the CPU.

    `strength`: λ. Raises AdapterError for a checkpoint of another base model, DataError for no hypernetwork.
    """
    from rune.adapters import peft
    from rune.adapters.registry import origin
    from rune.hypernet import export

    generator = export.outside(checkpoint, model, device="cpu")
    made = export.adapter_from(generator, trajectories, strength=strength)
    name, revision = registry.hub_name(model.name)
    ref = peft.write_peft(output, made.adapter, base_model_name=name, base_revision=revision)
    store.write_atomic(output / "README.md", _card(trajectories, checkpoint, model, ref, strength, generator.how))
    origin.write(output, made.made_from)
    return ref


def _card(
    trajectories: Sequence[Trajectory],
    checkpoint: Path,
    model: ModelRef,
    ref: AdapterRef,
    strength: float,
    how: str,
) -> str:
    """A model card as the hub reads it: made from what, by what, for which base, and measured with what controls."""
    name, revision = registry.hub_name(model.name)
    lines = [
        f"- `{t.task_id}`, {len(t.attempts)} attempts, {'solved' if t.solved else 'not solved'}" for t in trajectories
    ]
    weights = checkpoint / "model.safetensors"
    made_by = f"`{checkpoint.name}`" + (f" (sha256 `{store.sha256_file(weights)[:12]}`)" if weights.is_file() else "")
    measured = checkpoint / "result.md"
    found = measured.read_text(encoding="utf-8").strip() if measured.is_file() else "Not measured: no result.md there."
    return (
        f"---\nbase_model: {json.dumps(name)}\nlibrary_name: peft\ntags: [lora, hypernetwork, rune]\n---\n\n"
        f"# A LoRA of rank {ref.rank} that a hypernetwork generated from coding trajectories\n\n"
        f"Base: `{name}`{f' at `{revision}`' if revision else ''}, weights sha256 `{model.digest}`. "
        f"Adapter id `{ref.adapter_id}`, ‖ΔW‖_F {ref.delta_w_norm:.3f}, strength λ = {strength:g}.\n\n"
        f"Made by rune {rune.__version__} with the hypernetwork {made_by}, {how}, from\n\n"
        + "\n".join(lines)
        + "\n\n## What this hypernetwork was measured to do\n\nThe controls are the wrong trajectory, an empty one, "
        f"and the constant part alone; what it does on your tasks has not been measured.\n\n{found}\n"
    )
