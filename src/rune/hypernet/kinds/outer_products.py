"""Sums of outer products that passes of the whole base model write from solved tasks: `hypernet/outer_products.py`."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rune.adapters.factors import Factors, LoraTargets, lowered
from rune.errors import DataError
from rune.hypernet import base as bases
from rune.hypernet.base import Base, Text
from rune.hypernet.outer_products import OuterProducts, write
from rune.hypernet.settings import OuterProductsConfig
from rune.types import ModelRef, Trajectory

HOW = "in passes of the base model, each under what those before it wrote"  # for a model card


@dataclass(frozen=True, kw_only=True)
class Config:
    """What settings.json says of it."""

    outer_products: OuterProductsConfig


def build(config: Config, layout: LoraTargets) -> OuterProducts:
    """With weights that are still to be read."""
    own = config.outer_products
    return OuterProducts(layout, correction=own.correction, passes=own.passes, gradient=own.gradient)


def writer(
    config: Config, module: OuterProducts, model: ModelRef, *, device: str, dtype: str, base: Callable[[], Base] | None
) -> Writer:
    """`base`: the whole base model if the process holds it already; otherwise it is loaded."""
    return Writer(config.outer_products, module, base() if base else _load_base(model, device=device, dtype=dtype))


_PASS = threading.Lock()  # writers share a base, and hook its layers while they read


class Writer:
    """Solved tasks in, adapters out. What failed on the way to a solution is not read."""

    def __init__(self, config: OuterProductsConfig, module: OuterProducts, base: Base) -> None:
        self.config, self.module, self.base = config, module, base

    @torch.no_grad()
    def generate(self, sets: Sequence[Sequence[Trajectory]], *, strength: float) -> dict[str, Factors]:
        """strength · what the passes wrote, in float32; R = config.rank, or passes x tokens of it.

        λ scales what was written: the passes read under λ = 1 whatever it is, so that ΔW is linear in it. Raises
        DataError for a set in which nothing is solved, an empty one too.
        """
        texts = [self._texts(one) for one in sets]
        with _PASS:
            made = write(self.base, self.module, texts, tokens=self.config.tokens)
        made = {m: Factors(a.float(), strength * b.float()) for m, (a, b) in made.items()}
        whole = self.config.passes * self.config.tokens
        return lowered(made, self.config.rank) if 0 < self.config.rank < whole else made

    def _texts(self, trajectories: Sequence[Trajectory]) -> list[Text]:
        longest = self.config.max_tokens
        solved = [self.base.encode(t.prompt, t.solution, answer=t.answer) for t in trajectories if t.solved]
        found = [text for text in solved if len(text.ids) <= longest]
        if not found:
            names = ", ".join(t.trajectory_id for t in trajectories[:3]) or "none"
            why = f"a solution of at most {longest} tokens" if solved else "a solution"
            raise DataError(f"this hypernetwork reads solutions, and of the trajectories ({names}) none has {why}")
        return found


@functools.lru_cache(maxsize=1)
def _load_base(model: ModelRef, *, device: str, dtype: str) -> Base:
    """Frozen, so that the checkpoints of a process share it."""
    return bases.load(model, device=device, dtype=dtype)
