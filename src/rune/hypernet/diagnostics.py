"""What a set of adapters looks like, and whether training still moved. Measurements, none of them a gate.

All from Gram matrices: per layer and module, G[i, j] = ⟨ΔW_i, ΔW_j⟩_F = Σ (A_i A_jᵀ) ∘ (B_iᵀ B_j) is two products of
[N·R, I] and [N·R, O] with themselves; ΔW is never built, and one layer at a time is in memory.
"""

# Shapes: N adapters · R rank · I inputs · O outputs · Y layers
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST_CELLS = 200 * 200  # a larger cosine matrix is left out of the record; its mean stays


class Profile(NamedTuple):
    """Sums over all layers and modules, and the 7-bar profile."""

    gram_NN: np.ndarray
    frobenius: dict[str, list[float]]  # module type → per layer, mean over adapters of ‖ΔW‖_F
    ratio: dict[str, list[float]]  # the same over ‖W‖_F


@torch.no_grad()
def gram(down_NRI: Tensor, up_NRO: Tensor) -> Tensor:
    """⟨ΔW_i, ΔW_j⟩_F of one linear layer [N, N]."""
    count, rank, _ = down_NRI.shape
    a_XI, b_XO = down_NRI.flatten(0, 1), up_NRO.flatten(0, 1)
    product_XX = (a_XI @ a_XI.T) * (b_XO @ b_XO.T)
    return product_XX.view(count, rank, count, rank).sum((1, 3))


def profile(
    layer: Callable[[str, int], tuple[Tensor, Tensor]], layers: int, base_norms: Mapping[str, Sequence[float]]
) -> Profile:
    """`layer(module, y)` gives the factors (down [N, R, I], up [N, R, O]); `base_norms` ‖W‖_F per module and layer."""
    total: Tensor | None = None
    frobenius: dict[str, list[float]] = {m: [] for m in base_norms}
    for module in base_norms:
        for y in range(layers):
            down_NRI, up_NRO = layer(module, y)
            gram_NN = gram(down_NRI.float(), up_NRO.float()).double()
            total = gram_NN if total is None else total + gram_NN
            frobenius[module].append(float(gram_NN.diagonal().clamp_min(0).sqrt().mean()))
    if total is None:
        raise ValueError("a profile of no modules")
    ratio = {m: [f / w for f, w in zip(frobenius[m], base_norms[m], strict=True)] for m in base_norms}
    return Profile(total.cpu().numpy(), frobenius, ratio)


def cosines(gram_NN: np.ndarray) -> np.ndarray:
    """Pairwise cosines of ΔW; a zero adapter has cosine 0 with all others and 1 with itself."""
    norm_N = np.sqrt(np.clip(np.diag(gram_NN), 0, None))
    safe_N = np.where(norm_N > 0, norm_N, 1.0)
    cosine_NN = gram_NN / np.outer(safe_N, safe_N)
    np.fill_diagonal(cosine_NN, 1.0)
    return np.clip(cosine_NN, -1.0, 1.0)


def centre(gram_NN: np.ndarray) -> np.ndarray:
    """Gram matrix of ΔW − mean ΔW: what differs, once the shared part is gone."""
    row_N = gram_NN.mean(0, keepdims=True)
    centred: np.ndarray = gram_NN - row_N - row_N.T + gram_NN.mean()
    # Rounding must not pass for a difference: identical adapters centre to exact zeros.
    tiny = 1e-9 * max(float(np.abs(gram_NN).max()), 1e-300)
    return np.where(np.abs(centred) < tiny, 0.0, centred)


def effective_rank(gram_NN: np.ndarray) -> float:
    """exp of the normalised eigenvalues' entropy (Roy & Vetterli 2007): 0 for identical adapters, at most N − 1."""
    eigenvalues = np.clip(np.linalg.eigvalsh(centre(gram_NN)), 0, None)
    total = float(eigenvalues.sum())
    if total <= 0:
        return 0.0
    share = eigenvalues[eigenvalues > 1e-12 * total] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def mean_off_diagonal(matrix_NN: np.ndarray) -> float | None:
    """None for a single adapter: there is no pair."""
    count = len(matrix_NN)
    if count < 2:
        return None
    return float((matrix_NN.sum() - np.trace(matrix_NN)) / (count * (count - 1)))


def describe(task_ids: Sequence[str], found: Profile) -> dict[str, Any]:
    """One arm's entry of diagnostics.json."""

    def matrix(gram_NN: np.ndarray) -> dict[str, Any]:
        cosine_NN = cosines(gram_NN)
        kept = np.round(cosine_NN, 6).tolist() if cosine_NN.size <= MOST_CELLS else []
        return {
            "task_ids": list(task_ids) if kept else [],
            "matrix": kept,
            "mean_off_diagonal": mean_off_diagonal(cosine_NN),
        }

    norm_N = np.sqrt(np.clip(np.diag(found.gram_NN), 0, None))
    return {
        "adapters": len(task_ids),
        "frobenius": found.frobenius,
        "ratio": found.ratio,
        "cosine_raw": matrix(found.gram_NN),
        "cosine_centred": matrix(centre(found.gram_NN)),
        "effective_rank": effective_rank(found.gram_NN),
        "delta_w_norm_mean": float(norm_N.mean()),
    }


def convergence(losses: Iterable[float], *, early: float = 0.05, tolerance: float = 0.02) -> dict[str, Any]:
    """When the loss stopped falling: the step at which all but `tolerance` of the running mean's fall was done.

    An early plateau lies in the first `early` share of the steps: training did nothing, or was done at once.
    """
    curve = np.array(list(losses), dtype=float)
    steps = len(curve)
    if steps < 2:
        return {"steps": steps, "first": None, "last": None, "plateau_step": None, "early_plateau": None}
    window = max(1, steps // 40)
    mean = np.convolve(curve, np.ones(window) / window, mode="valid")
    best_so_far = np.minimum.accumulate(mean)
    fall = float(mean[0] - best_so_far[-1])
    # The noise of a flat curve is no fall: the ends must differ by more than the scatter within the last tenth.
    tail = mean[-max(2, len(mean) // 10) :]
    if mean[0] - tail.mean() <= 3 * tail.std() or math.isclose(fall, 0.0, abs_tol=1e-9):
        plateau = 0
    else:
        plateau = int(np.argmax(best_so_far <= best_so_far[-1] + tolerance * fall))
    return {
        "steps": steps,
        "first": float(mean[0]),
        "last": float(mean[-1]),
        "plateau_step": plateau,
        "early_plateau": plateau < early * steps,
    }
