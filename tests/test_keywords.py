"""BM25 over a growing index: exact against a naive version, for every generation, while it grows."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.errors import CorruptDataError
from moss_voice.keywords import ByTerm, Keywords, Postings

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
K1, B = 0.9, 0.4


def naive(
    docs: Sequence[Sequence[int]], query: Mapping[int, float], alive: Sequence[bool]
) -> dict[int, float]:
    """Ten lines of BM25: the score of each row that has one above 0."""
    live = {row: Counter(doc) for row, doc in enumerate(docs) if alive[row]}
    average = sum(map(Counter.total, live.values())) / max(len(live), 1)
    scores: dict[int, float] = {}
    for term, weight in query.items():
        df = sum(term in counts for counts in live.values())
        idf = math.log(1 + (len(live) - df + 0.5) / (df + 0.5))
        for row, counts in live.items():
            if (tf := counts[term]) and weight > 0:
                norm = K1 * (1 - B + B * counts.total() / average)
                scores[row] = scores.get(row, 0.0) + weight * idf * tf / (tf + norm)
    return scores


def ids(doc: Sequence[int]) -> I64:
    return np.array(doc, np.int64)


def lengths_of(docs: Sequence[Sequence[int]]) -> npt.NDArray[np.int32]:
    return np.array([len(doc) for doc in docs], np.int32)


def add(keywords: Keywords, docs: Sequence[Sequence[int]]) -> None:
    keywords.append(Postings.of([ids(doc) for doc in docs]), lengths_of(docs))


def check(keywords: Keywords) -> None:
    """Assert the invariants of segments and tail."""
    state = keywords._state
    held = [state.tail_rows[: state.n_tail]]
    for segment in state.segments:
        assert (segment.terms[1:] > segment.terms[:-1]).all()
        assert (np.diff(segment.starts) > 0).all()
        assert segment.starts[0] == 0
        assert segment.starts[-1] == segment.rows.size == segment.counts.size
        held.append(segment.rows)
    for large, small in zip(state.segments, state.segments[1:], strict=False):
        assert large.size >= 2 * small.size
    rows = np.concatenate(held)
    assert rows.size == 0 or (rows.min() >= 0 and rows.max() < state.n_rows)


def assert_same(found: tuple[I64, npt.NDArray[np.float32]], expected: Mapping[int, float]) -> None:
    rows, scores = found
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    assert rows.tolist() == sorted(expected)
    np.testing.assert_allclose(scores, [expected[row] for row in rows.tolist()], rtol=1e-5)


# Few terms, far apart and negative too, so that documents share many.
TERMS = st.sampled_from([-(2**63), -7, 0, 1, 2, 3, 5, 2**40, 2**63 - 1])
DOC = st.lists(TERMS, max_size=12)
QUERY = st.dictionaries(TERMS, st.floats(0.01, 4.0), max_size=6)


@settings(deadline=None)
@given(st.data())
def test_scores_equal_the_naive_ones_in_every_generation(data: st.DataObject) -> None:
    """Whatever was added in whatever batches and deleted, each generation scores as if it were alone."""
    # Repeating the batch makes it spill from the tail into segments.
    batches = data.draw(
        st.lists(st.tuples(st.lists(DOC, max_size=4), st.sampled_from([1, 1, 2, 60])), max_size=8)
    )
    keywords = Keywords(k1=K1, b=B)
    docs: list[list[int]] = []
    generations: list[int] = [0]
    for batch, times in batches:
        add(keywords, batch * times)
        docs += batch * times
        check(keywords)
        assert keywords.n_rows == len(docs)
        generations.append(len(docs))
    n_rows = data.draw(st.sampled_from(generations))
    dead = data.draw(st.sets(st.integers(0, max(n_rows - 1, 0))))
    alive = np.array([row not in dead for row in range(n_rows)], np.bool_)
    query = data.draw(QUERY)
    expected = naive(docs[:n_rows], query, alive.tolist())
    assert_same(keywords.scores(query, n_rows=n_rows, alive=alive), expected)
    alive.flags.writeable = False
    for _ in range(2):  # computed, then remembered
        assert_same(keywords.scores(query, n_rows=n_rows, alive=alive), expected)


@pytest.mark.parametrize("batch", [1, 7, 500, 3000])
def test_scores_equal_the_naive_ones_over_many_segments(batch: int) -> None:
    """The same on 3,000 rows with the skewed frequencies of speech, added in several ways."""
    rng = np.random.default_rng(batch)
    docs = [(rng.zipf(1.3, rng.integers(0, 20)) % 4000).tolist() for _ in range(3000)]
    keywords = Keywords(k1=K1, b=B)
    for start in range(0, len(docs), batch):
        add(keywords, docs[start : start + batch])
    check(keywords)
    assert len(keywords._state.segments) <= 7
    for n_rows in (3000, 2999, 1234, 1):
        alive = rng.random(n_rows) < 0.7
        query = Counter((rng.zipf(1.3, 10) % 4000).tolist())
        expected = naive(docs[:n_rows], dict(query), alive.tolist())
        occurrences = ids(list(query.elements()))
        assert_same(keywords.scores(occurrences, n_rows=n_rows, alive=alive), expected)


def test_a_repeated_query_term_counts_twice() -> None:
    """An array of occurrences is the mapping of their counts; weights not above 0 are left out."""
    keywords = Keywords()
    add(keywords, [[1, 2], [2, 3]])
    alive = np.ones(2, np.bool_)
    twice = keywords.scores(ids([1, 1, 2]), n_rows=2, alive=alive)
    weighted = keywords.scores({1: 2.0, 2: 1.0, 3: 0.0, 9: -1.0}, n_rows=2, alive=alive)
    assert twice[0].tolist() == weighted[0].tolist() == [0, 1]
    assert twice[1].tolist() == weighted[1].tolist()


def test_nothing_matches_in_nothing() -> None:
    """Empty indexes, empty queries, unknown terms and wholly dead generations give no rows."""
    keywords = Keywords()
    none = np.ones(0, np.bool_)
    assert keywords.scores(ids([1]), n_rows=0, alive=none)[0].size == 0
    add(keywords, [[], [1]])
    alive = np.ones(2, np.bool_)
    assert keywords.scores(ids([]), n_rows=2, alive=alive)[0].size == 0
    assert keywords.scores({}, n_rows=2, alive=alive)[0].size == 0
    assert keywords.scores(ids([2]), n_rows=2, alive=alive)[0].size == 0
    assert keywords.scores(ids([1]), n_rows=2, alive=~alive)[0].size == 0
    assert keywords.scores(ids([1]), n_rows=2, alive=alive)[0].tolist() == [1]


def test_arguments_that_do_not_fit_are_refused() -> None:
    """A mask of another generation, rows that are not there, or constants out of range are errors."""
    keywords = Keywords()
    add(keywords, [[1]])
    with pytest.raises(ValueError, match="shape"):
        keywords.scores(ids([1]), n_rows=1, alive=np.ones(2, np.bool_))
    with pytest.raises(ValueError, match="at most 1 rows"):
        keywords.scores(ids([1]), n_rows=2, alive=np.ones(2, np.bool_))
    with pytest.raises(ValueError, match="k1"):
        Keywords(k1=0.0)
    with pytest.raises(ValueError, match="b in"):
        Keywords(b=1.5)


@settings(deadline=None)
@given(st.lists(DOC, max_size=8), st.integers(0, 5))
def test_postings_count_terms_by_row_and_term(docs: list[list[int]], first_row: int) -> None:
    """The stored form lists each row's distinct terms in order, with counts."""
    postings = Postings.of([ids(doc) for doc in docs], first_row=first_row)
    assert [array.dtype for array in postings] == [np.int64, np.int32, np.uint16]
    expected = [
        (row, term, count)
        for row, doc in enumerate(docs, first_row)
        for term, count in sorted(Counter(doc).items())
    ]
    assert list(zip(*(postings[i].tolist() for i in (1, 0, 2)), strict=True)) == expected


