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
from dataclasses import astuple, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice import ranking
from moss_voice.errors import CorruptDataError, InvalidArgumentError
from moss_voice.filters import parse_filter
from moss_voice.index import Batch, Block, Index, encode_document
from moss_voice.ranking import (
    DUPLICATE_COSINE,
    DUPLICATE_PENALTY,
    NEIGHBOUR_WEIGHT,
    RECENCY_TURNS,
    RECENCY_WEIGHT,
    keyword_unit,
)
from moss_voice.searching import PLAIN, Manner, Match, Places, decode_document, rank
from moss_voice.text import term_ids, terms
from moss_voice.types import HitParts, Metadata

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
    manner: Manner = PLAIN
    ahead: bool = False

    @property
    def unit(self) -> F32 | None:
        return None if self.vector is None else Doc("", "", self.vector).unit

    def run(self, index: Index, places: Places | None = None) -> list[Match]:
        if not self.ahead:
            return self._search(index, places)
        prepared = index.prepare(
            term_ids(self.text),
            top_k=self.top_k,
            condition=parse_filter(self.filter),
            exclude=self.exclude,
            boost=self.boost,
            places=places,
            manner=self.manner,
        )
        return rank(
            prepared, self.unit, top_k=self.top_k, alpha=self.alpha, min_score=self.min_score
        )

    def _search(self, index: Index, places: Places | None) -> list[Match]:
        return index.search(
            vector=self.unit,
            terms=term_ids(self.text),
            top_k=self.top_k,
            alpha=self.alpha,
            condition=parse_filter(self.filter),
            min_score=self.min_score,
            exclude=self.exclude,
            boost=self.boost,
            places=places,
            manner=self.manner,
        )


# What was known of the groups at some moment: of each value, the documents as they were written then.
Groups = dict[str, dict[str, int]]


class Oracle:
    """Documents in order of first insertion, ranked by the definitions."""

    def __init__(self) -> None:
        self.docs: dict[str, Doc] = {}
        self.written: dict[str, int] = {}
        self._writes = 0

    def upsert(self, docs: Sequence[Doc]) -> tuple[int, int]:
        added = len({doc.id for doc in docs} - self.docs.keys())
        for doc in docs:
            self.docs[doc.id] = doc
            self._writes += 1
            self.written[doc.id] = self._writes
        return added, len(docs) - added

    def delete(self, ids: Sequence[str]) -> list[str]:
        return [id_ for id_ in dict.fromkeys(ids) if self.docs.pop(id_, None)]

    def groups(self, fields: Sequence[str]) -> Groups:
        found: Groups = {}
        for doc in self.docs.values():
            for name in fields:
                value = (doc.metadata or {}).get(name)
                if isinstance(value, str) and value.strip():
                    found.setdefault(value, {})[doc.id] = self.written[doc.id]
        return found

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

    def ranked(
        self, query: Query, groups: Groups | None = None
    ) -> list[tuple[str, HitParts, float]]:
        """Return (id, parts, score) of all that qualify, the greatest sum first, equal ones by insertion."""
        condition = parse_filter(query.filter)
        passing = {
            id_: doc
            for id_, doc in self.docs.items()
            if id_ not in query.exclude and (condition is None or condition.matches(doc.metadata))
        }
        keyword = {id_: score for id_, score in self.bm25(query.text).items() if id_ in passing}
        by_words = query.alpha == 0.0 or query.unit is None
        top = max(keyword.values(), default=0.0)
        scores: dict[str, float] = {}
        parts: dict[str, HitParts] = {}
        for id_, doc in passing.items():
            focus = self._gain(id_, query.boost, groups or {})
            if by_words:
                if keyword[id_] > 0.0:
                    scores[id_] = keyword[id_] / top
                    parts[id_] = HitParts(0.0, scores[id_], focus)
            else:
                cosine = float(doc.unit.astype(float) @ query.unit.astype(float))  # type: ignore[union-attr]
                scores[id_] = min(1.0, max(0.0, (1 + cosine) / 2))
                weight = (
                    (1 - query.alpha) * query.manner.keyword_weight / keyword_unit(len(self.docs))
                )
                parts[id_] = HitParts(query.alpha * cosine, weight * keyword[id_], focus)
        if parts and not by_words:
            parts = self._among_turns(parts, query.manner)
        least = -1.0 if query.min_score is None else query.min_score
        found = [(id_, parts[id_], scores[id_]) for id_ in parts if scores[id_] >= least]
        return sorted(found, key=lambda item: -item[1].total)

    def _gain(self, id_: str, boost: Mapping[str, float], groups: Groups) -> float:
        """Return the greatest boost among the groups that a document was in as it is written now."""
        now = self.written[id_]
        return max(
            (boost[value] for value in boost if groups.get(value, {}).get(id_) == now), default=0.0
        )

    def _among_turns(self, parts: dict[str, HitParts], manner: Manner) -> dict[str, HitParts]:
        order = list(self.docs)
        said = {id_: each.semantic + each.keyword for id_, each in parts.items()}
        mean = sum(said.values()) / len(said)
        found = {}
        for id_, each in parts.items():
            at = order.index(id_)
            beside = [order[near] for near in (at - 1, at + 1) if 0 <= near < len(order)]
            lent = sum(NEIGHBOUR_WEIGHT * (said[near] - mean) for near in beside if near in said)
            last = len(order) - 1
            age = at / last * min(1.0, last / RECENCY_TURNS) if last else 0.0
            found[id_] = HitParts(
                each.semantic,
                each.keyword,
                each.focus,
                lent if manner.neighbours else 0.0,
                RECENCY_WEIGHT * age if manner.recency else 0.0,
            )
        return found

    def loss(self, id_: str, chosen: Sequence[str], manner: Manner) -> float:
        """Return what a document loses by those that were chosen before it."""
        order = list(self.docs)
        loss = 0.0
        for other in chosen:
            if manner.spread:
                away = order.index(id_) - order.index(other)
                reach = min(4, int(len(order) * ranking.SPREAD_SHARE))
                loss += ranking.SPREAD_PENALTY * (away != 1 and abs(away) <= reach)
            if manner.near_duplicates:
                cosine = float(self.docs[id_].unit.astype(float) @ self.docs[other].unit)
                over = (cosine - DUPLICATE_COSINE) / (1 - DUPLICATE_COSINE)
                loss += DUPLICATE_PENALTY * max(0.0, over)
        return loss


