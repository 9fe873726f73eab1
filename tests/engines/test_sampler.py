"""Chance without a sort: exact against dense references, fair, and a function of seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rune.engines.local import sampler
from rune.types import Sampling


def logits(rows: int, size: int, spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * spread


def reference(row: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities as transformers' warpers leave them."""
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(sampling.temperature)(None, row[None])
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.softmax(-1)[0]


@pytest.mark.parametrize("size", [600, 49_152, 151_936, 50_001])
def test_the_largest_logits_are_found_exactly(size: int) -> None:
    row = logits(3, size)
    values, ids = sampler.top(row, 40)
    expected = row.topk(40)
    assert torch.equal(values, expected.values)
    assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.8, max_new_tokens=1),
        Sampling(temperature=0.8, max_new_tokens=1, top_k=10),
        Sampling(temperature=1.0, max_new_tokens=1, top_p=0.6),
        Sampling(temperature=1.3, max_new_tokens=1, top_k=20, top_p=0.8),
    ],
)
def test_draws_have_the_distribution_that_transformers_samples_from(sampling: Sampling) -> None:
    """Evenly spaced uniforms walk the whole inverse CDF: frequencies are the probabilities up to 1/n."""
    for size, spread in ((700, 2.0), (70_000, 6.0)):
        row = logits(1, size, spread)
        n = 20_000 if size < 1000 else 400
        uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        drawn = torch.cat([sampler.draw(row.expand(len(u), -1), u, sampling) for u in uniform.split(200)])
        frequency = torch.bincount(drawn, minlength=size) / n
        expected = reference(row[0], sampling)
        assert (frequency - expected).abs().max() <= 1.5 / n + 1e-6
        assert set(drawn.tolist()) <= set(expected.nonzero()[:, 0].tolist())


def test_a_nucleus_wider_than_the_candidates_is_still_exact() -> None:
    row = torch.zeros(1, 5000) + logits(1, 5000, 0.01)
    sampling = Sampling(temperature=1.0, max_new_tokens=1, top_p=0.9)
    uniform = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    drawn = sampler.draw(row.expand(500, -1), uniform, sampling)
    assert len(set(drawn.tolist())) > 480
    assert set(drawn.tolist()) <= set(reference(row[0], sampling).nonzero()[:, 0].tolist())


def test_greedy_takes_the_largest() -> None:
    row = logits(5, 3000)
    greedy = Sampling(temperature=0.0, max_new_tokens=1)
    assert torch.equal(sampler.draw(row, torch.zeros(5, dtype=torch.float64), greedy), row.argmax(-1))


def test_a_row_draws_the_same_among_any_neighbours() -> None:
    row, uniform = logits(64, 30_000), torch.from_numpy(sampler.uniforms(list(range(64)), 1)[:, 0])
    for sampling in (
        Sampling(temperature=1.0, max_new_tokens=1),
        Sampling(temperature=1.0, max_new_tokens=1, top_k=40),
        Sampling(temperature=1.0, max_new_tokens=1, top_p=0.9),
    ):
        whole = sampler.draw(row, uniform, sampling)
        alone = torch.cat([sampler.draw(row[i : i + 1], uniform[i : i + 1], sampling) for i in range(64)])
        assert torch.equal(whole, alone)


def test_logits_are_left_as_they_were() -> None:
    row = logits(2, 1000)
    before = row.clone()
    sampler.draw(row, torch.tensor([0.1, 0.9], dtype=torch.float64), Sampling(temperature=0.5, max_new_tokens=1))
    assert torch.equal(row, before)