@settings(deadline=None, max_examples=50)
@given(st.lists(DOC, min_size=1, max_size=8), st.sampled_from([1, 80]), st.data())
def test_postings_come_back_as_they_went_in(
    docs: list[list[int]], times: int, data: st.DataObject
) -> None:
    """Any rows in any order come back renumbered, as if they alone had been added."""
    docs = docs * times
    keywords = Keywords()
    for start in range(0, len(docs), 3):
        add(keywords, docs[start : start + 3])
    rows = data.draw(st.lists(st.integers(0, len(docs) - 1), unique=True, max_size=12))
    taken = keywords.postings(ids(rows))
    expected = Postings.of([ids(docs[row]) for row in rows])
    assert np.array_equal(taken.terms, expected.terms)
    assert np.array_equal(taken.rows, expected.rows)
    assert np.array_equal(taken.counts, expected.counts)
    assert keywords.lengths(ids(rows)).tolist() == [len(docs[row]) for row in rows]
    taken.check(keywords.lengths(ids(rows)))
    again = Keywords.from_postings(taken, keywords.lengths(ids(rows)))
    assert again.n_rows == len(rows)


def test_a_word_said_very_often_saturates() -> None:
    """A count that does not fit is kept as the largest that does, and passes the check."""
    postings = Postings.of([ids([5] * 70_000 + [6])])
    assert postings.counts.tolist() == [65_535, 1]
    keywords = Keywords.from_postings(postings, np.array([70_001], np.int32))
    rows, scores = keywords.scores(ids([5]), n_rows=1, alive=np.ones(1, np.bool_))
    assert rows.tolist() == [0]
    assert scores[0] > 0