def agree(
    index: Index, oracle: Oracle, query: Query, known: tuple[Places, Groups] | None = None
) -> None:
    """Assert that a search is right: what it ranks, why, how it scores, and what it leaves out."""
    places, groups = known or (None, None)
    ranked = oracle.ranked(query, groups)
    values = {id_: (parts, score) for id_, parts, score in ranked}
    found = query.run(index, places)
    assert len(found) == min(query.top_k, len(ranked))
    assert len({match.document.id for match in found}) == len(found)
    by_words = query.alpha == 0.0 or query.unit is None
    manner = PLAIN if by_words else query.manner
    chosen: list[str] = []
    for match in found:
        id_ = match.document.id
        parts, score = values[id_]
        for name in ("semantic", "keyword", "focus", "neighbour", "recency"):
            assert getattr(match.parts, name) == pytest.approx(getattr(parts, name), abs=TOLERANCE)
        loss = oracle.loss(id_, chosen, manner)
        assert match.parts.repeat == pytest.approx(-loss, abs=5 * TOLERANCE)
        assert match.fused == match.parts.total
        assert match.fused == pytest.approx(parts.total - loss, abs=5 * TOLERANCE)
        assert match.score == pytest.approx(score, abs=TOLERANCE)
        assert match.document.text == oracle.docs[id_].text
        assert match.document.metadata == oracle.docs[id_].metadata
        # Sums in single precision: near-ties may change places, but what comes next is as good as any.
        left = [other for other in values if other not in chosen]
        worth = {
            other: values[other][0].total - oracle.loss(other, chosen, manner) for other in left
        }
        assert worth[id_] >= max(worth.values()) - 5 * TOLERANCE
        chosen.append(id_)
    place = {id_: at for at, id_ in enumerate(oracle.docs)}
    for better, worse in pairwise(found):
        assert better.fused >= worse.fused - 5 * TOLERANCE
        # Where nothing tells two documents apart, not even rounding.
        if better.parts == worse.parts and not manner.picky:
            assert place[better.document.id] < place[worse.document.id]


# --- random runs -----------------------------------------------------------------------------------

