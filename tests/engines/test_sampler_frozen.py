"""Tokens drawn are a function of seed, step and logits alone: these are the numbers and tokens of the published runs.

The tests beside this one say that the draws are fair; this one says that the same seed goes on drawing the same.
"""

from __future__ import annotations

import hashlib

import pytest
import torch

from rune.engines.local import sampler
from rune.types import Sampling


def test_numbers_of_a_seed_and_step_are_the_frozen_ones() -> None:
    found = sampler.uniforms([0, 1, 7, -1, 2**63, 2**64 + 1], 4)
    assert found.shape == (6, 4)
    assert [[f"{value:.17f}" for value in row] for row in found.tolist()] == UNIFORMS
    assert (found[1] == found[5]).all(), "a seed counts by its 64 bits"


LIMITS = {
    "any": {}, "top 5": {"top_k": 5}, "top 1": {"top_k": 1}, "nucleus": {"top_p": 0.7},
    "narrow nucleus": {"top_p": 0.01}, "both": {"top_k": 20, "top_p": 0.6}, "all of them": {"top_k": 100_000},
    "nearly all": {"top_p": 0.9999},
}  # fmt: skip


def tokens(limits: dict[str, float], size: int, temperature: float, spread: float) -> str:
    """Tokens of 40 rows with numbers from 0 to nearly 1, and a few tokens forbidden."""
    # no two alike in a row, and no generator of torch's behind them
    place = (torch.arange(size) * 7919 + torch.arange(40)[:, None] * 104_729) % 15_485_863 % 6007
    logits = place.double().argsort(-1).argsort(-1).float() * (5 * spread / size)
    logits[:, 3 : 3 + size // 3] = float("-inf")
    uniform = torch.linspace(0.0, 1.0 - 2.0**-40, 40, dtype=torch.float64)
    drawn = sampler.draw(logits, uniform, Sampling(temperature=temperature, max_new_tokens=1, **limits))  # type: ignore[arg-type]
    assert drawn.shape == (40,) and drawn.dtype == torch.int64
    assert (logits.gather(1, drawn[:, None]) > float("-inf")).all(), "a forbidden token was drawn"
    return " ".join(map(str, drawn.tolist()))


@pytest.mark.parametrize("name", LIMITS)
def test_tokens_of_a_number_are_the_frozen_ones(name: str) -> None:
    lines = [
        tokens(LIMITS[name], size, temperature, spread)
        for size in (90, 128, 129, 3000)
        for temperature, spread in ((0.8, 1.0), (1.7, 0.1), (0.0, 1.0))
    ]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == TOKENS[name], lines


UNIFORMS = [
    ["0.65244848637403219", "0.70121210952152524", "0.38712414097578551", "0.65641370707307101"],
    ["0.36818951565166946", "0.94356423086485441", "0.04525699773739167", "0.77743691848008523"],
    ["0.72150818060497024", "0.64970433646845571", "0.54937432491932392", "0.60423480536831453"],
    ["0.36624209016975739", "0.74080506200138174", "0.51056208989368201", "0.92696182910632652"],
    ["0.52678793114654621", "0.35978012631979606", "0.02179269988418875", "0.99792263080460730"],
    ["0.36818951565166946", "0.94356423086485441", "0.04525699773739167", "0.77743691848008523"],
]
TOKENS = {
    "any": "bff37839fb864aa9",
    "top 5": "fdb085f31f74f6b8",
    "top 1": "4df178154be6bb82",
    "nucleus": "e7726632f4e81032",
    "narrow nucleus": "c5cd567e4edbbca5",
    "both": "e73db12001e10c97",
    "all of them": "bff37839fb864aa9",
    "nearly all": "bc76aad374763d1f",
}
