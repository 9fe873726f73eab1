"""A training loop that can be killed: its whole state is one safetensors file, its data a function of the step.

Parameters, AdamW moments, buffers and the step number are written together and atomically; metrics beyond that step are
cut off on resume. A resumed run therefore gives the same curve, to the last bit on a CPU.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rune import console
from rune.errors import DataError
from rune.hypernet.parallel import join
from rune.hypernet.settings import Schedule
from rune.runs import store

FLUSH_EVERY = 10  # steps between reads of the device; each read waits for it


class Rate(NamedTuple):
    """A share of the module's parameters and its learning rate as a factor of the schedule's."""

    parameters: Sequence[nn.Parameter]
    factor: float


class Step(NamedTuple):
    """What one step hands back: the loss to minimise, its terms for the curve, and the tokens it cost."""

    loss: Tensor
    terms: Mapping[str, Tensor]
    tokens: int


class _Pending(NamedTuple):
    step: int
    rate: float
    tokens: int
    values: Tensor  # loss, gradient norm and terms, still on the device


def fit(
    module: nn.Module,
    rates: Sequence[Rate],
    schedule: Schedule,
    take: Callable[[int], Step],
    *,
    folder: Path,
    metrics: Path,
    phase: str,
    stop_after: int | None = None,
) -> None:
    """Train `module` in place, from the last checkpoint in `folder` if there is one.

    Appends one line a step to `metrics`. `stop_after` ends early, with a checkpoint, at that step; the schedule stays.
    Of several processes (`parallel.py`) the first writes. Raises DataError if the loss is not finite, naming the step.
    """
    optimiser = torch.optim.AdamW(
        [{"params": list(r.parameters), "factor": r.factor} for r in rates if r.factor > 0],
        lr=schedule.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=schedule.weight_decay,
    )
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    state = folder / "state.safetensors"
    processes = join(trained[0].device.type)
    start = _resume(state, module, optimiser)
    processes.wait()  # nobody writes before all have read
    if processes.main:
        cut_metrics(metrics, phase, start)
    end = min(schedule.steps, stop_after or schedule.steps)
    pending: list[_Pending] = []
    names: tuple[str, ...] = ()
    cuda = trained[0].device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    clock = time.monotonic()
    with (
        store.Appender(metrics) if processes.main else contextlib.nullcontext() as log,
        console.Progress(f"train {phase}", schedule.steps, unit="step", initial=start) as bar,
    ):

        def flush() -> None:
            nonlocal clock
            if not pending:
                return
            values = torch.stack([row.values for row in pending]).tolist()  # waits for the device once
            now = time.monotonic()
            speed = sum(row.tokens for row in pending) / max(now - clock, 1e-9)
            clock = now
            cost: dict[str, float] = {"tokens_per_second": speed}
            if cuda:
                cost["peak_bytes"] = torch.cuda.max_memory_allocated()  # of this phase so far, the base included
            for row, numbers in zip(pending, values, strict=True):
                record = dict(zip(names, numbers, strict=True))
                if not math.isfinite(record["loss"]):
                    raise DataError(
                        f"{phase}: the loss is {record['loss']} at step {row.step}; lower the learning rate"
                    )
                if log is not None:
                    log.write({"phase": phase, "step": row.step, "learning_rate": row.rate, **record, **cost})
            bar.advance(len(pending), loss=f"{record['loss']:.3f}", tokens_per_s=f"{speed:.0f}")
            pending.clear()

        for step in range(start, end):
            rate = learning_rate(schedule, step)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            done = take(step)
            optimiser.zero_grad(set_to_none=True)
            done.loss.backward()
            processes.add_gradients(trained)
            gradient = nn.utils.clip_grad_norm_(trained, schedule.clip)
            optimiser.step()
            names = ("loss", "gradient_norm", *done.terms)
            values = torch.stack([t.detach().float() for t in (done.loss, gradient, *done.terms.values())])
            pending.append(_Pending(step, rate, done.tokens, values))
            last = step + 1 == end
            if len(pending) >= FLUSH_EVERY or last:
                flush()
            if (step + 1) % schedule.checkpoint_every == 0 or last:
                flush()
                if processes.main:
                    _save(state, module, optimiser, step + 1)


def learning_rate(schedule: Schedule, step: int) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    warm = max(1, round(schedule.warmup * schedule.steps))
    if step < warm:
        return schedule.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, schedule.steps - warm)
    return schedule.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def _save(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for number, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
    # clone: safetensors refuses tensors that share storage.
    plain = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    store.write_atomic(path, save(plain, metadata={"step": str(step)}))


def _resume(path: Path, module: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            step = int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a training state ({error}); delete it to train from the start") from None
    try:
        module.load_state_dict({n[7:]: t for n, t in tensors.items() if n.startswith("module.")})
    except RuntimeError:
        raise DataError(f"{path}: made with other settings; delete it to train from the start") from None
    moments: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return step


def cut_metrics(path: Path, phase: str, start: int) -> None:
    """Drop lines of `phase` from step `start` on: they will be written again."""
    if not path.exists():
        return
    store.repair(path)
    lines = [raw for _, raw in store.read_lines(path)]
    kept = [raw for raw in lines if raw["phase"] != phase or raw["step"] < start]
    if len(kept) != len(lines):
        store.write_jsonl(path, kept)