ids = st.sampled_from([f"d{n}" for n in range(9)])
# Few different ones, so that there are ties and twins.
vectors = st.lists(st.integers(-1, 1), min_size=DIM, max_size=DIM).filter(any).map(tuple)
few_vectors = st.sampled_from([(1,) + (0,) * 7, (1, 1) + (0,) * 6, (-1, 2, 0, 3, 0, 1, 0, 1)])
texts = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
metadata = st.none() | st.fixed_dictionaries(
    {"turn": st.integers(0, 5)},
    optional={
        "speaker": st.sampled_from(["caller", "agent"]),
        "about": st.sampled_from(["hotel", "caller", " ", 7]),
    },
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
    boost=st.dictionaries(
        st.sampled_from(["caller", "agent", "hotel", " ", "nobody"]),
        st.sampled_from([0.5, 0.35, 0.245]),
        max_size=3,
    ),
    manner=st.just(PLAIN)
    | st.builds(
        Manner, st.sampled_from([1.0, 1.6, 0.8]), *(st.booleans() for _ in Manner._fields[1:5])
    ),
    ahead=st.booleans(),
)
steps = st.lists(
    st.tuples(st.just("upsert"), st.lists(docs, max_size=5))
    | st.tuples(st.just("delete"), st.lists(ids, max_size=4))
    | st.tuples(st.just("study"), st.just(("speaker", "about")))
    | st.tuples(st.just("search"), queries),
    max_size=14,
)


@given(steps, queries)
@settings(max_examples=80, deadline=None)
def test_any_run_of_changes_and_searches_agrees_with_the_oracle(
    steps: list[tuple[str, Any]], last: Query
) -> None:
    """Whatever was added, updated, deleted and swept out, a search gives what the definitions give.

    Where groups lie is asked now and then, and holds for what was not written since, until a sweep.
    """
    index, oracle = Index(DIM), Oracle()
    known: tuple[Places, Groups] | None = None
    with Patch.context() as patch:
        patch.setattr("moss_voice.index.SWEEP_ROWS", 3)
        # In calls as short as these nothing would be close.
        patch.setattr(ranking, "SPREAD_SHARE", 0.5)
        for step, what in [*steps, ("search", last)]:
            n_rows = index.n_rows
            if step == "upsert":
                assert index.upsert(batch(what)) == oracle.upsert(what)
                n_rows += len({doc.id for doc in what})
            elif step == "delete":
                assert index.delete(what) == oracle.delete(what)
            elif step == "study":
                known = index.places_of(what), oracle.groups(what)
                assert known[0].rows.keys() == known[1].keys()
            else:
                agree(index, oracle, what, known)
            if known is not None and index.n_rows < n_rows:
                known = known[0], {}
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


def test_a_boost_lifts_a_group_also_by_keywords_alone() -> None:
    """A boost is added to what documents of a group are ranked by and never to their score."""
    index = Index(DIM)
    index.upsert(
        batch(
            [
                Doc("a", "hotel wifi", (1.0,) * DIM, {"of": "Astoria"}),
                Doc("b", "wifi", (1.0,) * DIM, {"of": "Bristol"}),
            ]
        )
    )
    places = index.places_of(["of"])
    for alpha in (0.0, 0.5, 1.0):
        plain = Query(text="wifi", vector=(1.0,) * DIM, alpha=alpha)
        lifted = Query(
            text="wifi", vector=(1.0,) * DIM, alpha=alpha, boost={"Astoria": 0.5, "x": 9.0}
        )
        scores = {match.document.id: match.score for match in plain.run(index, places)}
        found = lifted.run(index, places)
        assert [(match.document.id, match.parts.focus) for match in found] == [
            ("a", 0.5),
            ("b", 0.0),
        ]
        assert {match.document.id: match.score for match in found} == scores


def test_a_boost_lifts_nobody_else() -> None:
    """Of many members few share a word, and those that do not lift no document that does."""
    index = Index(DIM)
    index.upsert(
        batch(
            [
                Doc(
                    f"d{n}",
                    "wifi" if n % 200 == 0 else "train",
                    (1.0,) * DIM,
                    {"of": "Astoria" if n % 200 in (1, 2, 3) else "Bristol"},
                )
                for n in range(2000)
            ]
        )
    )
    query = Query(text="wifi", vector=(1.0,) * DIM, top_k=20, alpha=0.0, boost={"Astoria": 0.5})
    found = query.run(index, index.places_of(["of"]))
    assert len(found) == 10
    assert {match.parts.focus for match in found} == {0.0}


TURNS = Manner(keyword_weight=1.6, neighbours=True, recency=True, spread=True, near_duplicates=True)


def talk(*texts: str, seed: int = 5) -> list[Doc]:
    """Turns of unlike vectors, as they were spoken."""
    random = np.random.default_rng(seed)
    return [Doc(f"t{at}", text, tuple(random.normal(size=DIM))) for at, text in enumerate(texts)]


