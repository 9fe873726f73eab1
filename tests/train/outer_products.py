"""A hypernetwork of outer products that was never trained: its sizes measured, its steps large enough to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rune.hypernet import base as bases
from rune.hypernet import checkpoint
from rune.hypernet.outer_products import MODULES, OuterProducts, observe
from rune.hypernet.settings import OuterProductsConfig, Precision
from rune.types import ModelRef

SMALL = OuterProductsConfig(passes=2, tokens=16, correction=4, rank=8)


def outer_products(
    folder: Path, model: ModelRef, config: OuterProductsConfig = SMALL, *, precision: Precision = "float32",
    trained_on: Sequence[str] = ("elsewhere/1",), gain: float = 0.05,
) -> OuterProducts:  # fmt: skip
    """Written to `folder`; every one of its weights differs from what a fresh one has."""
    base = bases.load(model, device="cpu", dtype="float32")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        module = OuterProducts(
            base.layout(MODULES),
            correction=config.correction,
            gain=gain,
            passes=config.passes,
            gradient=config.gradient,
        )
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
    text = base.encode("Write f.\n", "def f(x):\n    return blorp(x, zibble=3)\n")
    module.calibrate(base, observe(base, [[text]], tokens=config.tokens, gradient=config.gradient))
    base.hooks.remove()
    checkpoint.save_outer_products(
        folder, module, base.layout(MODULES), config, model, trained_on=trained_on, domains={"elsewhere": ["x"]},
        precision=precision,
    )  # fmt: skip
    return module
