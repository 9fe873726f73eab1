"""The frozen base model in training: its weights never change; adapters are applied by `adapters/peft.py`'s hooks."""

# Shapes: B rows · T tokens · D width · P packed response tokens of all rows · V vocabulary · N adapters
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rune import prompts
from rune.adapters.factors import Adapters, LoraTargets, layout_of, weights_of
from rune.adapters.peft import LoraHooks, Pair
from rune.models import chat, loader
from rune.types import Answer, ModelRef

LENGTHS = {"cuda": 32}  # rows are padded to a multiple: few shapes, so that a GPU uses memory and plans again


class Text(NamedTuple):
    """A prompt and the response to be learned, as token ids in one list; the response begins at `start`."""

    ids: tuple[int, ...]
    start: int


class Rows(NamedTuple):
    """Padded texts, and where their response tokens are predicted."""

    ids_BT: Tensor
    row_P: Tensor
    position_P: Tensor  # the hidden state at this position predicts …
    label_P: Tensor  # … this token


@dataclass(eq=False)
class Base:
    """A frozen causal model, its tokenizer and its hooks."""

    ref: ModelRef
    model: nn.Module
    tokenizer: Any
    hooks: LoraHooks
    _layouts: dict[tuple[str, ...], LoraTargets] = field(default_factory=dict, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def layout(self, modules: tuple[str, ...]) -> LoraTargets:
        if modules not in self._layouts:  # in the object: a cache beside it would keep the model alive
            self._layouts[modules] = layout_of(self.model, modules)
        return self._layouts[modules]

    def encode(self, prompt: str, code: str, *, context: str = "", answer: Answer = Answer.PROGRAM) -> Text:
        """The task as every arm is asked it, and `code` closed by its fence as every arm should answer."""
        question = chat.render(self.ref, prompts.task(prompt, context, answer))
        before = self.tokenizer(question, add_special_tokens=False)["input_ids"]
        answer = self.tokenizer(code.strip("\n") + prompts.FENCE, add_special_tokens=False)["input_ids"]
        return Text((*before, *answer), len(before))

    def rows(self, texts: Sequence[Text]) -> Rows:
        multiple = LENGTHS.get(self.device.type, 1)
        longest = -(-max(len(t.ids) for t in texts) // multiple) * multiple
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        row: list[int] = []
        position: list[int] = []
        for b, text in enumerate(texts):
            ids[b, : len(text.ids)] = torch.tensor(text.ids)
            count = len(text.ids) - text.start
            row += [b] * count
            position += range(text.start - 1, text.start - 1 + count)
        packed = torch.tensor([row, position])
        label = ids[packed[0], packed[1] + 1]
        ids, packed, label = (t.to(self.device, non_blocking=True) for t in (ids, packed, label))
        return Rows(ids, packed[0], packed[1], label)

    def logits(self, rows: Rows, applied: Adapters | Mapping[str, Pair] | None) -> Tensor:
        """Logits [P, V] at the response tokens. The B rows are N equal runs, one per adapter; None is the bare model.

        Padding stands on the right of causal attention, so no mask is needed and flash attention applies.
        """
        inner: Any = self.model
        with self.hooks.using(self._stacked(applied)):
            hidden_BTD = inner.model(input_ids=rows.ids_BT, use_cache=False).last_hidden_state
        logits: Tensor = inner.lm_head(hidden_BTD[rows.row_P, rows.position_P])
        return logits

    def _stacked(self, applied: Adapters | Mapping[str, Pair] | None) -> Mapping[str, Pair]:
        """Factors by module type, or what `peft.stack` made of folders, as the hooks want them."""
        if not applied:
            return {}
        if isinstance(next(iter(applied.values())), Pair):
            return cast(Mapping[str, Pair], applied)
        return pairs(cast(Adapters, applied), self.layout(tuple(applied)))

    def log_prob(self, rows: Rows, applied: Adapters | Mapping[str, Pair] | None) -> Tensor:
        """Log-probability of each response token [P], nats."""
        return -F.cross_entropy(self.logits(rows, applied).float(), rows.label_P, reduction="none")

    def squared_norm(self, layout: LoraTargets) -> float:
        """‖W‖²_F over the adapted modules."""
        return sum(float(w.float().square().sum()) for _, _, w in weights_of(self.model, layout))


def load(ref: ModelRef, *, device: str, dtype: str) -> Base:
    """Load, freeze, hook."""
    model = loader.load(ref, device=device, dtype=dtype)
    # cuDNN's attention makes a plan for every new shape, and almost every training step has one.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return Base(ref, model, loader.tokenizer(ref), LoraHooks(model))


@contextmanager
def lent(held: Base | None, ref: ModelRef, *, device: str, dtype: str) -> Iterator[Base]:
    """The base that a process holds already, or one that is loaded and unhooked with the block."""
    base = held or load(ref, device=device, dtype=dtype)
    try:
        yield base
    finally:
        if held is None:
            base.hooks.remove()


def pairs(adapters: Adapters, layout: LoraTargets) -> dict[str, Pair]:
    """N adapters → what the hooks take: module path → a [N, I, R], b [N, R, O]."""
    stacked = {}
    for module, (down_YNRI, up_YNRO) in adapters.items():
        # unbind, not indexing: one backward node for all layers.
        for layer, (a_NRI, b_NRO) in enumerate(zip(down_YNRI.unbind(0), up_YNRO.unbind(0), strict=True)):
            stacked[layout.paths[module].format(layer)] = Pair(a_NRI.transpose(1, 2), b_NRO)
    return stacked