def test_the_parts_tell_what_a_hit_was_ranked_by() -> None:
    """Each part is what its name says, worked out here on its own; their sum is the rank."""
    given_docs = [
        replace(doc, metadata={"of": "Astoria"} if doc.id == "t1" else None)
        for doc in talk("is there wifi", "ask at the desk", "all right", "my card is lost")
    ]
    index, oracle = Index(DIM), Oracle()
    index.upsert(batch(given_docs))
    oracle.upsert(given_docs)
    query = Query(
        text="wifi desk", vector=given_docs[0].vector, boost={"Astoria": 0.3}, manner=TURNS
    )
    found = {match.document.id: match for match in query.run(index, index.places_of(["of"]))}
    words = oracle.bm25("wifi desk")
    cosines = {doc.id: float(doc.unit @ given_docs[0].unit) for doc in given_docs}
    fused = {id_: 0.8 * cosines[id_] + 0.2 * 1.6 * words[id_] / keyword_unit(4) for id_ in words}
    mean = sum(fused.values()) / 4
    answer = found["t1"].parts
    assert answer.semantic == pytest.approx(0.8 * cosines["t1"], abs=TOLERANCE)
    assert answer.keyword == pytest.approx(0.2 * 1.6 * words["t1"] / keyword_unit(4), abs=TOLERANCE)
    assert answer.keyword > 0.0
    assert answer.focus == pytest.approx(0.3)
    lent = 0.25 * (fused["t0"] - mean) + 0.25 * (fused["t2"] - mean)
    assert answer.neighbour == pytest.approx(lent, abs=TOLERANCE)
    assert answer.recency == pytest.approx(0.03 / 128)
    assert found["t1"].fused == pytest.approx(sum(astuple(answer)), abs=TOLERANCE)
    assert [found[f"t{n}"].parts.recency for n in range(4)] == pytest.approx(
        [0.03 * n / 128 for n in range(4)]
    )
    assert [match.parts.focus for match in found.values() if match.id != "t1"] == [0.0] * 3


def test_an_answer_is_found_by_its_question_also_after_a_correction() -> None:
    """A turn that is corrected keeps its place, and so its neighbours; without lending it is not found."""
    given_docs = talk("wifi", "hotel", "card", "train", "booking", "invoice", "refund")
    index = Index(DIM)
    index.upsert(batch(given_docs))
    index.upsert(
        batch([replace(given_docs[3], text="is there wifi at all")])
    )  # its row is the last
    query = Query(text="wifi", vector=given_docs[3].vector, manner=Manner(neighbours=True), top_k=7)
    lent = {match.id: match.parts.neighbour for match in query.run(index)}
    assert sorted(lent, key=lambda id_: -lent[id_])[:2] in (["t2", "t4"], ["t4", "t2"])
    assert min(lent["t2"], lent["t4"]) > 0.1
    assert {match.parts.neighbour for match in replace(query, manner=PLAIN).run(index)} == {0.0}


def test_what_is_left_out_lends_nothing() -> None:
    """A turn that must not be found lifts no other, by exclusion or by a filter; nor does one deleted."""
    given_docs = [
        replace(doc, metadata={"turn": at})
        for at, doc in enumerate(talk("hotel", "card", "wifi", "train", "booking"))
    ]
    index = Index(DIM)
    index.upsert(batch(given_docs))
    query = Query(text="wifi", vector=given_docs[2].vector, manner=Manner(neighbours=True))
    lifted = {match.id: match.parts.neighbour for match in query.run(index)}
    assert lifted["t3"] > 0.1
    without: Mapping[str, Any] = {"field": "turn", "condition": {"$ne": 2}}
    for other in (replace(query, exclude=("t2",)), replace(query, filter=without)):
        left = {match.id: match for match in other.run(index)}
        assert left.keys() == lifted.keys() - {"t2"}
        own = {id_: match.parts.semantic + match.parts.keyword for id_, match in left.items()}
        mean = sum(own.values()) / 4
        # Its place stays empty: the turns on both sides of it are no neighbours.
        assert left["t1"].parts.neighbour == pytest.approx(0.25 * (own["t0"] - mean), abs=TOLERANCE)
        assert left["t3"].parts.neighbour == pytest.approx(0.25 * (own["t4"] - mean), abs=TOLERANCE)
    index.delete(["t2"])
    gone = {match.id: match for match in query.run(index)}
    own = {id_: match.parts.semantic + match.parts.keyword for id_, match in gone.items()}
    shares = 0.25 * (own["t0"] + own["t3"] - 2 * sum(own.values()) / 4)
    assert gone["t1"].parts.neighbour == pytest.approx(shares, abs=TOLERANCE)


