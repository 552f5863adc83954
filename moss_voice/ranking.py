"""Scores in, scores out: pure functions, and the one place for the constants of ranking.

The law: a hit's score is a sum of parts, and each part can be left out by its name (`Part`). Every
constant names the measurement that chose it; `docs/quality.md` has the tables, `make bench-quality`
makes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONVERSATION_TURNS",
    "CONVERSATION_WEIGHT",
    "CONVERSATION_WEIGHT_IN_FOCUS",
    "DEFAULT_ALPHA",
    "DEFAULT_TOP_K",
    "FOCUS_DECAY",
    "FOCUS_NEARNESS",
    "FOCUS_WEIGHT",
    "KEYWORDS_IN_CONVERSATION",
    "KEYWORDS_IN_FOCUS",
    "KEYWORDS_OF_TURNS",
    "KEYWORD_DECAY",
    "KEYWORD_DECAY_IN_FOCUS",
    "PARTS",
    "Part",
    "best",
    "check_parts",
    "decayed",
    "diverse",
    "fuse",
    "keyword_unit",
    "lent",
    "newer",
    "threshold",
    "to_score",
    "widened",
]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

Part = Literal[
    "conversation",
    "keyword_window",
    "focus",
    "topic_change",
    "neighbours",
    "recency",
    "spread",
    "near_duplicates",
    "numbers",
    "gate",
]
"""What a call's retrieval does beyond a search by the last turn; each can be turned off by its name."""

PARTS: Final[tuple[Part, ...]] = get_args(Part)

DEFAULT_TOP_K: Final = 5
DEFAULT_ALPHA: Final = 0.8

# How much more than in a plain query a word counts; see `keyword_unit`. A turn is found by its words
# more than a passage is (QMSum), a passage by those of the conversation more than by a lone question's;
# once it is known which thing the caller means, the words about it say less (DSTC11: R@1 .71 against .68).
KEYWORDS_OF_TURNS: Final = 1.2
KEYWORDS_IN_CONVERSATION: Final = 1.6
KEYWORDS_IN_FOCUS: Final = 1.0

# The mean of the previous three turns' vectors, beside the turn's own. It stands in for the name of
# what the call is about: where that is known it mostly blurs (DSTC11 R@1 .61 with 0.8, .70 with 0.3).
CONVERSATION_TURNS: Final = 3
CONVERSATION_WEIGHT: Final = 0.8
CONVERSATION_WEIGHT_IN_FOCUS: Final = 0.3
# Share of a keyword's weight that is left one turn later.
KEYWORD_DECAY: Final = 0.5
KEYWORD_DECAY_IN_FOCUS: Final = 0.4

# What a passage gains for being about the value named last, and the share of it per value named since.
FOCUS_WEIGHT: Final = 0.5
FOCUS_DECAY: Final = 0.7
# Below this share of the turn's nearness to the knowledge, no passage of the value is what the turn is
# about, and the value gains nothing. Of right values 2% lie under 0.55 (DSTC10) and 0.63 (DSTC11).
FOCUS_NEARNESS: Final = 0.45

# The share of its score that a turn lends to the one before and the one after: 0.2 to 0.3 are as good
# as each other on QMSum, 0.3 won on LoCoMo (design, section 5).
NEIGHBOUR_WEIGHT: Final = 0.25
# What the last turn of a call gains on the first: decides between turns that are equally good (QMSum hit@1
# .42 to .44). In a call shorter than this all turns are recent, and it is less by as much.
RECENCY_WEIGHT: Final = 0.03
RECENCY_TURNS: Final = 128
# Taken from turns close to one that is chosen: they are of one passage of talk, and other such passages
# should be heard too (QMSum hit@5 .73 to .76, hit@10 .84 to .86). Up to four turns away, but no more
# than a 32nd of the call: in a short one everything is close. The turn right after stays as it is: it
# may be the answer.
SPREAD_PENALTY: Final = 0.16
SPREAD_TURNS: Final = 4
SPREAD_SHARE: Final = 1 / 32
# Candidates kept while a call's query walks a graph: 0.93 of the ten nearest of 10,000 real passages are
# among those that come out, 0.98 with the 150 of a plain query, in half the time; what a call asks for
# is proposed by words and names as well.
GRAPH_EF: Final = 64
# A hit whose cosine with a better one is above this says much the same; one of cosine 1 loses the
# penalty in full (Banking77 R@5 .928 to .942, DSTC11 hit@5 +.002).
DUPLICATE_COSINE: Final = 0.8
DUPLICATE_PENALTY: Final = 0.24

