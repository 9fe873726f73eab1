"""Collapse, diversity and plateaus on cases whose answer is known; Gram matrices against dense ΔW."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from rune.adapters.factors import Factors, concatenate, inner, squared_norm
from rune.hypernet import diagnostics


def random_factors(
    count: int, rank: int = 2, inputs: int = 6, outputs: int = 5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, rank, inputs, generator=rng), torch.randn(count, rank, outputs, generator=rng)


def dense(down: Tensor, up: Tensor) -> Tensor:
    return up.transpose(-1, -2) @ down


def profile(down: Tensor, up: Tensor, norm: float = 2.0) -> diagnostics.Profile:
    return diagnostics.profile(lambda module, y: (down, up), 2, {"q_proj": [norm, norm]})


def test_the_gram_matrix_equals_dense_inner_products() -> None:
    down, up = random_factors(4)
    flat = dense(down, up).flatten(1)
    assert torch.allclose(diagnostics.gram(down, up), flat @ flat.T, rtol=1e-4)


def test_identical_adapters_have_cosine_one_no_rank_and_no_centred_part() -> None:
    down, up = random_factors(1)
    found = diagnostics.describe(list("abc"), profile(down.expand(3, -1, -1), up.expand(3, -1, -1)))
    assert found["cosine_raw"]["mean_off_diagonal"] == pytest.approx(1.0)
    assert found["cosine_centred"]["mean_off_diagonal"] == 0.0
    assert found["effective_rank"] == 0.0


def test_orthogonal_adapters_have_cosine_zero_and_full_rank() -> None:
    down = torch.eye(4)[:, None, :]  # four adapters, each reading another input
    up = torch.ones(4, 1, 3)
    found = diagnostics.describe(list("abcd"), profile(down, up))
    assert found["cosine_raw"]["mean_off_diagonal"] == pytest.approx(0.0)
    assert found["cosine_centred"]["mean_off_diagonal"] == pytest.approx(-1 / 3)
    assert found["effective_rank"] == pytest.approx(3.0)


def test_a_large_shared_part_hides_diversity_raw_but_not_centred() -> None:
    down, up = random_factors(6, rank=1, seed=1)
    shared = torch.full((6, 1, 6), 30.0), torch.full((6, 1, 5), 30.0)
    both = torch.cat([down, shared[0]], 1), torch.cat([up, shared[1]], 1)
    found = diagnostics.describe(list("abcdef"), profile(*both))
    assert found["cosine_raw"]["mean_off_diagonal"] > 0.999
    assert abs(found["cosine_centred"]["mean_off_diagonal"]) < 0.5
    assert found["effective_rank"] > 2


def test_opposite_adapters_have_cosine_minus_one() -> None:
    down, up = random_factors(1)
    found = diagnostics.cosines(profile(torch.cat([down, down]), torch.cat([up, -up])).gram_NN)
    assert found[0, 1] == pytest.approx(-1.0)


def test_the_profile_is_the_dense_norm_and_its_ratio_to_the_base() -> None:
    down, up = random_factors(3)
    found = profile(down, up, norm=4.0)
    expected = dense(down, up).flatten(1).norm(dim=1).mean().item()
    assert found.frobenius["q_proj"] == pytest.approx([expected, expected], rel=1e-4)
    assert found.ratio["q_proj"] == pytest.approx([expected / 4] * 2, rel=1e-4)


def test_a_zero_adapter_is_no_division_by_zero() -> None:
    down, up = random_factors(2)
    found = diagnostics.describe(["live", "dead"], profile(down, up * torch.tensor([1.0, 0.0])[:, None, None]))
    assert found["cosine_raw"]["matrix"] == [[1.0, 0.0], [0.0, 1.0]]


def test_one_adapter_has_no_pairwise_cosine() -> None:
    assert diagnostics.describe(["a"], profile(*random_factors(1)))["cosine_raw"]["mean_off_diagonal"] is None


def test_concatenated_ranks_add_the_deltas() -> None:
    one = {"q_proj": Factors(*(t[None] for t in random_factors(1, seed=2)))}
    many = {"q_proj": Factors(*(t[None] for t in random_factors(3, rank=3, seed=3)))}
    joined = concatenate(one, many, strength=0.5)["q_proj"]
    expected = dense(*(t[0] for t in one["q_proj"])) + 0.5 * dense(*(t[0] for t in many["q_proj"]))
    assert torch.allclose(dense(joined.down_YNRI[0], joined.up_YNRO[0]), expected, atol=1e-5)
    assert torch.allclose(inner(joined, joined)[0], expected.flatten(1).square().sum(1), rtol=1e-4)
    assert torch.allclose(squared_norm({"q_proj": joined}), inner(joined, joined)[0])


@pytest.mark.parametrize(
    ("curve", "early"),
    [
        (np.exp(-np.linspace(0, 5, 400)), False),  # falls all the way
        (np.full(400, 2.3), True),  # nothing happens
        (np.r_[np.linspace(3, 1, 8), np.full(392, 1.0)], True),  # done in the first 2 %
        (np.r_[np.full(200, 3.0), np.linspace(3, 1, 200)], False),  # late, but it falls
    ],
)
def test_an_early_plateau_is_found_and_only_then(curve: np.ndarray, early: bool) -> None:
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(curve))
    assert diagnostics.convergence(curve)["early_plateau"] is early
    assert diagnostics.convergence(curve + noise)["early_plateau"] is early


def test_a_curve_of_one_step_decides_nothing() -> None:
    assert diagnostics.convergence([1.0])["early_plateau"] is None