@pytest.mark.parametrize("graph", [False, True])
def test_turns_beyond_the_bound_are_ranked_as_documents(monkeypatch: Patch, graph: bool) -> None:
    """Up to `EXACT_TURNS` each turn is scored, graph or not; beyond, turns are found as documents are."""
    exact_rows(monkeypatch, 50)
    monkeypatch.setattr("moss_voice.searching.EXACT_TURNS", 120)
    given_docs = crowd(121)
    index, oracle = Index(16), Oracle()
    index.upsert(batch(given_docs[:120]))
    oracle.upsert(given_docs[:120])
    if graph:
        assert index.build_graph() is not None
    query = Query(text="wifi number3", vector=given_docs[3].vector, top_k=20, manner=TURNS)
    agree(index, oracle, query)
    assert any(match.parts.neighbour for match in query.run(index))
    index.upsert(batch(given_docs[120:]))
    beyond = query.run(index)
    assert {(match.parts.neighbour, match.parts.recency) for match in beyond} == {(0.0, 0.0)}
    plain = Manner(keyword_weight=1.6, near_duplicates=True)
    same = replace(query, manner=plain).run(index)
    assert [match.id for match in beyond] == [match.id for match in same]


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("manner", [TURNS, Manner(near_duplicates=True), Manner(spread=True)])
def test_a_shorter_list_begins_a_longer_one(
    monkeypatch: Patch, graph: bool, manner: Manner
) -> None:
    """How many are asked for changes nothing about which come first, also where what differs is chosen."""
    if graph:
        exact_rows(monkeypatch, 200)
    # One subject after another.
    given_docs = sorted(crowd(900), key=lambda doc: int(doc.id[1:]) % 12)
    # Every fifth says what the one before it says.
    given_docs[4::5] = [
        replace(doc, vector=given_docs[5 * at + 3].vector)
        for at, doc in enumerate(given_docs[4::5])
    ]
    index = Index(16)
    index.upsert(batch(given_docs))
    if graph:
        assert index.build_graph() is not None
    differs = 0
    for at in (3, 8, 500):
        query = Query(text="hotel card", vector=given_docs[at].vector, manner=manner)
        lists = [[m.id for m in replace(query, top_k=k).run(index)] for k in (1, 2, 5, 12)]
        for shorter, longer in pairwise(lists):
            assert longer[: len(shorter)] == shorter
        plain = replace(query, manner=Manner(manner.keyword_weight), top_k=12).run(index)
        differs += lists[-1] != [match.id for match in plain]
    assert differs


def test_a_twin_makes_room_for_another() -> None:
    """Of two documents that say the same the second falls behind one that is a little worse."""
    near, other = (1.0, 0.9) + (0.0,) * 6, (1.0, -1.0) + (0.0,) * 6
    index = Index(DIM)
    index.upsert(batch([Doc("a", "", near), Doc("b", "", near), Doc("c", "", other)]))
    query = Query(text="", vector=(1.0,) + (0.0,) * 7)
    assert [match.id for match in query.run(index)] == ["a", "b", "c"]
    apart = replace(query, manner=Manner(near_duplicates=True)).run(index)
    assert [match.id for match in apart] == ["a", "c", "b"]
    # What it lost is told, and in its rank score: so that it stays behind among other indexes' hits.
    assert apart[2].parts.repeat == pytest.approx(-0.24, abs=TOLERANCE)
    assert apart[2].fused == pytest.approx(apart[0].fused - 0.24, abs=TOLERANCE)
    assert apart[1].parts.repeat == 0.0


# --- where groups lie ------------------------------------------------------------------------------


def test_places_are_those_of_texts_in_order() -> None:
    """Blanks, numbers and booleans are no groups; a document in two fields of one value counts once."""
    index = Index(DIM)
    given_docs: list[Metadata | None] = [
        {"of": "Bristol", "near": "Astoria"},
        {"of": "Astoria", "near": "Astoria"},
        {"of": "  ", "near": 7},
        None,
        {"of": True, "near": ""},
        {"other": "Corona"},
    ]
    index.upsert(batch([Doc(f"d{n}", "", (1.0,) * DIM, m) for n, m in enumerate(given_docs)]))
    index.upsert(batch([Doc("d3", "", (1.0,) * DIM, {"of": "Bristol"})]))
    index.delete(["d5"])
    rows = index.places_of(["of", "near"]).rows
    assert {value: found.tolist() for value, found in rows.items()} == {
        "Bristol": [0, 6],
        "Astoria": [0, 1],
    }
    assert list(rows) == ["Bristol", "Astoria"]
    assert index.places_of([]).rows == {}


