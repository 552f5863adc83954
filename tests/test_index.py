"""The index against a naive oracle: a dict of documents, exact cosines, BM25 by its definition.

The oracle ranks every document that is there and passes; the index must give the head of that list,
whatever was added, updated, deleted or swept out before, and whoever writes meanwhile.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.errors import CorruptDataError, InvalidArgumentError
from moss_voice.filters import parse_filter
from moss_voice.index import Batch, Block, Index, Match, decode_document, encode_document
from moss_voice.ranking import KEYWORD_SCALE
from moss_voice.text import term_ids, terms
from moss_voice.types import Metadata

F32 = npt.NDArray[np.float32]
Patch = pytest.MonkeyPatch

DIM = 8
TOLERANCE = 2e-6
WORDS = ("refund", "invoice", "booking", "hotel", "train", "card", "wifi")


@dataclass(frozen=True)
class Doc:
    id: str
    text: str
    vector: tuple[float, ...]
    metadata: Metadata | None = None

    @property
    def unit(self) -> F32:
        values = np.array(self.vector)
        unit: F32 = (values / np.linalg.norm(values)).astype(np.float32)
        return unit


def batch(docs: Sequence[Doc], *, at: int = 1) -> Batch:
    return Batch(
        [doc.id for doc in docs],
        [encode_document(doc.id, doc.text, doc.metadata, None) for doc in docs],
        np.array([doc.unit for doc in docs], np.float32).reshape(len(docs), len(docs[0].vector))
        if docs
        else np.empty((0, DIM), np.float32),
        [term_ids(doc.text) for doc in docs],
        np.full(len(docs), at, np.int64),
    )


@dataclass
class Query:
    text: str = "refund of the hotel booking"
    vector: tuple[float, ...] | None = (1.0,) + (0.0,) * (DIM - 1)
    top_k: int = 5
    alpha: float = 0.8
    filter: Mapping[str, Any] | None = None
    min_score: float | None = None
    exclude: tuple[str, ...] = ()
    boost: dict[str, float] = field(default_factory=dict)

    @property
    def unit(self) -> F32 | None:
        return None if self.vector is None else Doc("", "", self.vector).unit

    def run(self, index: Index) -> list[Match]:
        return index.search(
            vector=self.unit,
            terms=term_ids(self.text),
            top_k=self.top_k,
            alpha=self.alpha,
            condition=parse_filter(self.filter),
            min_score=self.min_score,
            exclude=self.exclude,
            boost=self.boost,
        )


class Oracle:
    """Documents in order of first insertion, ranked by the definitions."""

    def __init__(self) -> None:
        self.docs: dict[str, Doc] = {}

    def upsert(self, docs: Sequence[Doc]) -> tuple[int, int]:
        added = len({doc.id for doc in docs} - self.docs.keys())
        for doc in docs:
            self.docs[doc.id] = doc
        return added, len(docs) - added

    def delete(self, ids: Sequence[str]) -> list[str]:
        return [id_ for id_ in dict.fromkeys(ids) if self.docs.pop(id_, None)]

    def bm25(self, query: str) -> dict[str, float]:
        said = {doc.id: Counter(terms(doc.text)) for doc in self.docs.values()}
        n = len(said)
        average = sum(counts.total() for counts in said.values()) / n if n else 1.0
        scores = dict.fromkeys(said, 0.0)
        for term, often in Counter(terms(query)).items():
            df = sum(term in counts for counts in said.values())
            idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
            for id_, counts in said.items():
                tf, length = counts[term], counts.total()
                norm = 0.9 * (1 - 0.4 + 0.4 * length / (average or 1.0))
                scores[id_] += often * idf * tf / (tf + norm)
        return scores

    def ranked(self, query: Query) -> list[tuple[str, float, float]]:
        """Return (id, fused, score) of all that qualify, best first, equal ones by insertion."""
        condition = parse_filter(query.filter)
        passing = {
            id_: doc
            for id_, doc in self.docs.items()
            if id_ not in query.exclude and (condition is None or condition.matches(doc.metadata))
        }
        keyword = {id_: score for id_, score in self.bm25(query.text).items() if id_ in passing}
        top = max(keyword.values(), default=0.0)
        share = {id_: score / top if top else 0.0 for id_, score in keyword.items()}
        found = []
        for id_, doc in passing.items():
            extra = query.boost.get(id_, 0.0)
            if query.alpha == 0.0 or query.unit is None:
                if share[id_] <= 0.0:
                    continue
                fused, score = share[id_] + extra, share[id_]
            else:
                cosine = float(doc.unit.astype(float) @ query.unit.astype(float))
                fused = query.alpha * cosine + extra
                fused += (1 - query.alpha) * KEYWORD_SCALE * share[id_]
                score = min(1.0, max(0.0, (1 + cosine) / 2))
            if query.min_score is None or score >= query.min_score:
                found.append((id_, fused, score))
        return sorted(found, key=lambda item: -item[1])


def agree(index: Index, oracle: Oracle, query: Query) -> None:
    """Assert that a search is right: what it ranks, how it scores, and what it leaves out."""
    ranked = oracle.ranked(query)
    values = {id_: (fused, score) for id_, fused, score in ranked}
    found = query.run(index)
    assert len(found) == min(query.top_k, len(ranked))
    assert len({match.document.id for match in found}) == len(found)
    for match, (_, fused, _) in zip(found, ranked, strict=False):
        # Sums in single precision: near-ties may change places, a score may not be wrong.
        own_fused, own_score = values[match.document.id]
        assert match.fused == pytest.approx(fused, abs=TOLERANCE)
        assert match.fused == pytest.approx(own_fused, abs=TOLERANCE)
        assert match.score == pytest.approx(own_score, abs=TOLERANCE)
        assert match.document.text == oracle.docs[match.document.id].text
        assert match.document.metadata == oracle.docs[match.document.id].metadata
    place = {id_: at for at, id_ in enumerate(oracle.docs)}
    for better, worse in pairwise(found):
        assert better.fused >= worse.fused
        if better.fused == worse.fused:
            assert place[better.document.id] < place[worse.document.id]


# --- random runs -----------------------------------------------------------------------------------

ids = st.sampled_from([f"d{n}" for n in range(9)])
# Few different ones, so that there are ties and twins.
vectors = st.lists(st.integers(-1, 1), min_size=DIM, max_size=DIM).filter(any).map(tuple)
few_vectors = st.sampled_from([(1,) + (0,) * 7, (1, 1) + (0,) * 6, (-1, 2, 0, 3, 0, 1, 0, 1)])
texts = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
metadata = st.none() | st.fixed_dictionaries(
    {"turn": st.integers(0, 5)}, optional={"speaker": st.sampled_from(["caller", "agent"])}
)
docs = st.builds(Doc, ids, texts, few_vectors | vectors, metadata)
filters = st.none() | st.sampled_from(
    [
        {"field": "speaker", "condition": {"$eq": "caller"}},
        {"field": "turn", "condition": {"$gte": 1, "$lt": 4}},
        {"$not": {"field": "speaker", "condition": {"$eq": "agent"}}},
        {
            "$and": [
                {"field": "turn", "condition": {"$in": [1, 2, 5]}},
                {"field": "speaker", "condition": {"$ne": "agent"}},
            ]
        },
    ]
)
queries = st.builds(
    Query,
    text=texts,
    vector=few_vectors | vectors,
    top_k=st.sampled_from([1, 2, 5, 50]),
    alpha=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    filter=filters,
    min_score=st.none() | st.sampled_from([0.4337, 0.6121]),
    exclude=st.lists(ids, max_size=3).map(tuple),
    boost=st.dictionaries(ids, st.sampled_from([0.5, 0.35]), max_size=2),
)
steps = st.lists(
    st.tuples(st.just("upsert"), st.lists(docs, max_size=5))
    | st.tuples(st.just("delete"), st.lists(ids, max_size=4))
    | st.tuples(st.just("search"), queries),
    max_size=14,
)


@given(steps, queries)
@settings(max_examples=80, deadline=None)
def test_any_run_of_changes_and_searches_agrees_with_the_oracle(
    steps: list[tuple[str, Any]], last: Query
) -> None:
    """Whatever was added, updated, deleted and swept out, a search gives what the definitions give."""
    index, oracle = Index(DIM), Oracle()
    with Patch.context() as patch:
        patch.setattr("moss_voice.index.SWEEP_ROWS", 3)
        for step, what in [*steps, ("search", last)]:
            if step == "upsert":
                assert index.upsert(batch(what)) == oracle.upsert(what)
            elif step == "delete":
                assert index.delete(what) == oracle.delete(what)
            else:
                agree(index, oracle, what)
            index._check()
            assert len(index) == len(oracle.docs)
            assert [doc.id for doc in index.get()] == list(oracle.docs)
            assert index.n_rows <= 2 * len(index) + 3 + 5


@given(st.lists(docs, max_size=8), st.lists(docs, max_size=8), st.lists(ids, max_size=3), queries)
@settings(max_examples=30, deadline=None)
def test_an_index_lives_again_from_its_block(
    first: list[Doc], then: list[Doc], deleted: list[str], query: Query
) -> None:
    """What `extract` gives makes an index that finds the same, scores the same and keeps its order."""
    index, oracle = Index(DIM), Oracle()
    for target in (index, oracle):
        for given_docs in (first, then):
            if isinstance(target, Index):
                target.upsert(batch(given_docs))
            else:
                target.upsert(given_docs)
    index.delete(deleted)
    oracle.delete(deleted)
    block = index.extract()
    again = Index(DIM, blocks=[block])
    again._check()
    agree(again, oracle, query)
    assert [doc.id for doc in again.get()] == list(oracle.docs)
    np.testing.assert_array_equal(again.vectors_of(block.ids), index.vectors_of(block.ids))
    some = [id_ for id_ in oracle.docs if id_ > "d4"]
    part = index.extract(some)
    assert list(part.ids) == some
    np.testing.assert_array_equal(part.vectors, index.vectors_of(some))


# --- properties by example -------------------------------------------------------------------------


def test_equal_documents_come_in_order_of_insertion_also_after_an_update() -> None:
    """Ties are broken by who was first; an update keeps its place, a document added anew goes last."""
    index = Index(DIM)
    twin = {"text": "hotel wifi", "vector": (1.0,) * DIM}
    index.upsert(batch([Doc(id_, **twin) for id_ in "cab"]))  # type: ignore[arg-type]

    def order() -> list[str]:
        found = Query(text="wifi", vector=(1.0,) * DIM).run(index)
        assert len({match.fused for match in found}) == 1
        return [match.document.id for match in found]

    assert order() == ["c", "a", "b"]
    assert index.upsert(batch([Doc("c", **twin)])) == (0, 1)  # type: ignore[arg-type]
    assert order() == ["c", "a", "b"]
    assert index.delete(["c", "nobody", "c"]) == ["c"]
    index.upsert(batch([Doc("c", **twin)]))  # type: ignore[arg-type]
    assert order() == ["a", "b", "c"]
    assert [doc.id for doc in index.get()] == ["a", "b", "c"]


def test_within_a_batch_the_last_of_an_id_wins_and_keeps_the_first_one_s_place() -> None:
    """A repeated id counts as one added and one updated; its text is the last, its place the first."""
    index = Index(DIM)
    given_docs = [
        Doc("a", "hotel", (1.0,) * DIM),
        Doc("b", "train", (1.0,) * DIM),
        Doc("a", "card", (1.0,) * DIM),
    ]
    assert index.upsert(batch(given_docs)) == (2, 1)
    assert [(doc.id, doc.text) for doc in index.get()] == [("a", "card"), ("b", "train")]
    assert Query(text="hotel", alpha=0.0).run(index) == []
    index._check()


def test_get_keeps_the_order_asked_and_passes_over_what_is_not_there() -> None:
    """All where None, none where empty, else as asked."""
    index = Index(DIM)
    index.upsert(batch([Doc(id_, id_, (1.0,) * DIM) for id_ in "abc"]))
    assert [doc.id for doc in index.get()] == ["a", "b", "c"]
    assert index.get([]) == []
    assert [doc.id for doc in index.get(["c", "x", "a"])] == ["c", "a"]
    assert "a" in index
    assert "x" not in index
    assert 7 not in index


def test_a_refused_batch_changes_nothing() -> None:
    """Rows that are not unit vectors are refused before anything is written."""
    index = Index(DIM)
    index.upsert(batch([Doc("a", "hotel", (1.0,) * DIM)]))
    good = batch([Doc("b", "train", (1.0,) * DIM), Doc("a", "card", (1.0,) * DIM)])
    bad = good.vectors.copy()
    bad[1] = np.nan
    with pytest.raises(InvalidArgumentError, match="norm 1"):
        index.upsert(good._replace(vectors=bad))
    index._check()
    assert [(doc.id, doc.text) for doc in index.get()] == [("a", "hotel")]
    assert index.upsert(good) == (1, 1)
    index._check()


def test_a_sweep_frees_the_rows_of_the_dead(monkeypatch: Patch) -> None:
    """Tombstones beyond the bound and the living are swept out; order, texts and vectors stay."""
    monkeypatch.setattr("moss_voice.index.SWEEP_ROWS", 4)
    index = Index(DIM)
    index.upsert(batch([Doc(f"d{n}", WORDS[n % 7], (1.0, n) + (0.0,) * 6) for n in range(6)]))
    rows = []
    for n in range(20):
        index.upsert(batch([Doc("d3", f"{WORDS[n % 7]} again", (1.0, n) + (0.0,) * 6)]))
        rows.append(index.n_rows)
        index._check()
    assert max(rows) <= 6 + 6 + 1
    assert min(rows) < 12
    assert [doc.id for doc in index.get()] == [f"d{n}" for n in range(6)]
    np.testing.assert_allclose(
        index.vectors_of(["d3"])[0], Doc("", "", (1.0, 19.0) + (0.0,) * 6).unit, atol=1e-6
    )


def test_a_boost_lifts_a_document_also_by_keywords_alone() -> None:
    """A boost is added to what a document is ranked by and never to its score."""
    index = Index(DIM)
    index.upsert(batch([Doc("a", "hotel wifi", (1.0,) * DIM), Doc("b", "wifi", (1.0,) * DIM)]))
    for alpha in (0.0, 0.5, 1.0):
        plain = Query(text="wifi", vector=(1.0,) * DIM, alpha=alpha)
        lifted = Query(text="wifi", vector=(1.0,) * DIM, alpha=alpha, boost={"a": 0.5, "x": 9.0})
        scores = {match.document.id: match.score for match in plain.run(index)}
        found = lifted.run(index)
        assert [match.document.id for match in found] == ["a", "b"]
        assert {match.document.id: match.score for match in found} == scores


@pytest.mark.parametrize("payload", [float("nan"), object(), {1, 2}, {"x": float("inf")}])
def test_what_cannot_be_stored_is_refused_without_its_text(payload: object) -> None:
    """A payload that is not JSON, or a text that is no Unicode, is an error that names the id alone."""
    with pytest.raises(InvalidArgumentError) as caught:
        encode_document("doc-7", "zanzibar", None, payload)
    assert "'doc-7'" in str(caught.value)
    assert "zanzibar" not in str(caught.value)
    with pytest.raises(InvalidArgumentError) as caught:
        encode_document("doc-7", "zanzibar \ud800", None, None)
    assert "zanzibar" not in str(caught.value)


@given(
    st.text(min_size=1).filter(lambda text: text.isprintable()),
    st.text(),
    st.none() | st.dictionaries(st.text(), st.booleans() | st.integers() | st.text()),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    ),
)
@settings(max_examples=40, deadline=None)
def test_a_document_is_read_as_it_was_written(
    id_: str, text: str, metadata: Metadata | None, payload: Any
) -> None:
    """Encoding and decoding give back every field, on one line."""
    line = encode_document(id_, text, metadata, payload)
    assert b"\n" not in line
    assert decode_document(line) == (id_, text, metadata, payload)


@pytest.mark.parametrize("fault", ["twice", "dim", "none"])
def test_blocks_that_do_not_fit_are_refused(fault: str) -> None:
    """Two living rows of one id, or vectors of another size, are an error of the caller."""
    source = Index(DIM)
    source.upsert(batch([Doc("a", "hotel", (1.0,) * DIM)]))
    block: Block = source.extract()
    if fault == "none":
        assert len(Index(DIM, blocks=[block, source.extract([])])) == 1
    elif fault == "twice":
        with pytest.raises(InvalidArgumentError, match="share an id"):
            Index(DIM, blocks=[block, block])
    else:
        with pytest.raises(InvalidArgumentError):
            Index(DIM + 1, blocks=[block])
    with pytest.raises(InvalidArgumentError, match="at least 1"):
        Index(0)


# --- the graph -------------------------------------------------------------------------------------


@pytest.fixture
def small_graphs(monkeypatch: Patch) -> None:
    """Make graphs worth while from 200 rows on."""
    monkeypatch.setattr("moss_voice.index.EXACT_ROWS", 200)


def crowd(n: int, *, seed: int = 7, dim: int = 16) -> list[Doc]:
    """Documents in clumps, as turns about a few subjects are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, dim))
    return [
        Doc(
            f"d{at}",
            " ".join(random.choice(WORDS, 2)) + f" number{at % 97}",
            tuple(centres[at % 12] + 0.6 * random.normal(size=dim)),
            {"turn": at, "parity": at % 2, "rare": at % 50 == 0},
        )
        for at in range(n)
    ]


