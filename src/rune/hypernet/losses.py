"""Loss terms: pure functions, each with a known answer in tests/hypernet/test_losses.py. Weights live in settings."""

# Shapes: B rows · T response tokens · V vocabulary · K kept teacher tokens · N adapters · D latent numbers
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rune.adapters.factors import Adapters, inner, squared_norm


def sequence_log_prob(log_prob_P: Tensor, row_P: Tensor, rows: int) -> Tensor:
    """Sum of token log-probabilities per row [B], from the packed response tokens P of all rows."""
    return torch.zeros(rows, device=log_prob_P.device, dtype=log_prob_P.dtype).index_add(0, row_P, log_prob_P)


def cross_entropy(log_prob_P: Tensor, weight_P: Tensor) -> Tensor:
    """Weighted mean negative log-probability of the response tokens, nats a token."""
    return -(log_prob_P * weight_P).sum() / weight_P.sum().clamp_min(1e-9)


def contrast(right_B: Tensor, wrong_B: Tensor, *, margin: float) -> Tensor:
    """softplus(margin − (log p right − log p wrong)): about 0 once right leads by more than `margin` nats.

    Target contrast: same prompt and adapter, two lessons' solutions. Source contrast: same prompt and solution, two
    lessons' adapters. Cross-entropy alone is satisfied by one average adapter; this is not.
    """
    return F.softplus(margin - (right_B - wrong_B)).mean()


def kl(teacher_PV: Tensor, student_PV: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher ‖ student) in nats, from logits."""
    teacher_log = teacher_PV.float().log_softmax(-1)
    student_log = student_PV.float().log_softmax(-1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(-1).mean()


def kl_top(top_log_prob_PK: Tensor, top_id_PK: Tensor, student_PV: Tensor) -> Tensor:
    """KL(teacher ‖ student) when only the teacher's K best log-probabilities are kept; the rest is one bucket.

    A lower bound of the full divergence, exact in the kept tokens (Doc-to-LoRA keeps 16).
    """
    student_log_PV = student_PV.float().log_softmax(-1)
    student_log_PK = student_log_PV.gather(-1, top_id_PK)
    kept = (top_log_prob_PK.exp() * (top_log_prob_PK - student_log_PK)).sum(-1)
    rest_teacher = (1 - top_log_prob_PK.exp().sum(-1)).clamp_min(1e-6)
    rest_student = (1 - student_log_PK.exp().sum(-1)).clamp_min(1e-6)
    return (kept + rest_teacher * (rest_teacher.log() - rest_student.log())).mean()


def norm(adapters: Adapters, base_squared_norm: float) -> Tensor:
    """Mean over adapters of ‖ΔW‖²_F / ‖W‖²_F, all modules together."""
    return squared_norm(adapters).mean() / base_squared_norm


def variance_hinge(latents_ND: Tensor, *, floor: float = 1.0) -> Tensor:
    """VICReg's variance term (Bardes et al. 2022, eq. 1): mean of max(0, floor − spread over the batch)."""
    spread_D = (latents_ND.float().var(0) + 1e-4).sqrt()
    return F.relu(floor - spread_D).mean()


def bag_of_tokens_loss(logits_NH: Tensor, bag_NH: Tensor) -> Tensor:
    """Cross-entropy of guessed words against the words that are there, both over H hash buckets; nats a word.

    `bag_NH` marks the words of a target solution that its prompt lacks; a row without any counts nothing. The frozen
    base model takes no part, so the encoder learns what tells lessons apart long before the heads can use it.
    """
    count_N = bag_NH.sum(-1)
    guessed_N = (bag_NH * logits_NH.log_softmax(-1)).sum(-1) / count_N.clamp_min(1)
    return -guessed_N.sum() / (count_N > 0).sum().clamp_min(1)


def reconstruction(adapters: Adapters, targets: Adapters) -> Tensor:
    """Mean over adapters of ‖ΔW − ΔW*‖²_F / ‖ΔW*‖²_F, through Gram matrices. Ranks may differ."""
    cross_N = torch.stack([inner(f, targets[m]).sum(0) for m, f in adapters.items()]).sum(0)
    goal_N = squared_norm(targets)
    return ((squared_norm(adapters) - 2 * cross_N + goal_N) / goal_N.clamp_min(1e-12)).mean()