def test_places_go_by_the_order_in_which_documents_came() -> None:
    """A document that is replaced has a later row and keeps its place; the rows of a value ascend."""
    index = Index(DIM)

    def put(**of: str) -> None:
        index.upsert(batch([Doc(id_, "", (1.0,) * DIM, {"of": at}) for id_, at in of.items()]))

    put(a="Astoria", b="Bristol", c="Astoria", d="Corona")  # rows 0 to 3
    put(a="Astoria", b="Dorset")  # rows 4 and 5
    found = index.places_of(["of"]).rows
    assert {value: rows.tolist() for value, rows in found.items()} == {
        "Astoria": [2, 4],
        "Dorset": [5],
        "Corona": [3],
    }
    assert list(found) == ["Astoria", "Dorset", "Corona"]
    # One that was deleted is new where it comes again.
    index.delete(["a", "c"])
    put(c="Astoria")
    assert list(index.places_of(["of"]).rows) == ["Dorset", "Corona", "Astoria"]


def test_places_hold_until_rows_are_swept(monkeypatch: Patch) -> None:
    """What is added later gains nothing and costs the others nothing; after a sweep nobody gains."""
    monkeypatch.setattr("moss_voice.index.SWEEP_ROWS", 4)
    index, oracle = Index(DIM), Oracle()

    def put(*given_docs: Doc) -> None:
        index.upsert(batch(given_docs))
        oracle.upsert(given_docs)

    same = {"text": "wifi", "vector": (1.0,) * DIM}
    put(*(Doc(f"d{n}", **same, metadata={"of": "AB"[n % 2]}) for n in range(6)))  # type: ignore[arg-type]
    places = index.places_of(["of"])
    known = places, oracle.groups(["of"])
    query = Query(text="wifi", vector=(1.0,) * DIM, boost={"B": 0.5}, top_k=50)

    def gained() -> set[str]:
        agree(index, oracle, query, known)
        agree(index, oracle, replace(query, alpha=0.0), known)
        return {match.id for match in query.run(index, places) if match.parts.focus}

    assert gained() == {"d1", "d3", "d5"}
    put(*(Doc(f"e{n}", **same, metadata={"of": "B"}) for n in range(40)))  # type: ignore[arg-type]
    assert gained() == {"d1", "d3", "d5"}
    put(Doc("d3", "wifi", (1.0,) * DIM, {"of": "B"}))
    assert gained() == {"d1", "d5"}
    for target in (index, oracle):
        target.delete([f"e{n}" for n in range(1, 40)])
    assert index.n_rows == len(index) == 7
    known = places, {}
    assert gained() == set()
    again = index.places_of(["of"])
    known, places = (again, oracle.groups(["of"])), again
    assert gained() == {"d1", "d3", "d5", "e0"}


def test_places_of_another_index_say_nothing() -> None:
    """Rows of one index are never taken for those of another."""
    first, second = Index(DIM), Index(DIM)
    for index in (first, second):
        index.upsert(batch([Doc("a", "wifi", (1.0,) * DIM, {"of": "A"})]))
    query = Query(text="wifi", vector=(1.0,) * DIM, boost={"A": 0.5})
    assert query.run(first, first.places_of(["of"]))[0].parts.focus == 0.5
    assert query.run(first, second.places_of(["of"]))[0].parts.focus == 0.0


def test_a_sample_is_the_same_each_time_and_of_the_living() -> None:
    """So many documents from all over, in order, with their vectors; all where there are fewer."""
    given_docs = crowd(500)
    index = Index(16)
    index.upsert(batch(given_docs))
    index.delete([f"d{n}" for n in range(0, 500, 2)])
    index.upsert(batch([replace(given_docs[1], text="anew")]))
    for most in (1, 7, 100, 250, 999):
        sample, vectors = index.sample(most)
        again, same = index.sample(most)
        assert len(sample) == len(vectors) == min(most, 250)
        assert sample == again
        np.testing.assert_array_equal(vectors, same)
        assert len({doc.id for doc in sample}) == len(sample)
        np.testing.assert_array_equal(vectors, index.vectors_of([doc.id for doc in sample]))
        assert sample == index.get([doc.id for doc in sample])
    numbers = sorted(int(doc.id[1:]) for doc in index.sample(100)[0])
    assert all(any(low <= n < low + 50 for n in numbers) for low in range(0, 500, 50))
    empty, none = Index(DIM).sample(5)
    assert (empty, none.shape) == ([], (0, DIM))