@pytest.mark.usefixtures("small_graphs")
def test_the_graph_finds_what_the_scan_finds() -> None:
    """With a graph, a search misses next to nothing of what the exact one finds, and misjudges none."""
    given_docs = crowd(1500)
    index = Index(16)
    index.upsert(batch(given_docs))
    assert index.wants_graph
    rng = np.random.default_rng(1)
    queries = [
        Query(text=f"hotel number{n}", vector=tuple(rng.normal(size=16)), top_k=10, alpha=alpha)
        for n in range(25)
        for alpha in (0.8, 1.0)
    ]
    exact = [query.run(index) for query in queries]
    assert index.build_graph() is not None
    assert not index.wants_graph
    with_graph = [query.run(index) for query in queries]
    hits = 0
    for before, after in zip(exact, with_graph, strict=True):
        fused = {match.document.id: match.fused for match in before}
        hits += sum(match.document.id in fused for match in after)
        for match in after:
            if match.document.id in fused:
                assert match.fused == pytest.approx(fused[match.document.id], abs=TOLERANCE)
    assert hits / (10 * len(queries)) > 0.97


@pytest.mark.usefixtures("small_graphs")
def test_the_graph_never_brings_back_the_dead_or_the_old() -> None:
    """Deleted documents and old versions stay away, though the graph knows their rows; new ones come."""
    given_docs = crowd(600)
    index, oracle = Index(16), Oracle()
    index.upsert(batch(given_docs))
    oracle.upsert(given_docs)
    assert index.build_graph() is not None
    gone = [f"d{n}" for n in range(0, 600, 3)]
    index.delete(gone)
    oracle.delete(gone)
    changed = [
        Doc(f"d{n}", "changed train", tuple(-v for v in given_docs[n].vector), {"turn": n})
        for n in range(1, 600, 3)
    ]
    index.upsert(batch(changed))
    oracle.upsert(changed)
    fresh = [Doc(f"e{n}", "fresh card", given_docs[n].vector, {"turn": n}) for n in range(40)]
    index.upsert(batch(fresh))
    oracle.upsert(fresh)
    index._check()
    for n in range(0, 600, 29):
        query = Query(text="train card", vector=given_docs[n].vector, top_k=8, alpha=1.0)
        values = {id_: fused for id_, fused, _ in oracle.ranked(query)}
        found = query.run(index)
        assert len(found) == 8
        for match in found:
            assert match.fused == pytest.approx(values[match.document.id], abs=TOLERANCE)
        if n < 40:
            # What the graph does not cover yet is scanned.
            assert f"e{n}" in {match.document.id for match in found}


