"""Trajectories as the frozen base model sees them: hidden states of its first layers, token by token, each tagged.

A trajectory falls into steps: the task, each failed attempt with its error, the solution. Each step goes through the
base model alone, so that what a step looks like cannot depend on the order of attempts. Solution lines that no failed
attempt has are tagged as the fix. Shallow taps suffice (names and local syntax carry the lesson) and keep one adapter
affordable on a CPU; only the layers below the deepest tap run.
"""

# Shapes: T tokens · S taps · D base width · B sets
from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from rune import config, console
from rune.encoders.shared.token_features import Ending, Kind, Steps, rms
from rune.errors import ModelError
from rune.runs import store
from rune.types import Outcome, Trajectory

MAX_STEP_TOKENS = 1024  # a step over this loses its middle, and `Features.cut` says so
_BATCH_TOKENS = 16384
_PASS = threading.Lock()  # readers share a trunk: while one listens to its layers, nobody else's pass goes through


class Features(NamedTuple):
    """One trajectory. Features lie on the model's device, tags on the CPU; `step_T` counts steps, the task being 0."""

    features_TSD: Tensor
    kind_T: Tensor
    ending_T: Tensor
    step_T: Tensor
    cut: int  # tokens left out of steps that were too long


class _Step(NamedTuple):
    pieces: tuple[tuple[str, Kind], ...]
    ending: Ending


def steps_of(trajectory: Trajectory) -> list[_Step]:
    """The task, every failed attempt with its error, the solution with its fix lines."""
    steps = [_Step((("Task:\n", Kind.TASK), (trajectory.prompt.strip(), Kind.TASK)), Ending.NONE)]
    failed = [a for a in trajectory.attempts if a.outcome is not Outcome.PASSED]
    for attempt in failed:
        error = f"\nError ({attempt.error_kind}):\n{attempt.error.strip()}"
        ending = Ending.TIMED_OUT if attempt.outcome is Outcome.TIMED_OUT else Ending.FAILED
        steps.append(
            _Step((("Attempt:\n", Kind.ATTEMPT), (attempt.code.strip(), Kind.ATTEMPT), (error, Kind.ERROR)), ending)
        )
    if trajectory.solution:
        lines = trajectory.solution.strip().split("\n")
        old = {line.strip() for a in failed for line in a.code.split("\n")}
        # Without a failed attempt nothing was corrected: every line is plain solution.
        pieces = [(f"{line}\n", Kind.FIX if failed and line.strip() not in old else Kind.SOLUTION) for line in lines]
        steps.append(_Step((("Solution:\n", Kind.SOLUTION), *pieces), Ending.PASSED))
    return steps


class Tokens(NamedTuple):
    ids: list[int]
    kinds: list[int]
    cut: int


def tokenise(tokenizer: Any, step: _Step) -> Tokens:
    """One step's token ids and the kind of each, from character offsets: pieces never change the tokenisation."""
    text = "".join(piece for piece, _ in step.pieces)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    bounds: list[tuple[int, Kind]] = []
    end = 0
    for piece, kind in step.pieces:
        end += len(piece)
        bounds.append((end, kind))
    kinds = []
    at = 0
    for start, stop in encoded["offset_mapping"]:
        while at < len(bounds) - 1 and max(start, stop - 1) >= bounds[at][0]:
            at += 1
        kinds.append(int(bounds[at][1]))
    ids = list(encoded["input_ids"])
    cut = max(0, len(ids) - MAX_STEP_TOKENS)
    if cut:
        head = MAX_STEP_TOKENS // 3
        tail = len(ids) - (MAX_STEP_TOKENS - head)
        ids, kinds = ids[:head] + ids[tail:], kinds[:head] + kinds[tail:]
    return Tokens(ids, kinds, cut)