@pytest.mark.parametrize("graph", [False, True])
def test_a_group_that_cannot_be_meant_gains_nothing(monkeypatch: Patch, graph: bool) -> None:
    """Of the three groups that gain most, those of which no document is as near as asked; the rest do."""
    if graph:
        exact_rows(monkeypatch, 100)
    given_docs = [
        replace(doc, metadata={"of": f"v{n % 7}"}) for n, doc in enumerate(crowd(301, seed=3))
    ]
    index = Index(16)
    index.upsert(batch(given_docs))
    if graph:
        assert index.build_graph() is not None
    places = index.places_of(["of"])
    own = Doc("", "", given_docs[11].vector).unit
    nearest = {f"v{v}": max(float(doc.unit @ own) for doc in given_docs[v::7]) for v in range(7)}
    boost = {f"v{v}": 0.5 - 0.05 * v for v in range(5)}
    prepared = index.prepare(None, top_k=300, boost=boost, places=places)

    def gained(least: float, *, checked: bool = True) -> set[str]:
        found = rank(
            prepared,
            Doc("", "", given_docs[200].vector).unit,
            top_k=301,
            alpha=1.0,
            own=own if checked else None,
            least=least,
        )
        of = {match.id: str((match.document.metadata or {})["of"]) for match in found}
        for match in found:
            assert match.parts.focus in (0.0, pytest.approx(boost.get(of[match.id], 0.0)))
        return {of[match.id] for match in found if match.parts.focus}

    assert gained(-1.0) == set(boost)
    assert gained(2.0, checked=False) == set(boost)
    assert gained(2.0) == {"v3", "v4"}
    for value in ("v0", "v1", "v2"):
        kept = {other for other in ("v0", "v1", "v2") if nearest[other] > nearest[value]}
        assert gained(nearest[value] + 1e-5) == kept | {"v3", "v4"}


def test_each_state_has_a_number_of_its_own(monkeypatch: Patch) -> None:
    """Every write gives an index a number that no index had before; what changes nothing does not."""
    monkeypatch.setattr("moss_voice.index.SWEEP_ROWS", 4)
    seen: list[int] = []
    first, second = Index(DIM), Index(DIM)
    seen += [first.revision, second.revision]
    for n in range(8):
        for index in (first, second):
            index.upsert(batch([Doc("a", "hotel", (1.0, n) + (0.0,) * 6)]))
            seen.append(index.revision)
    for index in (first, second):
        index.delete(["a"])
        seen.append(index.revision)
    seen.append(Index(DIM, blocks=[first.extract()]).revision)
    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)
    before = first.revision
    first.delete(["nobody"])
    first.upsert(batch([]))
    Query().run(first)
    first.places_of(["of"])
    first.sample(3)
    assert first.revision == before


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


def exact_rows(monkeypatch: Patch, n_rows: int) -> None:
    """Make graphs worth while from so many rows on."""
    for module in ("index", "searching"):
        monkeypatch.setattr(f"moss_voice.{module}.EXACT_ROWS", n_rows)


@pytest.fixture
def small_graphs(monkeypatch: Patch) -> None:
    """Make graphs worth while from 200 rows on."""
    exact_rows(monkeypatch, 200)


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
        assert len({match.document.id for match in after}) == len(after) == 10
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
        values = {id_: parts.total for id_, parts, _ in oracle.ranked(query)}
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
    query = Query(vector=(1.0,) + (0.0,) * 15, alpha=1.0, filter=far)
    agree(index, oracle, query)
    # What is boosted gains among all as it does among candidates.
    mark = replace(given_docs[300], metadata={"far": True, "of": "Far End"})
    index.upsert(batch([mark]))
    oracle.upsert([mark])
    known = index.places_of(["of"]), oracle.groups(["of"])
    agree(index, oracle, replace(query, boost={"Far End": 3.0}), known)
    assert replace(query, boost={"Far End": 3.0}).run(index, known[0])[0].id == "d300"


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
    index.upsert(batch([mark := Doc(far, "far", oracle.docs[far].vector, {"of": "Far End"})]))
    oracle.upsert([mark])
    assert index.build_graph() is not None
    known = index.places_of(["of"]), oracle.groups(["of"])
    query = Query(text="none", vector=target, alpha=1.0, boost={"Far End": 5.0})
    assert query.run(index, known[0])[0].document.id == far
    agree(index, oracle, query, known)
    # But not where it must not be found.
    assert far not in {match.id for match in replace(query, exclude=(far,)).run(index, known[0])}


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
    exact_rows(monkeypatch, 30)
    monkeypatch.setattr("moss_voice.searching.CANDIDATES", 12)
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