@pytest.mark.usefixtures("small_graphs")
@pytest.mark.parametrize("top_k", [1, 5, 40, 700])
def test_a_filter_never_costs_results(top_k: int) -> None:
    """With a graph too, a filtered search gives as many results as exist, up to top_k."""
    given_docs = crowd(600)
    index, oracle = Index(16), Oracle()
    index.upsert(batch(given_docs))
    oracle.upsert(given_docs)
    assert index.build_graph() is not None
    index.delete(dead := [f"d{n}" for n in range(0, 600, 7)])
    oracle.delete(dead)
    conditions: list[dict[str, Any] | None] = [
        None,
        {"field": "parity", "condition": {"$eq": 1}},
        {"field": "rare", "condition": {"$eq": True}},
        {"field": "turn", "condition": {"$gte": 20, "$lt": 24}},
        {"field": "turn", "condition": {"$gt": 9000}},
        {"field": "turn", "condition": {"$gte": 100}},
    ]
    for condition in conditions:
        for alpha in (1.0, 0.8, 0.0):
            query = Query(
                text="wifi",
                vector=given_docs[0].vector,
                top_k=top_k,
                filter=condition,
                alpha=alpha,
                exclude=("d1", "d2", "nobody"),
            )
            expected = oracle.ranked(query)
            found = query.run(index)
            assert len(found) == min(top_k, len(expected))
            assert {match.document.id for match in found} <= {id_ for id_, _, _ in expected}


