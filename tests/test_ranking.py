"""The arithmetic of ranking: tables worked out by hand, and naive versions where there are any."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moss_voice.ranking import (
    CONVERSATION_TURNS,
    DUPLICATE_COSINE,
    DUPLICATE_PENALTY,
    GATE_COPY,
    GATE_SHARE,
    NEIGHBOUR_WEIGHT,
    PARTS,
    RECENCY_WEIGHT,
    SPREAD_PENALTY,
    SPREAD_SHARE,
    SPREAD_TURNS,
    best,
    check_parts,
    decayed,
    diverse,
    fuse,
    keyword_unit,
    lent,
    newer,
    threshold,
    to_score,
    widened,
)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
U = 7.5


def f32(*values: float) -> F32:
    return np.array(values, np.float32)


def i64(*values: int) -> I64:
    return np.array(values, np.int64)


# --- fusing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dense", "keyword", "alpha", "keyword_weight", "fused"),
    [
        # 0.8 * cosine + 0.2 * keyword score in units
        ((0.5, 0.25, 0.0), (0.0, U, 2 * U), 0.8, 1.0, (0.4, 0.4, 0.4)),
        ((0.5, -1.0), (U, 0.5 * U), 0.5, 1.0, (0.75, -0.25)),
        # a word counts more, or less; meaning does not notice
        ((0.5, 0.5), (0.0, U), 0.8, 1.6, (0.4, 0.72)),
        ((0.5, 0.5), (0.0, U), 0.8, 0.5, (0.4, 0.5)),
        ((0.5, 0.5), (0.0, U), 0.8, 0.0, (0.4, 0.4)),
        # meaning alone, keywords alone
        ((0.5, 0.25), (1.0, 9.0), 1.0, 9.0, (0.5, 0.25)),
        ((0.5, 0.25), (U, 4 * U), 0.0, 1.0, (1.0, 4.0)),
        ((0.5, 0.25), (0.0, 0.0), 0.8, 1.0, (0.4, 0.2)),
        ((), (), 0.8, 1.0, ()),
    ],
)
def test_fusing_adds_scores(
    dense: tuple[float, ...],
    keyword: tuple[float, ...],
    alpha: float,
    keyword_weight: float,
    fused: tuple[float, ...],
) -> None:
    """A fused score is the weighted sum of the cosine and the keyword score in units; inputs stay."""
    given_dense, given_keyword = f32(*dense), f32(*keyword)
    result = fuse(given_dense, given_keyword, alpha=alpha, keyword_weight=keyword_weight / U)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, f32(*fused), atol=1e-6)
    np.testing.assert_array_equal(given_dense, f32(*dense))
    np.testing.assert_array_equal(given_keyword, f32(*keyword))


def test_a_document_s_score_does_not_depend_on_the_others() -> None:
    """The unit is fixed: a weak word stays weak where no document has a better one."""
    alone = fuse(f32(0.3), f32(0.5), alpha=0.8)
    among = fuse(f32(0.3, 0.1), f32(0.5, 20.0), alpha=0.8)
    assert alone[0] == among[0] == pytest.approx(0.24 + 0.2 * 0.5)


def test_the_unit_of_keywords_grows_with_the_index() -> None:
    """A word that one document alone holds is worth about one unit, in a call of three turns as well."""
    assert keyword_unit(0) == 1.0
    assert keyword_unit(1) == pytest.approx(0.6931, abs=1e-4)
    for n_docs in (3, 100, 12_039):
        rarest = math.log1p((n_docs - 1 + 0.5) / 1.5)
        assert 0.65 < rarest / keyword_unit(n_docs) < 1.0


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


# --- what was said before --------------------------------------------------------------------------

EAST, NORTH, UP = f32(1, 0, 0), f32(0, 1, 0), f32(0, 0, 1)


@pytest.mark.parametrize(
    ("vector", "earlier", "weight", "direction"),
    [
        (EAST, [NORTH], 1.0, (1, 1, 0)),
        (EAST, [NORTH], 0.5, (2, 1, 0)),
        # the mean of those before, however many there are
        (EAST, [NORTH, UP], 0.8, (1, 0.4, 0.4)),
        (EAST, [NORTH, NORTH, UP], 0.6, (1, 0.4, 0.2)),
        # only the last three count
        (EAST, [UP, UP, NORTH, NORTH, NORTH], 1.0, (1, 1, 0)),
        (EAST, [EAST, NORTH], 1.0, (1.5, 0.5, 0)),
    ],
)
def test_a_query_is_widened_by_the_mean_of_the_last_turns(
    vector: F32, earlier: list[F32], weight: float, direction: tuple[float, ...]
) -> None:
    """The mean of the last three turns is added, and the sum is a unit vector; nothing given changes."""
    assert CONVERSATION_TURNS == 3
    before = [vector.copy(), *(each.copy() for each in earlier)]
    wide = widened(vector, earlier, weight=weight)
    assert wide.dtype == np.float32
    expected = np.array(direction) / np.linalg.norm(direction)
    np.testing.assert_allclose(wide, expected, atol=1e-6)
    for now, then in zip([vector, *earlier], before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    ("earlier", "weight"),
    [
        ([], 0.8),
        ([NORTH], 0.0),
        # what was said before is the very opposite: no direction is left
        ([-EAST], 1.0),
    ],
)
def test_a_query_stays_itself_where_nothing_is_to_be_added(
    earlier: list[F32], weight: float
) -> None:
    """With no turns, no weight or nothing left of the sum, the very vector comes back."""
    assert widened(EAST, earlier, weight=weight) is EAST


@pytest.mark.parametrize(
    ("terms", "earlier", "decay", "weights"),
    [
        ([1, 2], [], 0.5, {1: 1.0, 2: 1.0}),
        ([1], [[2], [3, 4]], 0.5, {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.25}),
        # a word counts by its latest mention, and once
        ([1, 1], [[2, 1], [2, 3]], 0.4, {1: 1.0, 2: 0.4, 3: 0.16}),
        # a turn without words ages the others all the same
        ([1], [[], [2]], 0.5, {1: 1.0, 2: 0.25}),
        ([], [[2]], 0.5, {2: 0.5}),
        ([1], [[2], [3]], 1.0, {1: 1.0, 2: 1.0, 3: 1.0}),
        ([1], [[2], [3]], 0.0, {1: 1.0}),
    ],
)
def test_words_weigh_less_the_longer_ago_they_were_said(
    terms: list[int], earlier: list[list[int]], decay: float, weights: dict[int, float]
) -> None:
    """A word of the turn counts 1, one of k turns ago `decay**k`, by its latest mention."""
    assert decayed(terms, earlier, decay=decay) == pytest.approx(weights)


# --- neighbours and age ----------------------------------------------------------------------------


def test_an_answer_gets_from_the_question_before_it() -> None:
    """The answer without the question's words comes before what stands beside nothing good.

    The mean of the call is 0.1. The answer gets a quarter of the 0.8 that the question is over it, and of
    the 0.1 that the turn after is under it: 0.25 * (0.8 - 0.1) = 0.175.
    """
    #            small talk, question, answer, small talk ...
    scores = f32(0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    got = lent(scores)
    assert NEIGHBOUR_WEIGHT == 0.25
    np.testing.assert_allclose(
        got, f32(0.2, -0.05, 0.175, -0.05, -0.05, -0.05, -0.05, -0.05, -0.025), atol=1e-6
    )
    assert (scores + got).argsort()[::-1][:3].tolist() == [1, 0, 2]
    np.testing.assert_array_equal(scores, f32(0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("scores", "weight", "got"),
    [
        ((), 0.25, ()),
        # nobody is beside it
        ((0.7,), 0.25, (0.0,)),
        # the ends have one neighbour
        ((1.0, 0.0), 0.5, (-0.25, 0.25)),
        ((3.0, 0.0, 0.0), 0.5, (-0.5, 0.5, -0.5)),
        # a call in which all are alike lends nothing, however good they are
        ((0.9, 0.9, 0.9), 0.25, (0.0, 0.0, 0.0)),
        ((1.0, 0.0), 0.0, (0.0, 0.0)),
    ],
)
def test_neighbours_lend_what_is_over_the_mean(
    scores: tuple[float, ...], weight: float, got: tuple[float, ...]
) -> None:
    """Each turn gets its share from each side, less than nothing from those below the mean."""
    result = lent(f32(*scores), weight=weight)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, f32(*got), atol=1e-6)


@given(
    st.lists(st.floats(-1, 2, width=32), max_size=20),
    st.floats(0, 0.99),
)
def test_lending_is_the_double_loop(scores: list[float], weight: float) -> None:
    """What a turn gets is the sum over those at a distance of one, and the scores stay as they were."""
    values = f32(*scores)
    mean = math.fsum(scores) / len(scores) if scores else 0.0
    expected = [
        sum(weight * (scores[j] - mean) for j in range(len(scores)) if abs(i - j) == 1)
        for i in range(len(scores))
    ]
    np.testing.assert_allclose(lent(values, weight=weight), expected, atol=1e-5)
    np.testing.assert_array_equal(values, f32(*scores))


@pytest.mark.parametrize("weight", [-0.1, 1.0, float("nan")])
def test_a_share_outside_of_its_range_is_an_error(weight: float) -> None:
    """A turn does not lend all that it has, nor less than nothing."""
    with pytest.raises(ValueError, match="weight must be in"):
        lent(f32(0.1, 0.2), weight=weight)


@pytest.mark.parametrize(
    ("n", "gains"),
    [(0, ()), (1, (0.0,)), (2, (0.0, 0.03 / 128)), (4, tuple(0.03 * n / 128 for n in range(4)))],
)
def test_later_turns_gain_evenly(n: int, gains: tuple[float, ...]) -> None:
    """The first turn gains nothing, those after by their place: in a long call the last gains all."""
    assert RECENCY_WEIGHT == 0.03
    assert newer(129)[[0, 64, 128]] == pytest.approx([0.0, 0.015, 0.03])
    assert newer(1001)[[0, 500, 1000]] == pytest.approx([0.0, 0.015, 0.03])
    result = newer(n)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, f32(*gains), atol=1e-7)


# --- choosing --------------------------------------------------------------------------------------


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


def positions(chosen: Sequence[tuple[int, float]]) -> list[int]:
    return [at for at, _ in chosen]


# Long enough that turns up to four away are close.
LONG = 128


@pytest.mark.parametrize("offset", [*range(-6, 0), *range(1, 7)])
def test_turns_close_to_a_chosen_one_lose_but_the_one_right_after(offset: int) -> None:
    """Up to four turns away a turn loses the penalty; the one right after may be the answer.

    Three candidates: the best turn, one so many turns from it, and one far off that is a little worse.
    """
    assert (SPREAD_TURNS, SPREAD_PENALTY) == (4, 0.16)
    loses = abs(offset) <= 4 and offset != 1
    places = i64(100, 100 + offset, 5)
    chosen = diverse(f32(0.9, 0.5, 0.49), k=3, places=places, n_turns=LONG)
    assert positions(chosen) == ([0, 2, 1] if loses else [0, 1, 2])
    assert dict(chosen) == pytest.approx({0: 0.0, 1: -0.16 if loses else 0.0, 2: 0.0})
    # It loses so much and no more.
    narrow = diverse(f32(0.9, 0.41 + SPREAD_PENALTY, 0.4), k=2, places=places, n_turns=LONG)
    assert positions(narrow) == [0, 1]


@pytest.mark.parametrize(
    ("n_turns", "reach"),
    [(0, 0), (31, 0), (32, 1), (63, 1), (64, 2), (96, 3), (127, 3), (128, 4), (5000, 4)],
)
def test_what_is_close_is_a_32nd_of_the_call(n_turns: int, reach: int) -> None:
    """In a short call everything is close, and nothing loses for it; in a long one four turns are."""
    assert SPREAD_SHARE == 1 / 32
    for away in range(1, 6):
        scores, places = f32(0.9, 0.5), i64(50, 50 - away)
        _, (_, loss) = diverse(scores, k=2, places=places, n_turns=n_turns)
        assert loss == pytest.approx(-0.16 if away <= reach else 0.0)


def test_what_is_close_to_two_chosen_turns_loses_twice() -> None:
    """Each turn chosen takes its own."""
    # The third is two after the first and three before the second.
    scores, places = f32(0.9, 0.8, 0.5, 0.2), i64(10, 15, 12, 90)
    chosen = diverse(scores, k=4, places=places, n_turns=LONG)
    assert positions(chosen) == [0, 1, 3, 2]
    assert chosen[3][1] == pytest.approx(-0.32)
    once = diverse(scores, k=4, places=i64(10, 50, 12, 90), n_turns=LONG)
    assert positions(once) == [0, 1, 2, 3]


def at_cosine(cosine: float) -> F32:
    """Two unit vectors at this cosine, and one that is unlike both."""
    return f32(1, 0, 0, cosine, math.sqrt(1 - cosine**2), 0, 0, 0, 1).reshape(3, 3)


@pytest.mark.parametrize(
    ("cosine", "loss"),
    [
        (1.0, 0.24),
        (0.9, 0.12),
        (0.85, 0.06),
        # up to here it is another thing that is said
        (0.8, 0.0),
        (0.5, 0.0),
        (-1.0, 0.0),
    ],
)
def test_a_near_duplicate_loses_by_how_alike_it_is(cosine: float, loss: float) -> None:
    """What says nearly the same as a better hit falls behind one that is worse by less than its loss."""
    assert (DUPLICATE_COSINE, DUPLICATE_PENALTY) == (0.8, 0.24)
    vectors = at_cosine(cosine)
    for other, first in ((0.5 - loss - 0.005, 1), (0.5 - loss + 0.005, 2)):
        scores = f32(0.9, 0.5, other)
        assert positions(diverse(scores, k=2, vectors=vectors)) == [0, first]
    # Never dropped where there is nothing better; what it lost is told.
    kept = diverse(f32(0.9, 0.5, 0.0), k=3, vectors=vectors)
    assert positions(kept) == [0, 1, 2]
    assert [lost for _, lost in kept] == pytest.approx([0.0, -loss, 0.0], abs=1e-6)


def test_equal_scores_are_chosen_in_the_order_given() -> None:
    """Nothing to tell them apart: the first given is the first chosen."""
    assert diverse(f32(0.5, 0.5, 0.5), k=3) == [(0, 0.0), (1, 0.0), (2, 0.0)]


@pytest.mark.parametrize(
    ("scores", "k", "chosen"),
    [((), 3, []), ((0.5,), 3, [0]), ((0.5, 0.4), 0, []), ((0.5, 0.4, 0.3), 2, [0, 1])],
)
def test_with_nothing_to_tell_apart_the_best_are_chosen(
    scores: tuple[float, ...], k: int, chosen: list[int]
) -> None:
    """Without places and vectors it is the head of the list; as many as there are."""
    values = f32(*scores)
    expected = [(at, 0.0) for at in chosen]
    assert diverse(values, k=k) == expected
    places, vectors = i64(*range(0, 50 * len(scores), 50)), np.eye(len(scores), dtype=np.float32)
    assert diverse(values, k=k, places=places, n_turns=LONG, vectors=vectors) == expected
    np.testing.assert_array_equal(values, f32(*scores))


def greedy(
    scores: Sequence[float],
    *,
    k: int,
    places: Sequence[int] | None,
    reach: int,
    vectors: F32 | None,
) -> list[tuple[int, float]]:
    """Choose by the definition: at each step what is best, less what each one chosen takes from it."""
    chosen: list[tuple[int, float]] = []
    left = list(range(len(scores)))

    def loss(at: int) -> float:
        value = 0.0
        for other, _ in chosen:
            if places is not None:
                away = places[at] - places[other]
                value -= 0.16 * (away != 1 and abs(away) <= reach)
            if vectors is not None:
                value -= max(0.0, float(vectors[at] @ vectors[other]) - 0.8) / 0.2 * 0.24
        return value

    while left and len(chosen) < k:
        best = max(left, key=lambda at: scores[at] + loss(at))
        chosen.append((best, loss(best)))
        left.remove(best)
    return chosen


candidates = st.integers(1, 14).flatmap(
    lambda n: st.tuples(
        # Multiples of a step that no sum of penalties makes up for, so that rounding decides nothing.
        st.lists(st.integers(0, 90).map(lambda x: x / 97), min_size=n, max_size=n, unique=True),
        st.permutations(range(n)),
        st.lists(
            st.sampled_from([(1, 0), (0.8, 0.6), (0.6, 0.8), (0, 1), (0.9928, 0.12)]),
            min_size=n,
            max_size=n,
        ),
    )
)


@given(candidates, st.integers(0, 15), st.integers(0, 5), st.booleans(), st.booleans())
def test_choosing_what_differs_is_the_naive_greedy(
    drawn: tuple[list[float], list[int], list[tuple[float, float]]],
    k: int,
    reach: int,
    of_turns: bool,
    with_vectors: bool,
) -> None:
    """It chooses what the definition chooses, sums descend, and a shorter list begins a longer one."""
    scores = sorted(drawn[0], reverse=True)
    places = drawn[1] if of_turns else None
    vectors = np.array(drawn[2], np.float32) if with_vectors else None
    found = [
        diverse(
            f32(*scores),
            k=many,
            places=None if places is None else i64(*places),
            n_turns=32 * reach,
            vectors=vectors,
        )
        for many in (k, len(scores))
    ]
    assert found[0] == found[1][:k]
    assert sorted(positions(found[1])) == list(range(len(scores)))
    expected = greedy(scores, k=k, places=places, reach=min(reach, 4), vectors=vectors)
    assert positions(found[0]) == positions(expected)
    assert [loss for _, loss in found[0]] == pytest.approx([loss for _, loss in expected], abs=1e-5)
    sums = [scores[at] + loss for at, loss in found[1]]
    assert all(better >= worse - 1e-5 for better, worse in pairwise(sums))


# --- the gate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nearest", "least"),
    [
        # of each passage the best cosine: 0.6, 0.8, 0.4; their median is 0.6
        ([(0.6, 0.1), (-0.5, 0.8), (0.4,)], 0.33),
        # an even number: half way between the two in the middle
        ([(0.4,), (0.8, 0.2)], 0.33),
        # a few odd ones do not move it
        ([(0.6,), (0.6,), (0.6,), (-0.9,), (0.9,)], 0.33),
        # a copy is passed over, and what is nearest but for it counts
        ([(1.0, 0.96, 0.6, 0.2)], 0.33),
        ([(0.95, 0.6)], 0.33),
        ([(0.94, 0.6)], 0.517),
        # one of which all others are copies tells nothing
        ([(0.99, 1.0), (0.6, 1.0), ()], 0.33),
        # nor do many of one copied passage decide for the others: each has its best among the rest
        ([*[(1.0, 1.0, 0.2, 0.1)] * 3, (0.2, 0.2, 0.2, 0.6), (0.1, 0.1, 0.1, 0.6)], 0.11),
        # passages that are unlike all others
        ([(-0.2, -0.6)], -0.11),
        # nothing to measure by: every turn passes
        ([], -1.0),
        ([(), ()], -1.0),
        ([(1.0, 0.97), (0.95,)], -1.0),
    ],
)
def test_the_threshold_is_a_share_of_the_median_of_what_is_nearest_but_copies(
    nearest: list[tuple[float, ...]], least: float
) -> None:
    """0.55 of the median of the best cosines below 0.95; of any iterable; nothing given changes."""
    assert (GATE_SHARE, GATE_COPY) == (0.55, 0.95)
    # 0.95 in float32 is a little above or below it: what is meant is "as near as GATE_COPY".
    rows = [np.where(f32(*row) == f32(0.95), f32(0.9501), f32(*row)) for row in nearest]
    before = [row.copy() for row in rows]
    assert threshold(rows) == pytest.approx(least, abs=1e-6)
    assert threshold(iter(rows)) == pytest.approx(least, abs=1e-6)
    for now, then in zip(rows, before, strict=True):
        np.testing.assert_array_equal(now, then)


@given(st.lists(st.lists(st.floats(-1, 1, width=32), max_size=6), max_size=6))
def test_the_threshold_is_the_naive_one(nearest: list[list[float]]) -> None:
    """Sorted by hand; never above what a passage that is no copy can have."""
    best_ones = sorted(
        max(fit) for row in nearest if (fit := [x for x in row if np.float32(x) < np.float32(0.95)])
    )
    n = len(best_ones)
    expected = 0.55 * (best_ones[n // 2] + best_ones[(n - 1) // 2]) / 2 if n else -1.0
    found = threshold([f32(*row) for row in nearest])
    assert found == pytest.approx(expected, abs=1e-6)
    assert -1.0 <= found < 0.55 * 0.95 + 1e-6


# --- parts -----------------------------------------------------------------------------------------


def test_parts_are_named() -> None:
    """Known names come back as a set, of any iterable; each part has one."""
    assert check_parts([]) == frozenset()
    assert check_parts(iter(["focus", "gate", "focus"])) == {"focus", "gate"}
    assert check_parts(PARTS) == set(PARTS)
    assert len(set(PARTS)) == len(PARTS) == 10


@pytest.mark.parametrize("names", [["foci"], ["focus", "Gate"], "focus", [""]])
def test_a_name_of_no_part_is_an_error_that_tells_the_parts(names: Sequence[str]) -> None:
    """A typing mistake is told with what could have been meant; a lone string is no list of names."""
    with pytest.raises(
        ValueError, match=r"expected parts of conversation, .*, gate; got"
    ) as caught:
        check_parts(names)
    for part in PARTS:
        assert part in str(caught.value)
