"""A static LoRA: one adapter for all tasks. It generates none."""

from __future__ import annotations

from dataclasses import dataclass

from rune.adapters.factors import LoraTargets, StaticLora
from rune.hypernet.settings import LoraConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """What settings.json says of it."""

    lora: LoraConfig


def build(config: Config, layout: LoraTargets) -> StaticLora:
    """With weights that are still to be read."""
    return StaticLora(layout, rank=config.lora.rank, alpha=config.lora.alpha)