@pytest.mark.usefixtures("small_graphs")
def test_a_filter_that_leaves_only_what_is_far_off_is_searched_exactly() -> None:
    """Where all that the graph finds near is filtered out, the far documents come all the same."""
    random = np.random.default_rng(4)
    given_docs = [
        Doc(f"d{n}", "t", (8.0 if n % 2 else -8.0, *random.normal(size=15)), {"far": n % 2 == 0})
        for n in range(800)
    ]
    index, oracle = Index(16), Oracle()
    index.upsert(batch(given_docs))
    oracle.upsert(given_docs)
    assert index.build_graph() is not None
    far = {"field": "far", "condition": {"$eq": True}}
    agree(index, oracle, Query(vector=(1.0,) + (0.0,) * 15, alpha=1.0, filter=far))


@pytest.mark.usefixtures("small_graphs")
def test_a_boosted_document_is_found_though_the_graph_is_not_near_it() -> None:
    """What is boosted is a candidate, however far its vector is from the query's."""
    given_docs = crowd(600)
    index, oracle = Index(16), Oracle()
    index.upsert(batch(given_docs))
    oracle.upsert(given_docs)
    assert index.build_graph() is not None
    target = given_docs[0].vector
    far = oracle.ranked(Query(vector=target, alpha=1.0))[-1][0]
    query = Query(text="none", vector=target, alpha=1.0, boost={far: 5.0})
    assert query.run(index)[0].document.id == far