class Reader:
    """Computes and caches features. `folder` None keeps nothing on disk."""

    def __init__(self, model: nn.Module, tokenizer: Any, *, taps: Sequence[int], digest: str, folder: Path | None):
        self._trunk = trunk(model, max(1, *taps))
        self._tokenizer = tokenizer
        self._taps = tuple(taps)
        self._folder = None if folder is None else folder / f"features-{config.digest([digest, list(taps)])[:12]}"
        self.device = next(model.parameters()).device

    def read(self, trajectories: Iterable[Trajectory]) -> list[Features]:
        """Features of each trajectory, on the model's device, in the given order."""
        wanted = list(trajectories)
        done: dict[int, Features] = {}
        for i, trajectory in enumerate(wanted):
            cached = self._load(trajectory)
            if cached is not None:
                done[i] = cached
        missing = [i for i in range(len(wanted)) if i not in done]
        tokens = {i: [(tokenise(self._tokenizer, s), s.ending) for s in steps_of(wanted[i])] for i in missing}
        flat = sorted(
            ((i, j) for i in missing for j in range(len(tokens[i]))), key=lambda ij: len(tokens[ij[0]][ij[1]][0].ids)
        )
        states: dict[tuple[int, int], Tensor] = {}
        batches = list(_batches(flat, [len(tokens[i][j][0].ids) for i, j in flat]))
        with contextlib.ExitStack() as stack:
            # One batch is read at once; a corpus takes minutes on a CPU.
            bar = stack.enter_context(console.Progress("features", len(flat), unit="step")) if batches[1:] else None
            for batch in batches:
                states |= zip(batch, self._forward([tokens[i][j][0].ids for i, j in batch]), strict=True)
                if bar is not None:
                    bar.advance(len(batch))
        for i in missing:
            parts = tokens[i]
            done[i] = Features(
                torch.cat([states.pop((i, j)) for j in range(len(parts))]),
                torch.tensor([k for t, _ in parts for k in t.kinds]),
                torch.tensor([int(e) for t, e in parts for _ in t.ids]),
                torch.tensor([j for j, (t, _) in enumerate(parts) for _ in t.ids]),
                sum(t.cut for t, _ in parts),
            )
            self._save(wanted[i], done[i])
        return [done[i] for i in range(len(wanted))]

    @torch.no_grad()
    def _forward(self, batch: list[list[int]]) -> list[Tensor]:
        longest = max(map(len, batch))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch], device=self.device)
        # Padding stands on the right of causal attention: what is before it cannot see it, so no mask is needed.
        with _PASS, self._tapping() as seen:
            self._trunk(input_ids=ids, use_cache=False)
        tapped_BTSD = torch.stack([seen[tap] for tap in self._taps], 2)
        return [tapped_BTSD[b, : len(row)].clone() for b, row in enumerate(batch)]

    @contextlib.contextmanager
    def _tapping(self) -> Iterator[dict[int, Tensor]]:
        """What leaves each tapped layer of the next pass; tap 0 is what enters the first.

        Hooks of our own: transformers' `output_hidden_states` hooks layers for good, once for every model that shares
        them, so that from the second trunk on its list holds layers twice and a number no longer names a layer.
        """
        seen: dict[int, Tensor] = {}

        def enters(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen[0] = args[0] if args else kwargs["hidden_states"]

        def leaves(tap: int) -> Callable[[nn.Module, Any, Any], None]:
            def keep(module: nn.Module, args: Any, output: Any) -> None:
                seen[tap] = output[0] if isinstance(output, tuple) else output

            return keep

        layers: Any = self._trunk.layers
        handles = [layers[tap - 1].register_forward_hook(leaves(tap)) for tap in self._taps if tap]
        if 0 in self._taps:
            handles.append(layers[0].register_forward_pre_hook(enters, with_kwargs=True))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _path(self, trajectory: Trajectory) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / f"{config.digest([s._asdict() for s in steps_of(trajectory)])[:32]}.safetensors"

    def _load(self, trajectory: Trajectory) -> Features | None:
        path = self._path(trajectory)
        if path is None or not path.is_file():
            return None
        try:
            t = load_file(path)
        except (SafetensorError, OSError):
            return None  # a torn cache file is worth nothing: compute it again
        return Features(t["features"].to(self.device), t["kind"], t["ending"], t["step"], int(t["cut"]))

    def _save(self, trajectory: Trajectory, features: Features) -> None:
        path = self._path(trajectory)
        if path is None:
            return
        names = ("features", "kind", "ending", "step")
        tensors = {n: t.contiguous() for n, t in zip(names, features[:4], strict=True)}
        store.write_atomic(path, save({**tensors, "cut": torch.tensor(features.cut)}))


def _batches(items: list[tuple[int, int]], lengths: list[int]) -> Iterable[list[tuple[int, int]]]:
    """Runs of items sorted by length, each at most `_BATCH_TOKENS` when padded."""
    batch: list[tuple[int, int]] = []
    for item, length in zip(items, lengths, strict=True):
        if batch and (len(batch) + 1) * length > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def trunk(model: nn.Module, layers: int) -> nn.Module:
    """The first `layers` decoder layers of a causal model as a model of their own, sharing its weights.

    Its last hidden state is the raw residual stream (no final norm). Raises ModelError if the model has fewer layers.
    """
    import copy

    inner: Any = model.model if hasattr(model, "model") else model
    if layers > len(inner.layers):
        raise ModelError(f"taps reach layer {layers}, the model has {len(inner.layers)}; set smaller taps")
    settings = copy.deepcopy(inner.config)
    settings.num_hidden_layers = layers
    if getattr(settings, "layer_types", None):
        settings.layer_types = settings.layer_types[:layers]
    with torch.device("meta"):
        shell = type(inner)(settings)
    shell.embed_tokens = inner.embed_tokens
    shell.layers = nn.ModuleList(inner.layers[:layers])
    shell.rotary_emb = inner.rotary_emb
    shell.norm = nn.Identity()
    return shell.eval()


class FeatureTable:
    """Features of many trajectories in one tensor, so that a batch of sets is one gather on the device."""

    def __init__(self, features: Sequence[Features], numbers: Sequence[int] | None = None) -> None:
        """`numbers`: by which sets name them, in the same order; None: 0, 1, …"""
        if not features:
            raise ValueError("a FeatureTable needs one trajectory at least: it knows the feature size from it")
        self.features_XSD = torch.cat([f.features_TSD for f in features])  # X: all tokens of all trajectories
        self._tags = np.concatenate([np.stack([f.kind_T, f.ending_T]) for f in features], 1)
        self._spans: dict[int, list[_Span]] = {}
        start = 0
        for number, one in zip(range(len(features)) if numbers is None else numbers, features, strict=True):
            counts = torch.bincount(one.step_T).tolist()
            spans = []
            for count in counts:
                ending = int(self._tags[1, start]) if count else 0
                spans.append(_Span(start, start + count, ending in (Ending.FAILED, Ending.TIMED_OUT)))
                start += count
            self._spans[number] = spans

    def batch(
        self,
        sets: Sequence[Sequence[int]],
        *,
        max_tokens: int = 0,
        drop: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> Steps:
        """Sets of trajectory numbers → one padded batch; an empty set is legal.

        With an `rng` the steps come in random order and a share `drop` of the tokens is hidden. `max_tokens` > 0 leaves
        out whole attempts of a set beyond it (tasks and solutions stay).
        """
        rows = [self._order(numbers, max_tokens, rng) for numbers in sets]
        longest = max([1, *(sum(s.stop - s.start for s in row) for row in rows)])
        index = np.zeros((len(rows), longest), dtype=np.int64)
        step = np.zeros((len(rows), longest), dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=bool)
        for b, row in enumerate(rows):
            at = 0
            for number, span in enumerate(row):
                count = span.stop - span.start
                index[b, at : at + count] = np.arange(span.start, span.stop)
                step[b, at : at + count] = number
                at += count
            mask[b, :at] = True
        tags = self._tags[:, index]
        if drop and rng is not None:
            mask &= rng.random(mask.shape) >= drop
        device = self.features_XSD.device
        packed = torch.from_numpy(np.concatenate([index[None], tags, step[None], mask[None]])).to(device)
        return Steps(self.features_XSD[packed[0]], packed[4].bool(), packed[1], packed[2], packed[3])

    def _order(self, numbers: Sequence[int], max_tokens: int, rng: np.random.Generator | None) -> list[_Span]:
        spans = [span for number in numbers for span in self._spans[number] if span.stop > span.start]
        if rng is not None:
            spans = [spans[i] for i in rng.permutation(len(spans))]
        over = sum(s.stop - s.start for s in spans) - max_tokens if max_tokens else 0
        kept = []
        for span in spans:
            if over > 0 and span.attempt:
                over -= span.stop - span.start
            else:
                kept.append(span)
        return kept


class _Span(NamedTuple):
    start: int
    stop: int
    attempt: bool  # a failed one


def statistics(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and spread [S, D] of RMS-normalised features [.., S, D] over all tokens, for `FrontEnd.standardise`."""
    total, square, count = None, None, 0
    for features_XSD in chunks:
        x_XSD = rms(features_XSD.float())
        total = x_XSD.sum(0) if total is None else total + x_XSD.sum(0)
        square = x_XSD.square().sum(0) if square is None else square + x_XSD.square().sum(0)
        count += len(x_XSD)
    if total is None or square is None:
        raise ValueError("statistics of no features")
    mean_SD = total / count
    return mean_SD, (square / count - mean_SD.square()).clamp_min(0).sqrt()