GOOD = Postings.of([ids([1, 2, 2]), ids([]), ids([1])])
LENGTHS = np.array([3, 0, 1], np.int32)


def reordered(order: I64) -> Postings:
    return Postings(GOOD.terms[order], GOOD.rows[order], GOOD.counts[order])


@pytest.mark.parametrize(
    ("bad", "lengths", "message"),
    [
        (GOOD._replace(terms=GOOD.terms.astype(np.int32)), LENGTHS, "dtypes"),
        (GOOD, LENGTHS.astype(np.int64), "dtypes"),
        (GOOD._replace(rows=GOOD.rows[:-1]), LENGTHS, "equal length"),
        (reordered(np.array([[0, 1, 2]])), LENGTHS, "one-dimensional"),
        (GOOD._replace(rows=GOOD.rows + np.int32(1)), LENGTHS, "outside"),
        (GOOD._replace(rows=GOOD.rows - np.int32(1)), LENGTHS, "outside"),
        (reordered(np.array([2, 1, 0])), LENGTHS, "ordered"),
        (reordered(np.array([0, 0, 1, 2])), LENGTHS, "ordered"),
        (GOOD._replace(counts=GOOD.counts * np.uint16(0)), LENGTHS, "zero"),
        (GOOD, np.array([3, 1, 1], np.int32), "add up"),
        (GOOD, np.array([-3, 0, 1], np.int32), "negative"),
    ],
)
def test_damaged_postings_are_refused(
    bad: Postings, lengths: npt.NDArray[np.int32], message: str
) -> None:
    """Whatever cannot have been stored by us is a clear error before it is used."""
    GOOD.check(LENGTHS)
    with pytest.raises(CorruptDataError, match=message):
        Keywords.from_postings(bad, lengths)


def test_readers_see_their_generation_while_a_writer_adds() -> None:
    """A reader that races the writer gets the naive answer for its own generation, every time."""
    rng = np.random.default_rng(3)
    docs = [(rng.zipf(1.3, rng.integers(1, 30)) % 500).tolist() for _ in range(600)]
    queries = [Counter((rng.zipf(1.3, 6) % 500).tolist()) for _ in range(4)]
    generations = [150, 300, 450, 600]
    masks = {n: rng.random(n) < 0.8 for n in generations}
    expected = {
        (n, i): naive(docs[:n], dict(query), masks[n].tolist())
        for n in generations
        for i, query in enumerate(queries)
    }
    for mask in masks.values():
        mask.flags.writeable = False
    keywords = Keywords(k1=K1, b=B)
    failures: list[BaseException] = []
    seen: set[int] = set()
    done = threading.Event()

    def read(seed: int) -> None:
        own = np.random.default_rng(seed)
        try:
            while True:
                last = done.is_set()
                ready = [n for n in generations if n <= keywords.n_rows]
                for n in ready[-2:]:
                    i = int(own.integers(len(queries)))
                    found = keywords.scores(queries[i], n_rows=n, alive=masks[n])
                    assert_same(found, expected[n, i])
                    seen.add(n)
                if last:
                    return
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            failures.append(error)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for reader in readers:
        reader.start()
    for doc in docs:
        add(keywords, [doc])
    done.set()
    for reader in readers:
        reader.join()
    assert not failures, failures[0]
    assert 600 in seen
    check(keywords)