@pytest.mark.usefixtures("small_graphs")
def test_a_graph_is_kept_stopped_and_read_again(tmp_path: Path, monkeypatch: Patch) -> None:
    """A stopped build changes nothing; a written graph serves again; one of other rows is refused."""
    given_docs = crowd(700)
    index = Index(16)
    index.upsert(batch(given_docs))
    assert index.build_graph(should_stop=lambda: True) is None
    assert index.wants_graph
    graph = index.build_graph()
    assert graph is not None
    path = tmp_path / "graph"
    graph.write(path)
    again = Index(16, blocks=[index.extract()])
    assert again.wants_graph
    assert again.load_graph(path, n_rows=700)
    assert not again.wants_graph
    query = Query(vector=given_docs[3].vector, alpha=1.0)
    assert [m.document.id for m in query.run(again)] == [m.document.id for m in query.run(index)]
    other = Index(16)
    other.upsert(batch(crowd(700, seed=8)))
    with pytest.raises(CorruptDataError):
        other.load_graph(path, n_rows=700)
    assert other.wants_graph
    monkeypatch.setattr("moss_voice.index.SWEEP_ROWS", 10)
    again.delete([f"d{n}" for n in range(600)])
    assert again.n_rows == 100  # swept: the graph's rows are no more
    again._check()
    assert len(query.run(again)) == 5


