"""BM25 over pieces of trajectories (Robertson & Zaragoza 2009), by the bm25s library.

Why BM25 and not embeddings: code tasks share rare identifiers and domain words, which lexical scores weigh
well; it needs no second model, so RAG and hypernet differ in the channel alone; and it is deterministic.
Why pieces: a trajectory holds a task, failures and a solution; one long document dilutes the term weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rune import prompts
from rune.types import Hit, Trajectory

_WORD = re.compile(r"[A-Za-z][a-z]+|[A-Z]+(?![a-z])|\d+")


@dataclass(frozen=True, kw_only=True)
class Config:
    """How trajectories are cut and scored."""

    chunk_lines: int = 40  # lines a piece; 40 holds a task or an attempt with its error
    overlap_lines: int = 10  # lines shared by neighbours, so that no error is cut from its code
    k1: float = 1.5  # term saturation, the library's default
    b: float = 0.75  # length normalisation, the library's default

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_lines < self.chunk_lines:
            raise ValueError(f"overlap_lines must be in 0 … chunk_lines − 1, found {self.overlap_lines}")


def words(text: str) -> list[str]:
    """Lower-case words; snake_case and CamelCase names come apart."""
    return [w.lower() for w in _WORD.findall(text)]


def chunks(text: str, size: int, overlap: int) -> list[str]:
    """Pieces of `size` lines, each sharing `overlap` lines with the one before; never empty."""
    lines = text.split("\n")
    step = size - overlap
    starts = range(0, max(len(lines) - overlap, 1), step)
    return ["\n".join(lines[s : s + size]) for s in starts]


class BM25:
    """Ranks trajectories by their best piece."""

    def __init__(self, config: Config, trajectories: Sequence[Trajectory]) -> None:
        # bm25s imports jax where it is installed, and jax would take three quarters of the GPU's memory.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import bm25s

        self._pieces: list[tuple[Trajectory, str]] = [
            (t, piece)
            for t in sorted(trajectories, key=lambda t: t.trajectory_id)
            for piece in chunks(prompts.render_trajectory(t), config.chunk_lines, config.overlap_lines)
        ]
        self._index = bm25s.BM25(k1=config.k1, b=config.b)
        corpus = [words(piece) or ["∅"] for _, piece in self._pieces]
        if corpus:
            self._index.index(corpus, show_progress=False)

    def retrieve(self, query: str, *, top_k: int) -> list[Hit]:
        """The `top_k` best trajectories, best first; fewer if there are fewer."""
        if not self._pieces:
            return []
        scores = self._index.get_scores(words(query) or ["∅"])
        best: dict[str, Hit] = {}
        for (trajectory, piece), score in zip(self._pieces, scores, strict=True):
            held = best.get(trajectory.trajectory_id)
            if held is None or float(score) > held.score:
                best[trajectory.trajectory_id] = Hit(trajectory=trajectory, snippet=piece, score=float(score))
        ranked = sorted(best.values(), key=lambda hit: (-hit.score, hit.trajectory.trajectory_id))
        return ranked[:top_k]


def build(config: Config, trajectories: Sequence[Trajectory]) -> BM25:
    return BM25(config, trajectories)
