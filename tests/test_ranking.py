"""Fusing, mapping and choosing: tables worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moss_voice.ranking import KEYWORD_SCALE, best, fuse, to_score

F = np.float32


def f32(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.array(values, np.float32)


def i64(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("dense", "keyword", "alpha", "fused"),
    [
        # 0.8 * cosine + 0.2 * 2 * share of the best keyword score
        ((0.5, 0.25, 0.0), (0.0, 3.0, 6.0), 0.8, (0.4, 0.4, 0.4)),
        ((0.5, -1.0), (4.0, 1.0), 0.5, (1.25, -0.25)),
        # meaning alone, keywords alone
        ((0.5, 0.25), (1.0, 9.0), 1.0, (0.5, 0.25)),
        ((0.5, 0.25), (1.0, 4.0), 0.0, (0.5, 2.0)),
        # nobody shares a word: nothing to divide by
        ((0.5, 0.25), (0.0, 0.0), 0.8, (0.4, 0.2)),
        ((), (), 0.8, ()),
    ],
)
def test_fusing_adds_scores(
    dense: tuple[float, ...], keyword: tuple[float, ...], alpha: float, fused: tuple[float, ...]
) -> None:
    """A fused score is the weighted sum of the cosine and the share of the best keyword score."""
    assert KEYWORD_SCALE == 2.0
    given_dense, given_keyword = f32(*dense), f32(*keyword)
    result = fuse(given_dense, given_keyword, alpha=alpha)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, f32(*fused), atol=1e-6)
    np.testing.assert_array_equal(given_dense, f32(*dense))
    np.testing.assert_array_equal(given_keyword, f32(*keyword))


@pytest.mark.parametrize("alpha", [-0.01, 1.01, float("nan")])
def test_alpha_outside_of_its_range_is_an_error(alpha: float) -> None:
    """An alpha outside [0, 1], or none at all, is refused with its value."""
    with pytest.raises(ValueError, match="alpha must be in"):
        fuse(f32(0.1), f32(0.1), alpha=alpha)


def test_unequal_shapes_are_an_error() -> None:
    """Scores of different rows are not silently paired."""
    with pytest.raises(ValueError, match="equal shapes"):
        fuse(f32(0.1, 0.2), f32(0.1), alpha=0.5)


def test_a_cosine_becomes_a_score_between_0_and_1() -> None:
    """-1, 0 and 1 become 0, 1/2 and 1; what rounding pushes beyond is clipped."""
    scores = to_score(f32(-1.0, -0.5, 0.0, 0.5, 1.0, 1.0000002, -1.0000002))
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, f32(0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.0))


@pytest.mark.parametrize(
    ("scores", "ordinals", "k", "positions"),
    [
        ((0.1, 0.9, 0.5), (0, 1, 2), 2, (1, 2)),
        # equal scores: who was there first, wherever it stands now
        ((0.5, 0.5, 0.5, 0.9), (7, 3, 5, 9), 3, (3, 1, 2)),
        # also where the tie is at the cut
        ((0.5, 0.5, 0.5, 0.5), (3, 2, 1, 0), 2, (3, 2)),
        # barred positions never come, even where too few remain
        ((-np.inf, 0.1, -np.inf), (0, 1, 2), 3, (1,)),
        ((-np.inf, -np.inf), (0, 1), 1, ()),
        ((), (), 3, ()),
        ((0.3,), (0,), 0, ()),
    ],
)
def test_the_best_come_first_and_ties_by_order(
    scores: tuple[float, ...], ordinals: tuple[int, ...], k: int, positions: tuple[int, ...]
) -> None:
    """The k best, best first; equal ones in order of ordinal; never one that is barred."""
    assert best(f32(*scores), i64(*ordinals), k=k).tolist() == list(positions)


@given(
    st.lists(st.sampled_from([-np.inf, -0.5, 0.0, 0.25, 0.25000003, 1.0]), max_size=30),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_choosing_is_sorting_and_cutting(scores: list[float], k: int, random: object) -> None:
    """`best` is the head of a full sort by (-score, ordinal) without what is barred."""
    ordinals = list(range(len(scores)))
    random.shuffle(ordinals)  # type: ignore[attr-defined]
    values = f32(*scores)
    order = sorted(range(len(scores)), key=lambda at: (-values[at], ordinals[at]))
    expected = [at for at in order if values[at] > -np.inf][:k]
    assert best(values, i64(*ordinals), k=k).tolist() == expected