@pytest.mark.usefixtures("small_graphs")
def test_a_graph_of_rows_that_were_swept_meanwhile_is_thrown_away(monkeypatch: Patch) -> None:
    """Rows move while a graph is built over them: it is not used, and searches stay right."""
    monkeypatch.setattr("moss_voice.index.SWEEP_ROWS", 10)
    given_docs = crowd(700)
    index, oracle = Index(16), Oracle()
    index.upsert(batch(given_docs))
    oracle.upsert(given_docs)

    more = [Doc(f"e{n}", doc.text, doc.vector) for n, doc in enumerate(crowd(600, seed=9))]

    def sweep() -> bool:
        if "e0" not in index:
            for target in (index, oracle):
                target.delete([doc.id for doc in given_docs[:400]])
            index.upsert(batch(more))
            oracle.upsert(more)
        return False

    assert index.build_graph(should_stop=sweep) is None
    assert index.n_rows == 900
    index._check()
    agree(index, oracle, Query(vector=given_docs[500].vector, alpha=1.0))


# --- readers and a writer --------------------------------------------------------------------------

RACE_IDS = [f"d{n}" for n in range(40)]
PROBE = tuple(float(n) for n in np.random.default_rng(3).normal(size=DIM))


def _version(id_: str, version: int) -> Doc:
    """A document whose text, metadata and vector all tell its version."""
    random = np.random.default_rng([int(id_[1:]), version])
    return Doc(
        id_,
        f"hotel version {id_} {version}",
        tuple(random.normal(size=DIM)),
        {"version": version, "even": version % 2 == 0},
    )