class _Meanwhile:
    """A filter that lets all pass, and during whose work somebody writes."""

    def __init__(self, write: Callable[[], object]) -> None:
        self._write = write

    def mask(self, columns: object, n_rows: int) -> npt.NDArray[np.bool_]:
        self._write()
        return np.ones(n_rows, np.bool_)


@pytest.mark.parametrize("alpha", [0.0, 0.8])
@pytest.mark.parametrize("change", ["append", "sweep"])
def test_a_search_is_of_the_moment_that_it_began(
    monkeypatch: Patch, change: str, alpha: float
) -> None:
    """Documents that are added, or swept out, in the midst of a search are not there for it."""
    monkeypatch.setattr("moss_voice.index.SWEEP_ROWS", 4)
    index = Index(DIM)
    index.upsert(batch([Doc(f"d{n}", "train", PROBE) for n in range(8)]))
    index.upsert(batch([Doc("wifi", "wifi", PROBE), Doc("hotel", "hotel wifi", PROBE)]))
    query = Query(text="wifi", vector=PROBE, alpha=alpha, top_k=2)
    before = query.run(index)
    assert {match.id for match in before} == {"wifi", "hotel"}
    write: dict[str, Callable[[], object]] = {
        "append": lambda: index.upsert(batch([Doc("new", "wifi", PROBE)])),
        "sweep": lambda: index.delete([f"d{n}" for n in range(8)]),
    }
    found = index.search(
        vector=query.unit,
        terms=term_ids("wifi"),
        top_k=2,
        alpha=alpha,
        condition=_Meanwhile(write[change]),  # type: ignore[arg-type]
    )
    assert found == before


def test_groups_that_grew_since_are_those_of_the_moment() -> None:
    """Where words were looked up before an append, rows that are known since do not count."""
    index = Index(DIM)
    doc = Doc("old", "wifi", PROBE, {"of": "A"})
    index.upsert(batch([doc]))
    words = index.words(term_ids("wifi"))
    index.upsert(batch([replace(doc, id="new"), replace(doc, id="other", metadata=None)]))
    for alpha in (0.0, 0.8):
        found = index.search(
            vector=Query(vector=PROBE).unit,
            terms=words,
            top_k=9,
            alpha=alpha,
            boost={"A": 0.5},
            places=index.places_of(["of"]),
        )
        assert [(match.id, match.parts.focus) for match in found] == [("old", 0.5)]


def _append(index: Index, n_changes: int) -> None:
    random = np.random.default_rng(12)
    for n in range(n_changes):
        fresh = [
            Doc(f"n{n}-{k}", "hotel", tuple(random.normal(size=DIM)), {"of": "AB"[k % 2]})
            for k in range(4)
        ]
        index.upsert(batch(fresh))
        if n % 3 == 2:
            index.delete([f"n{m}-{k}" for m in (n, n - 1) for k in range(3)])


def _read_boosted(index: Index, stop: threading.Event, ahead: bool) -> int:
    gained = 0
    query = Query(text="hotel", vector=PROBE, top_k=1000, boost={"A": 0.5}, ahead=ahead)
    while not stop.is_set():
        places = index.places_of(["of"])
        for _ in range(3):
            found = query.run(index, places)
            of_group = {match.row for match in found if match.parts.focus}
            for match in found:
                metadata = match.document.metadata
                assert metadata is not None
                assert match.parts.focus == (0.5 if match.row in of_group else 0.0)
                assert match.row not in of_group or metadata["of"] == "A"
            # All that were there when it was asked, or, once rows were swept, nobody.
            there = set(places.rows["A"].tolist())
            assert of_group in (set(), there & {match.row for match in found})
            gained += len(of_group)
    return gained


@pytest.mark.parametrize("ahead", [False, True])
def test_groups_are_boosted_while_others_write(monkeypatch: Patch, ahead: bool) -> None:
    """Whoever appends, deletes or sweeps meanwhile: the right documents gain, or none does."""
    monkeypatch.setattr("moss_voice.index.SWEEP_ROWS", 40)
    index, stop = Index(DIM), threading.Event()
    index.upsert(batch([Doc(f"d{n}", "hotel", PROBE, {"of": "AB"[n % 2]}) for n in range(40)]))
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(_read_boosted, index, stop, ahead) for _ in range(2)]
        try:
            _append(index, 150)
        finally:
            stop.set()
        assert min(reader.result() for reader in readers) > 20
    index._check()
