"""Scores in, scores out: pure functions, and the one place for the constants of ranking.

Each constant names the measurement that chose it; `docs/decisions/004-ranking.md` has the tables.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONVERSATION_TURNS",
    "CONVERSATION_WEIGHT",
    "DEFAULT_ALPHA",
    "DEFAULT_TOP_K",
    "KEYWORD_DECAY",
    "KEYWORD_SCALE",
    "best",
    "fuse",
    "to_score",
]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

DEFAULT_TOP_K = 5
DEFAULT_ALPHA = 0.8

# At the default alpha of 0.8 a keyword score then counts half as much as a cosine: the mixture
# `dense + 0.5 kw` that won on LoCoMo and DSTC10 (design, section 5).
KEYWORD_SCALE = 2.0

# DSTC10: the mean of the previous three turns' vectors, weighted 0.8, beside the turn's own, and the
# words of the last four turns (design, section 5).
CONVERSATION_TURNS = 3
CONVERSATION_WEIGHT = 0.8
# Share of a keyword's weight that is left one turn later.
KEYWORD_DECAY = 0.5


def fuse(dense: F32, keyword: F32, *, alpha: float) -> F32:
    """Mix meaning and keywords by adding scores.

    Adding beats reciprocal rank fusion on every set that we measured: ranks throw away how much
    better the first hit is than the second.

    Args:
        dense: (n,) float32 cosines in [-1, 1].
        keyword: (n,) float32 BM25 scores >= 0.
        alpha: 1 counts meaning alone, 0 keywords alone.

    Returns:
        (n,) float32: `alpha * dense + (1 - alpha) * KEYWORD_SCALE * keyword / max(keyword)`.

    Raises:
        ValueError: If `alpha` is outside [0, 1] or the shapes differ.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if dense.shape != keyword.shape:
        raise ValueError(f"expected equal shapes, got {dense.shape} and {keyword.shape}")
    top = float(keyword.max(initial=0.0))
    fused: F32 = np.float32(alpha) * dense
    if top > 0.0 and alpha < 1.0:
        fused += np.float32((1.0 - alpha) * KEYWORD_SCALE / top) * keyword
    return fused


def to_score(cosine: F32) -> F32:
    """Map cosines in [-1, 1] to scores in [0, 1]: `(1 + cosine) / 2`, clipped against rounding."""
    mapped: F32 = np.clip((cosine + np.float32(1.0)) * np.float32(0.5), 0.0, 1.0)
    return mapped


def best(scores: F32, ordinals: I64, *, k: int) -> I64:
    """Return the positions of the k best scores, best first, equal scores in order of ordinal.

    Args:
        scores: (n,) float32; `-inf` marks what must not be returned.
        ordinals: (n,) int64, distinct.
        k: How many at the most.

    Returns:
        (<= k,) int64 positions into `scores`. O(n + k log k) but for many ties.
    """
    if 0 < k < scores.size:
        threshold = np.partition(scores, scores.size - k)[scores.size - k]
        candidates = np.flatnonzero(scores >= threshold)
    else:
        candidates = np.arange(scores.size)
    order = np.lexsort((ordinals[candidates], -scores[candidates]))
    chosen = candidates[order][:k]
    return chosen[scores[chosen] > -np.inf].astype(np.int64)
