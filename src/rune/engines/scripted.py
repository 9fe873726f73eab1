"""Answers written beforehand: a real engine for tests, demos and dry runs. Deterministic, no model.

`answers` maps a piece of a prompt to texts; the first piece found in the prompt answers, and seed s draws text
s mod their number (chance by seed, as in every engine). A piece "<adapter id>:<piece>" answers only under that
adapter, and wins. A prompt without an answer is an error unless `default` is set, and an adapter must be listed or
appear in a piece: no engine answers for an unknown one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rune.adapters.folders import AdapterSource, Folders
from rune.engines.shared.streams import Turns, TurnTicket, no_logprobs
from rune.errors import AdapterError, EngineError
from rune.models import identity
from rune.types import AdapterRef, Completion, Listener, ModelRef, Request

if TYPE_CHECKING:
    from rune.adapters.peft import Adapter


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `[engine]` when name = "scripted"."""

    answers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # piece of a prompt → texts by seed
    default: tuple[str, ...] = ()  # texts for every other prompt; () refuses them
    adapters: tuple[str, ...] = ()  # ids that are known without an answer of their own
    read_adapters: bool = False  # accept every adapter whose folder can be read, as the other engines do


def build(
    config: Config, *, model: ModelRef, device: str, dtype: str, adapters: AdapterSource | None = None
) -> ScriptedEngine:
    return ScriptedEngine(config, model, adapters or Folders())


class ScriptedEngine:
    """See the module's docstring."""

    def __init__(self, config: Config, model: ModelRef, adapters: AdapterSource) -> None:
        self.config, self.model, self._adapters = config, model, adapters
        self._handed_over: set[str] = set()
        self._turns = Turns(self.complete)

    def put_adapter(self, adapter_id: str, adapter: Adapter) -> AdapterRef:
        """Know an adapter from tensors, as the torch engine does; it changes no answer."""
        from rune.adapters import peft

        if not identity.fits(self.model, adapter.base_model):
            raise AdapterError(f"adapter {adapter_id} was made for another base model than {self.model.name}")
        self._handed_over.add(adapter_id)
        return AdapterRef(
            adapter_id=adapter_id,
            base_model=self.model.digest,
            rank=adapter.rank,
            delta_w_norm=peft.delta_w_norm(adapter),
        )

    def drop_adapter(self, adapter_id: str) -> None:
        self._handed_over.discard(adapter_id)

    def complete(self, requests: Sequence[Request]) -> Iterator[Completion]:
        no_logprobs("scripted", requests)
        chosen = [(request, self._answers(request)) for request in requests]  # refuse before the first answer
        for request, texts in chosen:
            for draw in range(request.n):
                yield _completion(request, draw, texts[(request.seed + draw) % len(texts)])

    def submit(self, request: Request, listen: Listener) -> TurnTicket:
        return self._turns.submit(request, listen)

    def close(self) -> None:
        self._turns.close()

    def _answers(self, request: Request) -> tuple[str, ...]:
        if request.adapter is not None:
            own = {
                key.removeprefix(f"{request.adapter.adapter_id}:"): texts
                for key, texts in self.config.answers.items()
                if key.startswith(f"{request.adapter.adapter_id}:")
            }
            self._check(request.adapter, bool(own))
            for piece, texts in own.items():
                if piece in request.prompt:
                    return texts
        for piece, texts in self.config.answers.items():
            if piece in request.prompt:
                return texts
        if not self.config.default:
            raise EngineError(
                f"the scripted engine has no answer for request {request.key!r}; add one to engine.answers or set "
                "engine.default"
            )
        return self.config.default

    def _check(self, adapter: AdapterRef, answered: bool) -> None:
        if not identity.fits(self.model, adapter.base_model):
            raise AdapterError(
                f"adapter {adapter.adapter_id} was made for another base model than "
                f"{self.model.name}{identity.difference(self.model, adapter.base_model)}"
            )
        if adapter.adapter_id in self._handed_over:
            return
        if self.config.read_adapters:
            from rune.adapters import peft

            peft.read_peft(self._adapters.folder(adapter))  # its errors are the other engines' errors
            return
        if not answered and adapter.adapter_id not in self.config.adapters:
            known = ", ".join(self.config.adapters) or "none"
            raise AdapterError(f"unknown adapter {adapter.adapter_id}; the scripted engine knows: {known}")


def _completion(request: Request, draw: int, text: str) -> Completion:
    """The text as an engine would have ended it: before the first stop string, at most so many words long."""
    cuts = [place for place in (text.find(stop) for stop in request.sampling.stop if stop) if place >= 0]
    text = text[: min(cuts)] if cuts else text
    words = text.split()
    limit = request.sampling.max_new_tokens
    return Completion(
        key=request.key,
        draw=draw,
        seed=request.seed + draw,
        text=text,
        num_tokens=min(len(words), limit),
        finish_reason="stop" if len(words) <= limit else "length",
    )