# How near a turn is to a knowledge index: its best cosine among a sample of the passages, and a little
# more for a turn that asks, which takes the share of DSTC10's turns that need it and are let through from
# .93 to .98. A little of what was said before counts too, for the sake of follow-ups: of four ("and on
# sundays?") in 43 dialogues .50 pass without it, .70 with it, and of 22 pieces of small talk .09 and .20.
GATE_SAMPLE: Final = 512
GATE_ASKS: Final = 0.1
GATE_CONVERSATION: Final = 0.1
# Passages nearer than this to each other say the same, and tell nothing of how near a question comes.
GATE_COPY: Final = 0.95
# So does one whose words the index has: a best BM25 score of one `keyword_unit`, which is what a word or
# two are worth that only few passages have ("flashing orange").
GATE_WORDS: Final = 1.0
# A turn that asks nothing needs no earlier turn either unless that one says much the same: a cosine of
# 0.3. By eye, on the demo call; no data here tells which earlier turns a statement needs.
UNASKED_MIN_SCORE: Final = 0.65
# A turn needs the index from this share on of what its own passages have among each other: 0.98 to 1 of
# the turns that do are let through (DSTC10, DSTC11, Banking77), and of those that do not need DSTC10's
# index, which ask for other things, few are kept out; small talk is.
GATE_SHARE: Final = 0.55


def check_parts(names: Iterable[str]) -> frozenset[Part]:
    """Return the names of parts as a set.

    Raises:
        ValueError: If one is no part; tells which there are.
    """
    known: dict[str, Part] = {part: part for part in PARTS}
    given = frozenset(names)
    unknown = sorted(given - known.keys())
    if unknown:
        raise ValueError(f"expected parts of {', '.join(PARTS)}; got {', '.join(unknown)}")
    return frozenset(known[name] for name in given)


def keyword_unit(n_docs: int) -> float:
    """Return the BM25 score that counts as much as a cosine of 1 where alpha is 0.5.

    It is `ln(1 + n_docs)`, about what a word has that one document alone holds: BM25's scores grow with
    the logarithm of their index, and a call begins with a handful of turns. Not the query's best score:
    "okay great thanks" must not lift whatever passage holds one of its words to the top (Banking77 R@1
    .79 with this, .76 with the best score).
    """
    return math.log1p(n_docs) if n_docs > 0 else 1.0