def test_a_call_takes_little_memory() -> None:
    """100 turns of 20 terms, added one by one, and scored once, hold under 30 kB of arrays."""
    rng = np.random.default_rng(0)
    keywords = Keywords()
    for _ in range(100):
        add(keywords, [rng.integers(-(2**63), 2**63 - 1, 15).tolist()])
    alive = np.ones(100, np.bool_)
    alive.flags.writeable = False
    keywords.scores(ids([1]), n_rows=100, alive=alive)
    assert keywords.nbytes < 30_000


def test_adding_row_by_row_moves_each_posting_seldom() -> None:
    """Merging is geometric: a posting is moved about log2 times, so growing stays cheap."""
    rng = np.random.default_rng(0)
    keywords = Keywords()
    moved = 0
    n_postings = 0
    before: tuple[object, ...] = ()
    for _ in range(4000):
        doc = rng.integers(0, 1000, 15).tolist()
        n_postings += len(set(doc))
        add(keywords, [doc])
        segments = keywords._state.segments
        moved += sum(
            segment.size for segment in segments if not any(segment is old for old in before)
        )
        before = segments
    assert moved <= n_postings * math.log2(n_postings / 1024)
    check(keywords)


def test_repr_tells_the_state() -> None:
    """The repr counts rows and segments."""
    keywords = Keywords()
    add(keywords, [[1], [2]])
    assert repr(keywords) == "<Keywords 2 rows in 0 segments and a tail>"


def test_postings_that_were_ordered_before_score_alike(tmp_path: Path) -> None:
    """An order that was kept in a file gives the same scores, before and after rows of its own kind."""
    rng = np.random.default_rng(3)
    parts = [
        [rng.integers(0, 60, rng.integers(1, 9)) for _ in range(n)] for n in (40, 700, 30, 500)
    ]
    plain, ordered = Keywords(), Keywords()
    for number, rows in enumerate(parts):
        postings = Postings.of(rows)
        lengths = np.array([row.size for row in rows], np.int32)
        plain.append(postings, lengths)
        by_term = None
        if number % 2:
            path = tmp_path / f"{number}"
            ByTerm.of(postings.terms, postings.rows, postings.counts).write(path)
            by_term = ByTerm.read(path, size=postings.terms.size)
        ordered.append(postings, lengths, by_term=by_term)
        alive = np.ones(plain.n_rows, np.bool_)
        for _ in range(20):
            query = rng.integers(0, 70, 3)
            one = plain.scores(query, n_rows=plain.n_rows, alive=alive)
            other = ordered.scores(query, n_rows=plain.n_rows, alive=alive)
            assert np.array_equal(one[0], other[0])
            assert np.allclose(one[1], other[1])


def test_an_order_of_other_postings_is_refused(tmp_path: Path) -> None:
    """A file that is damaged, foreign, or of another number of postings is an error of ours."""
    postings = Postings.of([np.array([1, 2, 2]), np.array([2])])
    path = tmp_path / "order"
    ByTerm.of(postings.terms, postings.rows, postings.counts).write(path)
    whole = path.read_bytes()
    with pytest.raises(CorruptDataError):
        ByTerm.read(path, size=4)
    for data in (b"", whole[:-1], whole[:20], b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(CorruptDataError):
            ByTerm.read(path, size=postings.terms.size)
    with pytest.raises(CorruptDataError):
        ByTerm.read(tmp_path / "none", size=3)