def test_uniforms_are_even_and_depend_on_seed_and_step_only() -> None:
    numbers = sampler.uniforms([*range(500), 2**63 + 1, -1], 400)
    assert numbers.min() >= 0 and numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
    assert (abs(counts - numbers.size / 50) < 5 * np.sqrt(numbers.size / 50)).all()
    assert np.array_equal(sampler.uniforms([7], 10)[0], numbers[7, :10])
    assert abs(np.corrcoef(numbers[:-1, :-1].ravel(), numbers[1:, :-1].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.01
    assert len(np.unique(numbers)) == numbers.size


# --------------------------------------------------------------------------- rows of different shapes, borders


def even(count: int) -> torch.Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def frequencies(row: torch.Tensor, sampling: Sampling, count: int, *beside: torch.Tensor) -> torch.Tensor:
    """How often each token comes when evenly spaced uniforms walk the inverse CDF; other rows stand between."""
    found = []
    for uniform in even(count).split(500):
        batch = torch.stack([row, *beside]).repeat(len(uniform), 1)
        drawn = sampler.draw(batch, uniform.repeat_interleave(1 + len(beside)), sampling)
        found.append(drawn[:: 1 + len(beside)])
    return torch.bincount(torch.cat(found), minlength=len(row)) / count


@pytest.mark.parametrize(("spread", "top_p"), [(0.01, 0.5), (0.01, 0.99), (0.5, 0.9)])
def test_a_flat_distribution_is_drawn_from_over_its_whole_nucleus(top_p: float, spread: float) -> None:
    """Thousands of tokens belong to it, far more than the candidates looked at first, and each as often as it should.

    A peaked row stands beside every flat one: each gets its own nucleus.
    """
    row, peaked = logits(1, 2000, spread, seed=4)[0], logits(1, 2000, 9.0, seed=5)[0]
    sampling = Sampling(temperature=1.0, max_new_tokens=1, top_p=top_p)
    expected = reference(row, sampling)
    assert int((expected > 0).sum()) > 1.5 * sampler._NUCLEUS
    found = frequencies(row, sampling, 4000, peaked)
    assert (found - expected).abs().max() <= 1.5 / 4000 + 1e-6
    assert bool((found[expected > 1.5 / 4000] > 0).all())
    # A token on the nucleus' border may fall either way by rounding.
    assert int(((found > 0) & (expected == 0)).sum()) <= 1
    beside = frequencies(peaked, sampling, 1000, row)
    assert (beside - reference(peaked, sampling)).abs().max() <= 1.5 / 1000 + 1e-6


def test_a_nucleus_ends_with_the_token_that_reaches_its_mass() -> None:
    """Shares 0.5, 0.3, 0.15, 0.05: the smallest head of mass ≥ top_p, and always the best token."""
    row = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    heads = {0.01: {1}, 0.49: {1}, 0.51: {1, 3}, 0.79: {1, 3}, 0.81: {0, 1, 3}, 0.94: {0, 1, 3}, 0.96: {0, 1, 2, 3}}
    for top_p, head in heads.items():
        for top_k in (0, 4, 3):
            sampling = Sampling(temperature=1.0, max_new_tokens=1, top_p=top_p, top_k=top_k)
            found = frequencies(row, sampling, 400)
            assert set(found.nonzero()[:, 0].tolist()) <= head
            if top_k != 3:  # top-k first: with three left the shares are larger
                assert set(found.nonzero()[:, 0].tolist()) == head, top_p


@pytest.mark.parametrize("size", [40, 200, 1000])
def test_top_k_leaves_exactly_k_tokens_and_all_of_them_if_there_are_no_more(size: int) -> None:
    row = logits(1, size, 0.3)[0]
    for top_k in (1, 2, 7, size - 1, size, size + 5):
        found = frequencies(row, Sampling(temperature=1.0, max_new_tokens=1, top_k=top_k), 5000)
        assert set(found.nonzero()[:, 0].tolist()) == set(row.topk(min(top_k, size)).indices.tolist())


@pytest.mark.parametrize("limits", [{}, {"top_k": 9}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.7}])
def test_a_temperature_scales_the_logits_under_every_filter(limits: dict[str, float]) -> None:
    """Half the logits at half the temperature are the same distribution; another temperature is another one."""
    row = logits(1, 300, 2.0)[0]
    hot, cold = (Sampling(temperature=t, max_new_tokens=1, **limits) for t in (1.4, 0.7))  # type: ignore[arg-type]
    uniform = even(500)
    same = sampler.draw((row / 2).expand(500, -1), uniform, cold)
    assert torch.equal(sampler.draw(row.expand(500, -1), uniform, hot), same)
    assert not torch.equal(sampler.draw(row.expand(500, -1), uniform, cold), same)


@pytest.mark.parametrize("limits", [{}, {"top_k": 3}, {"top_p": 0.9}])
def test_the_first_and_the_last_number_draw_tokens_that_may_be_drawn(limits: dict[str, float]) -> None:
    """Forbidden tokens at both ends of the vocabulary, in a chunk of their own and in shared ones."""
    row = torch.full((300,), float("-inf"))
    row[130:134] = torch.tensor([0.0, 1.0, 0.5, 0.2])
    sampling = Sampling(temperature=1.0, max_new_tokens=1, **limits)  # type: ignore[arg-type]
    drawn = sampler.draw(row.expand(3, -1), torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64), sampling)
    assert set(drawn.tolist()) <= {130, 131, 132, 133}
    assert row[drawn].isfinite().all()


def test_a_whole_nucleus_keeps_even_what_rounding_would_hide() -> None:
    share = torch.tensor([[1.0, 1e-9, 0.0], [0.5, 0.25, 0.25]])
    assert torch.equal(sampler._nucleus(share, 1.0), share)
    assert sampler._nucleus(share, 0.75).tolist() == [[1.0, 0.0, 0.0], [0.5, 0.25, 0.0]]
    assert sampler._nucleus(share, 0.76).tolist() == [[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]]
    assert sampler._nucleus(share, 1e-6).tolist() == [[1.0, 0.0, 0.0], [0.5, 0.0, 0.0]]
