"""Two phases. A: one static LoRA on all verified solutions. B: the trajectory part on top of it, the static part slow.

What a step of B adds up is in objective.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rune import plugins
from rune.adapters.factors import Adapters, LoraTargets, StaticLora, to_dtype
from rune.config import build as build_config
from rune.config import derive_seed
from rune.hypernet import losses
from rune.hypernet.base import Base
from rune.hypernet.data import Corpus
from rune.hypernet.features import FeatureTable, statistics
from rune.hypernet.loop import Rate, Step, fit
from rune.hypernet.model import Hypernet, make
from rune.hypernet.objective import BUCKETS, Objective
from rune.hypernet.parallel import join
from rune.hypernet.settings import HypernetConfig, LoraConfig


def train_lora(
    base: Base,
    corpus: Corpus,
    config: LoraConfig,
    *,
    seed: int,
    folder: Path,
    metrics: Path,
    initial: StaticLora | None = None,
    stop_after: int | None = None,
) -> StaticLora:
    """Phase A, resumed from `folder` if it was begun there; a new one begins at zero, or at `initial`."""
    with _seeded(derive_seed(seed, "lora")):
        lora = StaticLora(base.layout(config.modules), rank=config.rank, alpha=config.alpha).to(base.device)
    if initial is not None:
        lora.load_state_dict(initial.state_dict())
    dtype = next(base.model.parameters()).dtype
    processes = join(base.device.type)

    def training_step(step: int) -> Step:
        rng = np.random.default_rng([derive_seed(seed, "lora data"), step])
        texts = [corpus.texts[i] for i in corpus.solutions(rng, config.rows, config.shares)]
        rows = base.rows(texts[processes.share(len(texts), "train.lora.rows")])
        log_prob_P = base.log_prob(rows, to_dtype(lora.factors(), dtype))
        tokens = sum(len(text.ids) - text.start for text in texts)
        loss = processes.add(losses.cross_entropy(log_prob_P, torch.ones_like(log_prob_P)) * (len(log_prob_P) / tokens))
        return Step(loss, {"cross_entropy": loss}, rows.ids_BT.numel() * processes.count)

    rates = [Rate(list(lora.parameters()), 1.0)]
    fit(
        lora, rates, config.schedule, training_step, folder=folder, metrics=metrics, phase="lora", stop_after=stop_after
    )
    return lora


class HypernetWithStatic(nn.Module):
    """Static part and hypernetwork: what phase B trains and a checkpoint holds."""

    def __init__(self, static: StaticLora, hypernet: Hypernet) -> None:
        super().__init__()
        self.static = static
        self.hypernet = hypernet
        self.guess = nn.Linear(hypernet.latent_numbers, BUCKETS)  # the lesson term's; not shipped
        nn.init.zeros_(self.guess.weight)

    def inference_state_dict(self) -> dict[str, Tensor]:
        """Without what only training needs."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("guess.")}

    def rates(self, config: HypernetConfig) -> list[Rate]:
        encoder = list(self.hypernet.encoder.parameters())
        inside = {id(p) for p in encoder}
        head = [p for p in self.hypernet.parameters() if id(p) not in inside]
        return [
            Rate(head, 1.0),
            Rate([*encoder, *self.guess.parameters()], config.encoder_rate),
            Rate(list(self.static.parameters()), config.base_rate),
        ]


class EncoderPretraining(nn.Module):
    """The parts of `HypernetWithStatic` that the lesson term alone can teach."""

    def __init__(self, both: HypernetWithStatic) -> None:
        super().__init__()
        self.encoder, self.centre, self.guess = both.hypernet.encoder, both.hypernet.centre, both.guess


def new_hypernet(layout: LoraTargets, config: HypernetConfig) -> Hypernet:
    """A fresh one. Raises ConfigError for an unknown encoder or setting of it."""
    encoder = plugins.load("encoders", config.encoder)
    settings = build_config(encoder.Config, config.encoder_settings, where="encoder_settings")
    return make(
        layout,
        encoder=encoder,
        encoder_config=settings,
        taps=len(config.taps),
        rank=config.rank,
        alpha=config.alpha,
        inputs=config.inputs,
    )


def train_hypernet(
    base: Base,
    corpus: Corpus,
    table: FeatureTable,
    static: StaticLora,
    config: HypernetConfig,
    *,
    seed: int,
    folder: Path,
    metrics: Path,
    reconstruct: Mapping[int, Adapters] | None = None,
    initial: HypernetWithStatic | None = None,
    stop_after: int | None = None,
) -> HypernetWithStatic:
    """Phase B. `table` holds the features of `corpus.readable` by their numbers; `reconstruct` maps their numbers.

    A new one begins on top of `static`, at zero or at the trajectory part of `initial`, whose features are then
    standardised as it learned.
    """
    device = base.device
    layout = base.layout(tuple(static.down_YRI))
    with _seeded(derive_seed(seed, "hypernet")):
        both = HypernetWithStatic(static, new_hypernet(layout, config)).to(device)
    if initial is not None:
        # The static part is phase A's, which itself began where `initial` was.
        both.hypernet.load_state_dict(initial.hypernet.state_dict())
    else:
        both.hypernet.encoder.front.standardise(*statistics_of(table))  # type: ignore[union-attr,operator]
    both.train()
    objective = Objective(base, corpus, table, both, config, layout, reconstruct or {}, seed, join(device.type))
    if config.encoder_first is not None and initial is None:
        first = config.encoder_first
        pretraining = EncoderPretraining(both)
        rates = [Rate(list(pretraining.parameters()), 1.0)]
        fit(
            pretraining,
            rates,
            first.schedule,
            objective.encoder_step,
            folder=folder / "encoder",
            metrics=metrics,
            phase="encoder",
        )
    fit(
        both,
        both.rates(config),
        config.schedule,
        objective.training_step,
        folder=folder,
        metrics=metrics,
        phase="hypernet",
        stop_after=stop_after,
    )
    objective.calibrate()
    return both.eval()


def statistics_of(table: FeatureTable) -> tuple[Tensor, Tensor]:
    """Over at most some 200,000 tokens, evenly spread: more change nothing."""
    every = max(1, len(table.features_XSD) // 200_000)
    return statistics(table.features_XSD[::every].split(8192))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initial weights depend on the seed alone; the process' own random stream is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