def fuse(dense: F32, keyword: F32, *, alpha: float, keyword_weight: float = 1.0) -> F32:
    """Mix meaning and keywords by adding scores.

    Adding beats reciprocal rank fusion on every set that we measured: ranks throw away how much
    better the first hit is than the second.

    Args:
        dense: (n,) float32 cosines in [-1, 1].
        keyword: (n,) float32 BM25 scores >= 0.
        alpha: 1 counts meaning alone, 0 keywords alone.
        keyword_weight: What a BM25 score of 1 counts, a cosine of 1 being 1.

    Returns:
        (n,) float32: `alpha * dense + (1 - alpha) * keyword_weight * keyword`.

    Raises:
        ValueError: If `alpha` is outside [0, 1] or the shapes differ.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if dense.shape != keyword.shape:
        raise ValueError(f"expected equal shapes, got {dense.shape} and {keyword.shape}")
    fused: F32 = np.float32(alpha) * dense
    if alpha < 1.0:
        fused += np.float32((1.0 - alpha) * keyword_weight) * keyword
    return fused


def to_score(cosine: F32) -> F32:
    """Map cosines in [-1, 1] to scores in [0, 1]: `(1 + cosine) / 2`, clipped against rounding."""
    mapped: F32 = (cosine + np.float32(1.0)) * np.float32(0.5)
    # What np.clip does, without its overhead.
    np.maximum(mapped, np.float32(0.0), out=mapped)
    np.minimum(mapped, np.float32(1.0), out=mapped)
    return mapped


def widened(vector: F32, earlier: Sequence[F32], *, weight: float) -> F32:
    """Add what was said before to a query, at no model run.

    Args:
        vector: (dim,) float32 unit vector of the turn.
        earlier: Those of the turns before it; the last `CONVERSATION_TURNS` count, all alike.
        weight: Of their mean.

    Returns:
        (dim,) float32 unit vector; `vector` itself where nothing is to be added.
    """
    recent = earlier[-CONVERSATION_TURNS:]
    if not recent or weight == 0.0:
        return vector
    wide: F32 = sum(recent[1:], start=recent[0]) * np.float32(weight / len(recent))
    wide += vector
    norm = float(np.sqrt(wide @ wide))
    return wide / np.float32(norm) if norm > 1e-6 else vector


def decayed(
    terms: Iterable[int], earlier: Iterable[Iterable[int]], *, decay: float
) -> dict[int, float]:
    """Weigh the words of a turn and of those before it.

    Args:
        terms: Term hashes of the turn: each counts 1.
        earlier: Those of the turns before, the latest first: each counts `decay` to the power of its
            age, by its latest mention.
        decay: In [0, 1]; 0 counts the turn alone.
    """
    weights = dict.fromkeys(terms, 1.0)
    for age, said in enumerate(earlier if decay > 0.0 else (), start=1):
        weight = decay**age
        for term in said:
            weights.setdefault(term, weight)
    return weights


def lent(scores: F32, *, weight: float = NEIGHBOUR_WEIGHT) -> F32:
    """Return what each turn gets from its neighbours: a share of how much better than most they are.

    The answer to a question often sits in the turn after the one that shares its words. Measured from
    the mean of the call, so that a turn's sum stays comparable with a passage's, which has none.

    Args:
        scores: (n,) float32, one per turn in the order spoken.
        weight: Share lent by each direct neighbour, in [0, 1).

    Returns:
        (n,) float32, below 0 where the neighbours are worse than the mean. O(n).

    Raises:
        ValueError: If `weight` is out of range.
    """
    if not 0.0 <= weight < 1.0:
        raise ValueError(f"weight must be in [0, 1), got {weight}")
    shares = np.float32(weight) * (scores - scores.mean()) if scores.size else scores
    got = np.zeros_like(scores)
    got[1:] += shares[:-1]
    got[:-1] += shares[1:]
    return got


def newer(n: int) -> F32:
    """Return what each of n turns, the earliest first, gains for being recent: (n,) float32."""
    most = RECENCY_WEIGHT * min(1.0, (n - 1) / RECENCY_TURNS)
    return np.linspace(0.0, most, n, dtype=np.float32)


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


def diverse(
    scores: F32,
    *,
    k: int,
    places: I64 | None = None,
    n_turns: int = 0,
    vectors: F32 | None = None,
) -> list[tuple[int, float]]:
    """Choose k of some candidates one after another, so that they don't all say the same.

    Each one chosen takes something from those still to choose: from turns close to it in the call, and
    from what says nearly the same (after Carbonell and Goldstein 1998, MMR, with a threshold).

    Args:
        scores: (n,) float32, best first.
        k: How many at the most.
        places: (n,) int64 places in the call; None where candidates are no turns.
        n_turns: How long the call is.
        vectors: (n, dim) float32 unit rows; None where near-duplicates are welcome.

    Returns:
        Positions into `scores` in the order chosen, each with what it lost, 0 or below: so that sums
        descend. O(n * n * dim).
    """
    left = scores.astype(np.float32, copy=True)
    reach = min(SPREAD_TURNS, int(n_turns * SPREAD_SHARE))
    alike = None
    if vectors is not None:
        alike = vectors @ vectors.T
        alike -= np.float32(DUPLICATE_COSINE)
        np.maximum(alike, np.float32(0.0), out=alike)
        alike *= np.float32(DUPLICATE_PENALTY / (1.0 - DUPLICATE_COSINE))
    chosen: list[tuple[int, float]] = []
    for _ in range(min(k, left.size)):
        at = int(left.argmax())
        chosen.append((at, float(left[at] - scores[at])))
        left[at] = -np.inf
        if places is not None and reach:
            away = places - places[at]
            left[(np.abs(away) <= reach) & (away != 1)] -= np.float32(SPREAD_PENALTY)
        if alike is not None:
            left -= alike[at]
    return chosen


def threshold(nearest: Iterable[F32]) -> float:
    """Return the nearness from which on a turn needs an index.

    Args:
        nearest: Of some of the index's passages, (n,) float32 cosines with other passages each.

    Returns:
        `GATE_SHARE` of the median of their best cosines, copies left out; -1, which lets every turn
        pass, where there are none.
    """
    best_ones = [
        float(others.max()) for cosines in nearest if (others := cosines[cosines < GATE_COPY]).size
    ]
    return GATE_SHARE * float(np.median(best_ones)) if best_ones else -1.0