class _History:
    """What the index held after each change, and how far the writer is."""

    def __init__(self) -> None:
        self.states: list[dict[str, int]] = [{}]
        self.begun = 0
        self.done = 0

    def span(self, done_before: int, begun_after: int) -> Iterator[dict[str, int]]:
        yield from self.states[done_before : begun_after + 1]


def _write(index: Index, history: _History, n_changes: int) -> None:
    random = np.random.default_rng(11)
    for version in range(1, n_changes + 1):
        state = dict(history.states[-1])
        some = [str(id_) for id_ in random.choice(RACE_IDS, size=3, replace=False)]
        if random.random() < 0.3:
            change: Callable[[], object] = partial(index.delete, some)
            for id_ in some:
                state.pop(id_, None)
        else:
            given_docs = [_version(id_, version) for id_ in some]
            change = partial(index.upsert, batch(given_docs))
            state.update(dict.fromkeys(some, version))
        history.states.append(state)
        history.begun += 1
        change()
        history.done += 1


def _seen(matches: Sequence[Match]) -> dict[str, int]:
    """Return id -> version, and see that no part of an answer is of another version."""
    seen: dict[str, int] = {}
    probe = Query(vector=PROBE).unit
    assert probe is not None
    for match in matches:
        doc = match.document
        assert doc.metadata is not None
        version = int(doc.metadata["version"])
        assert doc.text == f"hotel version {doc.id} {version}"
        cosine = float(_version(doc.id, version).unit @ probe)
        assert match.score == pytest.approx((1 + cosine) / 2, abs=TOLERANCE)
        assert doc.id not in seen
        seen[doc.id] = version
    return seen


def _read_all(index: Index, history: _History, stop: threading.Event) -> int:
    searches = 0
    query = Query(text="hotel", vector=PROBE, top_k=1000, alpha=0.8, exclude=("d7", "d8"))
    even = Query(
        text="hotel",
        vector=PROBE,
        top_k=1000,
        alpha=1.0,
        filter={"field": "even", "condition": {"$eq": True}},
    )
    while not stop.is_set():
        before = history.done
        seen = _seen(query.run(index))
        span = list(history.span(before, history.begun))
        wanted = [{id_: v for id_, v in s.items() if id_ not in query.exclude} for s in span]
        assert seen in wanted
        before = history.done
        seen = _seen(even.run(index))
        span = list(history.span(before, history.begun))
        assert seen in [{id_: v for id_, v in s.items() if v % 2 == 0} for s in span]
        searches += 1
    return searches


def _read_near(index: Index, history: _History, stop: threading.Event) -> int:
    searches = 0
    query = Query(text="hotel", vector=PROBE, top_k=6, alpha=1.0)
    while not stop.is_set():
        before = history.done
        seen = _seen(query.run(index))
        span = list(history.span(before, history.begun))
        assert any(seen.items() <= s.items() and len(seen) == min(6, len(s)) for s in span)
        searches += 1
    return searches


def _grow(index: Index, stop: threading.Event) -> int:
    graphs = 0
    while not stop.is_set():
        if index.wants_graph and index.build_graph(should_stop=stop.is_set) is not None:
            graphs += 1
        stop.wait(0.001)
    return graphs


def test_readers_never_see_a_change_half_made(monkeypatch: Patch) -> None:
    """Each answer is what one state of the index gives, whole.

    While one thread writes, others search, filter and exclude; rows are swept out and graphs replaced.
    """
    monkeypatch.setattr("moss_voice.index.EXACT_ROWS", 30)
    monkeypatch.setattr("moss_voice.index.CANDIDATES", 12)
    monkeypatch.setattr("moss_voice.index.SWEEP_ROWS", 60)
    index, history, stop = Index(DIM), _History(), threading.Event()
    with ThreadPoolExecutor(4) as pool:
        readers = [
            pool.submit(_read_all, index, history, stop),
            pool.submit(_read_near, index, history, stop),
            pool.submit(_read_near, index, history, stop),
        ]
        graphs = pool.submit(_grow, index, stop)
        try:
            _write(index, history, 400)
        finally:
            stop.set()
        searches = [reader.result() for reader in readers]
        assert min(searches) > 5
        assert graphs.result() > 0
    index._check()
    assert {doc.id for doc in index.get()} == set(history.states[-1])
