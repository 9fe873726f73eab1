"""Each loss term on a case whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rune.adapters.factors import Factors
from rune.hypernet import losses


def factors(down: torch.Tensor, up: torch.Tensor) -> dict[str, Factors]:
    """One module, one layer: down [N, R, I], up [N, R, O]."""
    return {"q_proj": Factors(down[None], up[None])}


def test_cross_entropy_of_a_uniform_guess_is_log_vocabulary() -> None:
    log_prob = torch.full((6,), -math.log(50))
    assert losses.cross_entropy(log_prob, torch.ones(6)).item() == pytest.approx(math.log(50))


def test_cross_entropy_counts_only_weighted_tokens() -> None:
    log_prob = torch.tensor([-1.0, -100.0, -3.0])
    assert losses.cross_entropy(log_prob, torch.tensor([1.0, 0.0, 1.0])).item() == pytest.approx(2.0)


def test_log_probabilities_are_summed_per_row() -> None:
    found = losses.sequence_log_prob(torch.tensor([-1.0, -2.0, -4.0]), torch.tensor([0, 0, 2]), 3)
    assert found.tolist() == [-3.0, 0.0, -4.0]


def test_target_contrast_is_softplus_of_margin_minus_lead() -> None:
    """Same adapter, two solutions: right leads by 5 nats, margin 3."""
    found = losses.contrast(torch.tensor([-10.0]), torch.tensor([-15.0]), margin=3.0)
    assert found.item() == pytest.approx(math.log1p(math.exp(-2.0)))


def test_source_contrast_pulls_the_right_adapter_up_and_the_wrong_one_down() -> None:
    right, wrong = torch.tensor([-8.0], requires_grad=True), torch.tensor([-8.0], requires_grad=True)
    losses.contrast(right, wrong, margin=3.0).backward()
    assert right.grad is not None and wrong.grad is not None
    assert right.grad.item() == pytest.approx(-torch.sigmoid(torch.tensor(3.0)).item())
    assert wrong.grad.item() == pytest.approx(-right.grad.item())


def test_an_input_blind_adapter_pays_the_contrast_in_full() -> None:
    same = torch.tensor([-7.0, -9.0])
    assert losses.contrast(same, same, margin=3.0).item() == pytest.approx(math.log1p(math.exp(3.0)))


def test_kl_to_base_is_zero_for_equal_logits_and_right_for_a_coin() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    assert losses.kl(logits, logits + 3.0).item() == pytest.approx(0.0, abs=1e-6)
    fair, biased = torch.zeros(1, 2), torch.tensor([[math.log(0.9), math.log(0.1)]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert losses.kl(fair, biased).item() == pytest.approx(expected, rel=1e-5)


def test_kl_to_the_teacher_with_all_tokens_kept_is_the_full_divergence() -> None:
    rng = torch.Generator().manual_seed(1)
    teacher, student = torch.randn(3, 5, generator=rng), torch.randn(3, 5, generator=rng)
    top = teacher.log_softmax(-1).topk(5, -1)
    assert losses.kl_top(top.values, top.indices, student).item() == pytest.approx(
        losses.kl(teacher, student).item(), rel=1e-3
    )


def test_kl_to_the_teacher_with_few_tokens_kept_is_a_lower_bound_and_zero_at_the_teacher() -> None:
    rng = torch.Generator().manual_seed(2)
    teacher, student = 3 * torch.randn(8, 40, generator=rng), torch.randn(8, 40, generator=rng)
    top = teacher.log_softmax(-1).topk(4, -1)
    kept = losses.kl_top(top.values, top.indices, student).item()
    assert 0 < kept <= losses.kl(teacher, student).item() + 1e-5
    assert losses.kl_top(top.values, top.indices, teacher).item() == pytest.approx(0.0, abs=1e-5)


def test_kl_to_the_teacher_with_one_token_left_out_is_the_full_divergence_and_pulls_the_same_way() -> None:
    """The rest is then one token: its bucket takes part in the gradient as any other."""
    rng = torch.Generator().manual_seed(3)
    teacher, student = torch.randn(6, 5, generator=rng), torch.randn(6, 5, generator=rng)
    top = teacher.log_softmax(-1).topk(4, -1)
    ours, full = student.clone().requires_grad_(), student.clone().requires_grad_()
    found, exact = losses.kl_top(top.values, top.indices, ours), losses.kl(teacher, full)
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)
    found.backward()
    exact.backward()
    assert ours.grad is not None and full.grad is not None
    assert torch.allclose(ours.grad, full.grad, atol=1e-5)


def test_norm_is_the_mean_squared_frobenius_norm_over_that_of_the_base() -> None:
    """Rank 1: ‖b aᵀ‖² = ‖a‖²‖b‖² = 25 · 4 and 0."""
    down = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])
    up = torch.tensor([[[2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]]])
    assert losses.norm(factors(down, up), 10.0).item() == pytest.approx(0.5 * 100 / 10)


def test_variance_hinge_is_full_for_collapsed_latents_and_zero_for_spread_ones() -> None:
    assert losses.variance_hinge(torch.ones(8, 5)).item() == pytest.approx(0.99, abs=1e-3)
    spread = 3.0 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    assert losses.variance_hinge(spread).item() == 0.0


def test_lesson_is_log_buckets_for_no_idea_and_zero_for_a_certain_guess() -> None:
    bag = torch.zeros(2, 16)
    bag[0, 3] = 1.0
    assert losses.bag_of_tokens_loss(torch.zeros(2, 16), bag).item() == pytest.approx(
        math.log(16)
    )  # the empty row counts nothing
    assert losses.bag_of_tokens_loss(50 * bag, bag).item() == pytest.approx(0.0, abs=1e-5)


def test_reconstruction_is_zero_at_the_target_one_at_zero_and_four_at_its_opposite_sign_tripled() -> None:
    rng = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, 2, 5, generator=rng), torch.randn(2, 2, 4, generator=rng)
    target = factors(down, up)
    assert losses.reconstruction(target, target).item() == pytest.approx(0.0, abs=1e-5)
    assert losses.reconstruction(factors(down, 0 * up), target).item() == pytest.approx(1.0)
    assert losses.reconstruction(factors(down, -up), target).item() == pytest.approx(4.0, rel=1e-5)


def test_reconstruction_agrees_with_dense_matrices_for_different_ranks() -> None:
    rng = torch.Generator().manual_seed(4)
    a1, b1 = torch.randn(1, 2, 5, generator=rng), torch.randn(1, 2, 4, generator=rng)
    a2, b2 = torch.randn(1, 3, 5, generator=rng), torch.randn(1, 3, 4, generator=rng)
    dense1, dense2 = b1[0].T @ a1[0], b2[0].T @ a2[0]
    expected = ((dense1 - dense2).square().sum() / dense2.square().sum()).item()
    assert losses.reconstruction(factors(a1, b1), factors(a2, b2)).item() == pytest.approx(expected, rel=1e-4)


def test_the_terms_are_differentiable_where_they_must_be() -> None:
    logits = torch.zeros(3, 7, requires_grad=True)
    log_prob = F.log_softmax(logits, -1)[:, 0]
    (losses.cross_entropy(log_prob, torch.ones(3)) + losses.kl(torch.randn(3, 7), logits)).backward()
    assert logits.grad is not None and logits.grad.any()
