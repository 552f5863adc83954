"""One index, alive: what a session adds, finds, resumes, pushes and refuses.

Sessions are made from ready parts: a cloud in memory or in a directory, and an embedder of words that
counts its runs. The bundled model stands in where meaning matters.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pytest

from moss_voice.cloud.cache import SegmentCache
from moss_voice.cloud.cloud import Cloud, open_cloud
from moss_voice.cloud.log import Commit, SegmentRef, decode_commit, decode_segment, encode_segment
from moss_voice.embedding import Embedder
from moss_voice.errors import (
    CloudUnavailableError,
    ConflictError,
    CorruptDataError,
    FilterError,
    FormatVersionError,
    IndexNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    ModelNotFoundError,
    MossError,
    SessionClosedError,
)
from moss_voice.session import SessionIndex
from moss_voice.types import (
    DocumentInfo,
    GetDocumentsOptions,
    MutationOptions,
    QueryOptions,
)
from moss_voice.versions import Remote

F32 = npt.NDArray[np.float32]
HOUR_MS = 3_600_000


class WordEmbedder:
    """Embeds texts as sums of their words' own vectors, and counts the texts."""

    model_id = "moss-minilm"
    dim = 32

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def _row(self, text: str) -> F32:
        self.embedded.append(text)
        total = np.full(self.dim, 1e-3)
        for word in text.lower().split():
            seed = int.from_bytes(
                hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()[:8], "little"
            )
            total += np.random.default_rng(seed).normal(size=self.dim)
        row: F32 = (total / np.linalg.norm(total)).astype(np.float32)
        return row

    def embed(self, texts: Sequence[str]) -> F32:
        return np.array([self._row(text) for text in texts], np.float32).reshape(-1, self.dim)

    def embed_query(self, text: str) -> F32:
        return self._row(text)

    def cached(self, text: str, *, query: bool = False) -> F32 | None:
        return None


class GatedCloud(Cloud):
    """A cloud whose next commit waits until the test lets it go."""

    def gate(self) -> tuple[asyncio.Event, asyncio.Event]:
        self.reached, self.go = asyncio.Event(), asyncio.Event()
        self.gated = True
        return self.reached, self.go

    gated = False

    async def commit(self, project: str, commit: Commit) -> bool:
        if self.gated:
            self.gated = False
            self.reached.set()
            await self.go.wait()
        return await super().commit(project, commit)


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> WordEmbedder:
    """Make sessions of the default model use the embedder of words."""
    words = WordEmbedder()

    def load(model_id: str) -> Embedder:
        if model_id != words.model_id:
            raise ModelNotFoundError(model_id)
        return words

    monkeypatch.setattr("moss_voice.session.load_embedder", load)
    return words


@pytest.fixture
def cloud() -> GatedCloud:
    ready = open_cloud(f"memory://{uuid4().hex}")
    return GatedCloud(ready.log)


@pytest.fixture
def remote(cloud: GatedCloud, tmp_path: Path) -> Remote:
    return Remote(cloud, "default", SegmentCache(tmp_path / "cache"))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def open_custom(remote: Remote, name: str = "calls", **options: Any) -> SessionIndex:
    return await SessionIndex.open(remote, name, "custom", **options)


def doc(id_: str, *vector: float, text: str = "", **metadata: Any) -> DocumentInfo:
    return DocumentInfo(id_, text or f"text of {id_}", metadata or None, vector or (1.0, 0.0, 0.0))


async def texts_of(session: SessionIndex) -> dict[str, str]:
    return {doc.id: doc.text for doc in await session.get_docs()}


async def settle(session: SessionIndex) -> None:
    """Wait for the refreshes that a read has started."""
    tasks = [
        source.task for source in session._following._by_name.values() if source.task is not None
    ]
    await asyncio.gather(*tasks)


# --- the way of a session --------------------------------------------------------------------------


async def test_a_session_is_resumed_by_name_without_embedding_anew(
    remote: Remote, embedder: WordEmbedder
) -> None:
    """Starts empty, adds, finds, pushes; opened again it has the same bits, without a model run."""
    session = await SessionIndex.open(remote, "call-123")
    assert (session.name, session.doc_count, session.model_id) == ("call-123", 0, "moss-minilm")
    added = await session.add_docs(
        [
            DocumentInfo("turn-1", "customer reported a duplicate charge", payload={"n": [1]}),
            DocumentInfo("turn-2", "agent confirmed the refund", {"speaker": "agent"}),
        ]
    )
    assert added == (2, 0)
    assert (session.doc_count, session.unpushed) == (2, 2)
    found = await session.query("refund confirmed", QueryOptions(top_k=1))
    assert [hit.id for hit in found.docs] == ["turn-2"]
    assert (found.query, found.index_name) == ("refund confirmed", "call-123")
    assert found.time_taken_ms > 0
    hit = found.docs[0]
    assert (hit.text, hit.metadata) == ("agent confirmed the refund", {"speaker": "agent"})
    assert (hit.payload, hit.index_name) == (None, "call-123")
    pushed = await session.push_index()
    assert (pushed.index_name, pushed.doc_count, pushed.status) == ("call-123", 2, "completed")
    assert session.unpushed == 0

    runs = len(embedder.embedded)
    again = await SessionIndex.open(remote, "call-123")
    assert (again.doc_count, again.model_id, again.version) == (2, "moss-minilm", pushed.version)
    assert len(embedder.embedded) == runs
    ids = ["turn-1", "turn-2"]
    np.testing.assert_array_equal(again.vectors_of(ids), session.vectors_of(ids))
    docs = await again.get_docs()
    assert docs == await session.get_docs()
    assert docs[0].payload == {"n": [1]}
    result = await again.query("refund confirmed", QueryOptions(top_k=1))
    assert result.docs == found.docs

    assert await again.add_docs([DocumentInfo("turn-3", "posted"), docs[0]]) == (1, 1)
    assert (await again.push_index()).doc_count == 3
    for each in (session, again):
        await each.close()


async def test_the_stored_model_is_adopted_and_another_is_refused(
    remote: Remote, embedder: WordEmbedder
) -> None:
    """Without a model the stored one is used; a different one is a ValueError, before it is loaded."""
    for name, model, given in [
        ("a", "moss-minilm", DocumentInfo("1", "x")),
        ("b", "custom", doc("1")),
    ]:
        session = await SessionIndex.open(remote, name, model)
        await session.add_docs([given])
        await session.push_index()
        assert (await SessionIndex.open(remote, name)).model_id == model
        assert (await SessionIndex.open(remote, name, model)).model_id == model
    for name, wrong in [("a", "moss-mediumlm"), ("a", "custom"), ("b", "moss-minilm")]:
        with pytest.raises(ModelMismatchError, match="leave out model_id") as caught:
            await SessionIndex.open(remote, name, wrong)
        assert isinstance(caught.value, ValueError)
    with pytest.raises(ModelNotFoundError):
        await SessionIndex.open(remote, "new", "no-such-model")
    with pytest.raises(IndexNotFoundError):
        await SessionIndex.open(remote, "new", must_exist=True)


async def test_added_and_updated_are_counted(remote: Remote) -> None:
    """(added, updated): a known id is an update, also within one call; without upsert it is left."""
    session = await open_custom(remote)
    assert await session.add_docs([]) == (0, 0)
    assert await session.add_docs([doc("a"), doc("b"), doc("a", text="newer")]) == (2, 1)
    assert await texts_of(session) == {"a": "newer", "b": "text of b"}
    keep = MutationOptions(upsert=False)
    fresh = [doc("a", text="no"), doc("c", text="first"), doc("c", text="second")]
    assert await session.add_docs(fresh, keep) == (1, 0)
    assert await texts_of(session) == {"a": "newer", "b": "text of b", "c": "first"}
    assert await session.add_docs([doc("a", text="no")], keep) == (0, 0)
    empty = await open_custom(remote, "other")
    assert await empty.add_docs([doc("x", text="first"), doc("x")], keep) == (1, 0)
    assert await texts_of(empty) == {"x": "first"}


async def test_a_known_document_is_not_embedded_for_nothing(
    remote: Remote, embedder: WordEmbedder
) -> None:
    """Without upsert a known document costs no model run; an embedding that is given is used."""
    session = await SessionIndex.open(remote, "calls")
    await session.add_docs([DocumentInfo("a", "one")])
    await session.add_docs([DocumentInfo("a", "two")], MutationOptions(upsert=False))
    given = np.ones(32, np.float32)
    await session.add_docs([DocumentInfo("b", "three", None, given)])
    assert embedder.embedded == ["one"]
    np.testing.assert_allclose(session.vectors_of(["b"])[0], given / np.sqrt(32), rtol=1e-6)
    assert [doc.embedding for doc in await session.get_docs()] == [None, None]


async def test_get_docs_and_delete_docs(remote: Remote) -> None:
    """All where None, none where empty, else in the order asked; deleting counts what was there."""
    session = await open_custom(remote)
    assert await session.get_docs() == []
    assert await session.delete_docs(["a"]) == 0
    given = [doc("a", 3.0, 4.0), doc("b", 0.0, 2.0), doc("c", 1.0, 0.0)]
    await session.add_docs(given)
    assert [d.id for d in await session.get_docs()] == ["a", "b", "c"]
    assert await session.get_docs(GetDocumentsOptions([])) == []
    some = await session.get_docs(GetDocumentsOptions(["c", "nobody", "a"]))
    assert [d.id for d in some] == ["c", "a"]
    assert some[1].embedding == pytest.approx((0.6, 0.8))
    assert await session.delete_docs(["b", "nobody", "b", "a"]) == 2
    assert session.doc_count == 1
    assert await session.delete_docs([]) == 0
    for ids in ("abc", [1]):
        with pytest.raises(InvalidArgumentError, match="doc_ids: expected a list of str"):
            await session.delete_docs(ids)  # type: ignore[arg-type]
    for ids in ("abc", [1]):
        with pytest.raises(ValueError, match=r"doc_ids|str"):
            await session.get_docs(GetDocumentsOptions(ids))  # type: ignore[arg-type]


async def test_progress_is_told_and_the_documents_come_whole(
    remote: Remote, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress counts embedded documents up to all; nothing can be found before all are."""
    monkeypatch.setattr("moss_voice.session.EMBED_CHUNK", 2)
    session = await SessionIndex.open(remote, "calls")
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        assert session.doc_count == 0

    docs = [DocumentInfo(f"d{n}", f"word{n}") for n in range(5)]
    assert await session.add_docs(docs, on_progress=progress) == (5, 0)
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]


# --- what is refused -------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("docs", "message"),
    [
        ([DocumentInfo("a", "t"), doc("b"), DocumentInfo("c", "t")], r"missing in 'a', 'c'"),
        ([DocumentInfo(f"d{n}", "t") for n in range(7)], r"'d0', .*'d4' and 2 more"),
        ([doc("a", 1.0, 2.0), doc("b", 1.0)], "expected 2 numbers per document; not so in 'b'"),
        ([doc("a", 1.0, NAN), doc("b", 1.0, 0.0), doc("c", INF, 0.0)], "finite.* in 'a', 'c'"),
        ([doc("a", 0.0, 0.0), doc("b", 1.0, 0.0)], "not all zero; not so in 'a'"),
        ([DocumentInfo("a", "t", None, ())], "at least one numbers"),
    ],
)
async def test_custom_embeddings_are_checked(
    remote: Remote, docs: list[DocumentInfo], message: str
) -> None:
    """Missing, of another size, not finite or zero: an error names every such document, none is added."""
    session = await open_custom(remote)
    with pytest.raises(InvalidArgumentError, match=message):
        await session.add_docs(docs)
    assert session.doc_count == session.unpushed == 0
    await session.add_docs([doc("x", 1.0, 0.0, 0.0)])
    with pytest.raises(InvalidArgumentError, match="expected 3 numbers"):
        await session.add_docs([doc("y", 1.0, 0.0)])
    assert await texts_of(session) == {"x": "text of x"}


@pytest.mark.parametrize("size", [1e300, 1e-300, 5e-324, 1.0])
async def test_embeddings_of_any_length_are_brought_to_one(remote: Remote, size: float) -> None:
    """Only the direction of a vector counts, also where its square would overflow or vanish."""
    session = await open_custom(remote)
    await session.add_docs([doc("a", size, size), doc("b", size, -size)])
    np.testing.assert_allclose(session.vectors_of(["a"]), [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    found = await session.query("", QueryOptions((0.0, size)))
    assert [hit.id for hit in found.docs] == ["a", "b"]


async def test_custom_queries_are_checked(remote: Remote) -> None:
    """A query of the model custom needs an embedding that fits, but for alpha 0 or a blank text."""
    session = await open_custom(remote)
    for docs in ([], [doc("a", 1.0, 0.0, 0.0, text="hotel wifi")]):
        await session.add_docs(docs)
        with pytest.raises(InvalidArgumentError, match=r"pass QueryOptions\.embedding"):
            await session.query("hotel")
        for bad in ((NAN, 1.0, 0.0), (0.0, 0.0, 0.0), (INF, 0.0, 0.0), ()):
            with pytest.raises(InvalidArgumentError, match=r"QueryOptions\.embedding: expected"):
                await session.query("hotel", QueryOptions(embedding=bad))
        found = await session.query("hotel", QueryOptions(alpha=0.0))
        assert [hit.id for hit in found.docs] == [d.id for d in docs]
        assert (await session.query("  ")).docs == []
    with pytest.raises(InvalidArgumentError, match="expected 3 numbers, got 2"):
        await session.query("hotel", QueryOptions(embedding=(1.0, 0.0)))
    assert (await session.query("", QueryOptions((2.0, 0.0, 0.0)))).docs[0].score == 1.0
    with pytest.raises(InvalidArgumentError, match="query: expected a str, got int"):
        await session.query(3)  # type: ignore[arg-type]


async def test_all_documents_are_added_or_none(remote: Remote, embedder: WordEmbedder) -> None:
    """One document that cannot be stored keeps the others out too."""
    session = await SessionIndex.open(remote, "calls")
    bad: list[Any] = [
        DocumentInfo("b", "t", payload=object()),
        DocumentInfo("b", "\ud800"),
        {"id": "b", "text": "t"},
        DocumentInfo("b", "t", None, (1.0,)),
    ]
    for odd in bad:
        with pytest.raises(InvalidArgumentError):
            await session.add_docs([DocumentInfo("a", "t"), odd])
        assert session.doc_count == session.unpushed == 0
    with pytest.raises(InvalidArgumentError, match="one time per document"):
        await session.add_docs([DocumentInfo("a", "t")], written_at=[1, 2])


async def test_a_closed_session_says_so(remote: Remote) -> None:
    """After close every call raises; closing twice and leaving the context is fine."""
    async with await open_custom(remote) as session:
        await session.add_docs([doc("a")])
        assert repr(session) == "<SessionIndex 'calls' 1 docs, 1 unpushed>"
    await session.close()
    assert "closed" in repr(session)
    calls: list[Callable[[], Any]] = [
        lambda: session.add_docs([doc("b")]),
        lambda: session.delete_docs(["a"]),
        session.get_docs,
        lambda: session.query("x", QueryOptions(alpha=0.0)),
        lambda: session.load_index("x"),
        session.push_index,
    ]
    for call in calls:
        with pytest.raises(SessionClosedError, match="'calls' is closed"):
            await call()


# --- finding ---------------------------------------------------------------------------------------


async def test_the_defaults_of_a_query(remote: Remote, embedder: WordEmbedder) -> None:
    """Five results, at alpha 0.8; scores in [0, 1]; no options are the default ones."""
    session = await SessionIndex.open(remote, "calls")
    await session.add_docs([DocumentInfo(f"d{n}", f"hotel number{n}") for n in range(9)])
    plain = await session.query("hotel number3")
    assert len(plain.docs) == 5
    assert plain.docs[0].id == "d3"
    assert all(0.0 <= hit.score <= 1.0 for hit in plain.docs)
    for options in (QueryOptions(), QueryOptions(None, 5, 0.8, None, None)):
        assert (await session.query("hotel number3", options)).docs == plain.docs
    high = await session.query("hotel number3", QueryOptions(min_score=0.99))
    assert [hit.id for hit in high.docs] == ["d3"]


async def test_alpha_0_embeds_nothing_and_alpha_1_ignores_words(
    remote: Remote, embedder: WordEmbedder
) -> None:
    """Keywords alone need no model and share a word with each hit; meaning alone ranks by cosine."""
    session = await SessionIndex.open(remote, "calls")
    await session.add_docs([DocumentInfo("a", "refund pending"), DocumentInfo("b", "hotel wifi")])
    runs = len(embedder.embedded)
    words = await session.query("the refunds", QueryOptions(alpha=0.0))
    assert [(hit.id, hit.score) for hit in words.docs] == [("a", 1.0)]
    assert (await session.query("  \n", QueryOptions(alpha=0.0))).docs == []
    assert (await session.query("")).docs == []
    assert len(embedder.embedded) == runs
    opposite = tuple(embedder.embed_query("hotel wifi").tolist())
    runs = len(embedder.embedded)
    meaning = await session.query("refund pending", QueryOptions(opposite, alpha=1.0))
    assert [hit.id for hit in meaning.docs] == ["b", "a"]
    assert meaning.docs[0].score == pytest.approx(1.0, abs=1e-5)
    assert len(embedder.embedded) == runs


async def test_the_bundled_model_finds_by_meaning(remote: Remote) -> None:
    """With the real model a question finds what answers it, though they share no word."""
    session = await SessionIndex.open(remote, "calls")
    await session.add_docs(
        [
            DocumentInfo("1", "Customer was billed twice for the same subscription renewal."),
            DocumentInfo("2", "The wifi in the lobby is free of charge."),
            DocumentInfo("3", "Parking costs twelve dollars per night."),
        ]
    )
    found = await session.query("why do I see two payments on my card", QueryOptions(top_k=1))
    assert [hit.id for hit in found.docs] == ["1"]


async def test_filters_narrow_what_is_ranked(remote: Remote) -> None:
    """A filter is applied before ranking; a malformed one is an error with its path."""
    session = await open_custom(remote)
    await session.add_docs(
        [doc(f"d{n}", 1.0, float(n), turn=n, who="ab"[n % 2], at="52.5,13.4") for n in range(8)]
    )
    vector = (1.0, 0.0)
    conditions: list[tuple[dict[str, Any], list[str]]] = [
        ({"field": "turn", "condition": {"$gte": 2, "$lt": 5}}, ["d2", "d3", "d4"]),
        ({"field": "who", "condition": {"$eq": "b"}}, ["d1", "d3", "d5", "d7"]),
        ({"field": "turn", "condition": {"$in": ["7", 0]}}, ["d0", "d7"]),
        ({"field": "at", "condition": {"$near": "0,0,10"}}, []),
        ({"$not": {"field": "turn", "condition": {"$gt": 0}}}, ["d0"]),
    ]
    for condition, expected in conditions:
        found = await session.query("", QueryOptions(vector, 8, filter=condition))
        assert [hit.id for hit in found.docs] == expected
    malformed: list[tuple[dict[str, Any], str]] = [
        ({"field": "turn", "condition": {"$gt": "many"}}, r"condition\.\$gt"),
        ({"$and": [{"field": "turn", "condition": {"$eq": 1}}, {}]}, r"\$and\[1\]"),
        ({}, "expected"),
    ]
    for condition, path in malformed:
        for text in ("", "x"):
            with pytest.raises(FilterError, match=path):
                await session.query(text, QueryOptions(vector, filter=condition))


async def test_queries_go_on_while_documents_are_added(
    remote: Remote, embedder: WordEmbedder
) -> None:
    """Adds, deletes and queries may run at once; none fails, and in the end all that was added is there."""
    session = await SessionIndex.open(remote, "calls")

    async def add(n: int) -> None:
        await session.add_docs([DocumentInfo(f"d{n}", f"hotel number{n}")])
        await session.query(f"number{n}")
        if n % 3 == 0:
            await session.delete_docs([f"d{n}"])

    await asyncio.gather(*(add(n) for n in range(30)))
    assert set(await texts_of(session)) == {f"d{n}" for n in range(30) if n % 3}


# --- pushing ---------------------------------------------------------------------------------------


async def test_a_push_uploads_what_changed_alone(remote: Remote) -> None:
    """20 new turns on an index of 10,000 cost under 100 kB; nothing new costs nothing."""
    session = await open_custom(remote)
    rows = np.random.default_rng(0).normal(size=(10_020, 16))
    docs = [DocumentInfo(f"d{n}", f"turn number {n}", None, row) for n, row in enumerate(rows)]
    await session.add_docs(docs[:10_000])
    first = await session.push_index()
    assert first.uploaded_bytes > 10_000 * 16 * 4
    await session.add_docs(docs[10_000:])
    await session.delete_docs(["d5"])
    second = await session.push_index()
    assert second.uploaded_bytes < 100_000
    assert (second.doc_count, second.version) == (10_019, first.version + 1)
    third = await session.push_index()
    assert (third.uploaded_bytes, third.version, third.doc_count) == (0, second.version, 10_019)
    again = await SessionIndex.open(remote, "calls")
    assert again.doc_count == 10_019
    probe = QueryOptions(tuple(rows[10_007]), 1)
    assert (await again.query("", probe)).docs[0].id == "d10007"
    await again.close()
    await session.close()


async def test_an_index_without_documents_can_be_pushed_but_for_custom(
    remote: Remote, embedder: WordEmbedder
) -> None:
    """An empty session is stored and resumed; of `custom` without a document the size is unknown."""
    session = await SessionIndex.open(remote, "calls")
    assert (await session.push_index()).doc_count == 0
    assert (await SessionIndex.open(remote, "calls")).doc_count == 0
    custom = await open_custom(remote, "other")
    with pytest.raises(InvalidArgumentError, match="nothing to push"):
        await custom.push_index()
    await custom.add_docs([doc("a")])
    await custom.delete_docs(["a"])
    assert (await custom.push_index()).doc_count == 0
    assert (await SessionIndex.open(remote, "other")).doc_count == 0


async def _two(remote: Remote) -> tuple[SessionIndex, SessionIndex]:
    """Two sessions of one index, each with changes that the other does not know."""
    first = await open_custom(remote)
    await first.add_docs([doc("both"), doc("gone"), doc("kept")])
    await first.push_index()
    second = await SessionIndex.open(remote, "calls")
    await first.add_docs([doc("one"), doc("both", text="of one")])
    await first.push_index()
    await second.add_docs([doc("two"), doc("both", text="of two")])
    await second.delete_docs(["gone"])
    return first, second


async def test_replace_makes_the_cloud_hold_what_the_session_holds(remote: Remote) -> None:
    """The documented default: the last push stands whole, and tells whom it replaced."""
    first, second = await _two(remote)
    result = await second.push_index()
    assert (result.doc_count, result.merged_from) == (3, first.version)
    stored = await texts_of(await SessionIndex.open(remote, "calls"))
    assert stored == await texts_of(second)
    assert stored == {"both": "of two", "kept": "text of kept", "two": "text of two"}


async def test_merge_keeps_both_and_brings_theirs_in(remote: Remote) -> None:
    """Union by id; per document the newer write wins, deletions included; no edit is left unpushed."""
    first, second = await _two(remote)
    result = await second.push_index("merge")
    expected = {
        "both": "of two",
        "kept": "text of kept",
        "one": "text of one",
        "two": "text of two",
    }
    assert (result.doc_count, result.merged_from) == (4, first.version)
    assert await texts_of(second) == expected
    assert await texts_of(await SessionIndex.open(remote, "calls")) == expected
    assert second.unpushed == 0
    # The other one, whose copy is older now, still has nothing to say: it learns.
    assert (await first.push_index("merge")).uploaded_bytes == 0
    assert await texts_of(first) == expected
    assert (await first.push_index("error")).uploaded_bytes == 0


async def test_the_newer_write_wins_whoever_pushes_first(remote: Remote) -> None:
    """Under merge the order of the writes counts, not that of the pushes; so for deletions too."""
    early = await open_custom(remote)
    await early.add_docs([doc("a"), doc("b"), doc("c")])
    await early.push_index()
    late = await SessionIndex.open(remote, "calls")
    # In the next hour, so that no stamp of the real clock comes in between.
    hour = early.stamp() + HOUR_MS
    changed = [doc("a", text="early"), doc("c", text="early")]
    await early.add_docs(changed, written_at=[hour + 1, hour + 2])
    early.remove(["b"], written_at=hour + 3)
    changed = [doc("a", text="late"), doc("b", text="late")]
    await late.add_docs(changed, written_at=[hour + 4, hour + 5])
    late.remove(["c"], written_at=hour + 6)
    await late.push_index("merge")
    await early.push_index("merge")
    assert await texts_of(early) == {"a": "late", "b": "late"}
    again = await SessionIndex.open(remote, "calls")
    assert await texts_of(again) == {"a": "late", "b": "late"}
    assert again.doc_count == 2


async def test_a_fast_clock_does_not_beat_who_has_read_it(remote: Remote) -> None:
    """What is written after reading a document from the future is newer than it."""
    fast = await open_custom(remote)
    future = fast.stamp() + HOUR_MS
    await fast.add_docs([doc("a", text="fast"), doc("b")], written_at=[future, future])
    await fast.push_index()
    ours = await SessionIndex.open(remote, "calls")
    await ours.add_docs([doc("a", text="ours")])
    await ours.delete_docs(["b"])
    await ours.push_index("merge")
    assert await texts_of(await SessionIndex.open(remote, "calls")) == {"a": "ours"}


async def test_error_raises_and_keeps_the_edits(remote: Remote) -> None:
    """Under `error` a conflict has both versions, changes nothing, and can be merged after."""
    first, second = await _two(remote)
    before = await texts_of(second)
    unpushed = second.unpushed
    with pytest.raises(ConflictError) as caught:
        await second.push_index("error")
    assert (caught.value.base_version, caught.value.head_version) == (1, first.version)
    assert (await texts_of(second), second.unpushed) == (before, unpushed)
    assert (await second.push_index("merge")).doc_count == 4
    with pytest.raises(InvalidArgumentError, match="on_conflict"):
        await second.push_index("overwrite")  # type: ignore[arg-type]


async def test_what_is_old_news_is_left_out(remote: Remote) -> None:
    """A write from the past changes nothing newer and brings nothing deleted back, nor miscounts it."""
    session = await open_custom(remote)
    past = session.stamp()
    await session.add_docs([doc("a", text="new"), doc("b")])
    await session.delete_docs(["b"])
    for push in (False, True, False):
        if push:
            await session.push_index()
            session = await SessionIndex.open(remote, "calls")
        old = [doc("a", text="old"), doc("b", text="old")]
        assert await session.add_docs(old, written_at=[past, past]) == (0, 0)
        assert session.remove(["a"], written_at=past) == 0
        assert await texts_of(session) == {"a": "new"}
    assert await session.add_docs([doc("c"), doc("b")], written_at=[past, past]) == (1, 0)
    assert (await session.push_index("merge")).doc_count == 2
    assert set(await texts_of(await SessionIndex.open(remote, "calls"))) == {"a", "c"}


async def test_a_document_added_again_goes_to_the_end_here_and_in_the_cloud(
    remote: Remote,
) -> None:
    """The order of a session and that of who resumes it are one."""
    session = await open_custom(remote)
    await session.add_docs([doc("a"), doc("b"), doc("c")])
    await session.push_index()
    await session.add_docs([doc("b", text="updated")])
    await session.delete_docs(["a"])
    await session.add_docs([doc("a", text="again")])
    assert session.unpushed == 2
    await session.push_index()
    assert list(await texts_of(session)) == ["b", "c", "a"]
    assert list(await texts_of(await SessionIndex.open(remote, "calls"))) == ["b", "c", "a"]


async def test_edits_made_during_a_push_wait_for_the_next(
    remote: Remote, cloud: GatedCloud
) -> None:
    """What is added, updated or deleted while a push is on its way is not in it, not lost, not counted."""
    other = await open_custom(remote)
    await other.add_docs([doc("theirs")])
    await other.push_index()
    session = await SessionIndex.open(remote, "calls")
    await session.add_docs([doc("a"), doc("b"), doc("c")])
    await other.add_docs([doc("theirs", text="newer")])
    await other.push_index()
    reached, go = cloud.gate()
    push = asyncio.create_task(session.push_index("merge"))
    await reached.wait()
    await session.add_docs([doc("d"), doc("a", text="newer")])
    await session.delete_docs(["b"])
    # A reader sees the version before, whole, until the commit is there.
    assert await texts_of(await SessionIndex.open(remote, "calls")) == {"theirs": "newer"}
    go.set()
    pushed = await push
    assert pushed.doc_count == 4
    assert session.unpushed == 3
    here = {"theirs": "newer", "a": "newer", "c": "text of c", "d": "text of d"}
    assert await texts_of(session) == here
    there = await texts_of(await SessionIndex.open(remote, "calls"))
    assert there.keys() == {"theirs", "a", "b", "c"}
    assert (await session.push_index("merge")).doc_count == 4
    assert session.unpushed == 0
    assert await texts_of(await SessionIndex.open(remote, "calls")) == here


async def test_pushes_of_one_session_come_one_after_another(remote: Remote) -> None:
    """Concurrent pushes and edits end with everything stored, once."""
    session = await open_custom(remote)

    async def work(n: int) -> None:
        await session.add_docs([doc(f"d{n}")])
        await session.push_index("merge")

    await asyncio.gather(*(work(n) for n in range(8)))
    assert session.unpushed == 0
    again = await SessionIndex.open(remote, "calls")
    assert set(await texts_of(again)) == {f"d{n}" for n in range(8)}
    head = await remote.cloud.read_head("default", "calls")
    assert head is not None
    assert head.doc_count == 8


async def test_while_the_cloud_is_away_edits_are_kept(tmp_path: Path) -> None:
    """A push that fails raises and keeps the edits; the session goes on, and the next push works."""
    root = tmp_path / "cloud"
    session = await open_custom(Remote(open_cloud(root), "default", None))
    await session.add_docs([doc("a")])
    away = tmp_path / "away"
    root.rename(away)
    root.write_text("no directory")
    with pytest.raises(CloudUnavailableError):
        await session.push_index()
    assert session.unpushed == 1
    await session.add_docs([doc("b")])
    assert len((await session.query("", QueryOptions((1.0, 0.0, 0.0)))).docs) == 2
    root.unlink()
    away.rename(root)
    assert (await session.push_index()).doc_count == 2
    again = await SessionIndex.open(Remote(open_cloud(root), "default", None), "calls")
    assert again.doc_count == 2


# --- what is stored is damaged ---------------------------------------------------------------------


def _flip(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


def _edit_commit(data: bytes, **changes: object) -> bytes:
    return json.dumps(json.loads(data) | changes).encode()


COMMITS: dict[str, tuple[Callable[[bytes], bytes], type[MossError]]] = {
    "cut short": (lambda data: data[:-9], CorruptDataError),
    "flipped": (lambda data: data.replace(b'"doc_count":', b'"doc_cound":'), CorruptDataError),
    "foreign": (lambda data: b'{"hello": "world"}', CorruptDataError),
    "no json": (lambda data: b"\x89PNG\r\n", CorruptDataError),
    "newer format": (lambda data: _edit_commit(data, format=3), FormatVersionError),
    "another's": (lambda data: _edit_commit(data, index="other"), CorruptDataError),
    "not its version": (lambda data: _edit_commit(data, version=9, changed=9), CorruptDataError),
}
SEGMENTS: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[:-1],
    "flipped": _flip,
    "empty": lambda data: b"",
    "foreign": lambda data: b"hello world",
}


@pytest.fixture
async def store(tmp_path: Path) -> Path:
    """A directory with an index of two pushes."""
    root = tmp_path / "cloud"
    session = await open_custom(Remote(open_cloud(root), "default", None))
    for n in range(2):
        await session.add_docs([doc(f"d{n}")])
        await session.push_index()
    return root


async def _refused(root: Path, kind: type[MossError]) -> None:
    """See that opening raises, and that a session which loads it stays what it was."""
    remote = Remote(open_cloud(root), "default", None)
    with pytest.raises(kind):
        await SessionIndex.open(remote, "calls")
    session = await open_custom(remote, "mine")
    await session.add_docs([doc("x", text="mine")])
    with pytest.raises(kind):
        await session.load_index("calls")
    assert await texts_of(session) == {"x": "mine"}
    assert session.unpushed == 1
    assert (await session.push_index()).doc_count == 1


@pytest.mark.parametrize("fault", COMMITS)
async def test_a_damaged_commit_is_refused(store: Path, fault: str) -> None:
    """A commit that is cut short, changed, foreign or from a newer version is a clear error."""
    damage, kind = COMMITS[fault]
    newest = max((store / "default/calls/log").iterdir())
    newest.write_bytes(damage(newest.read_bytes()))
    await _refused(store, kind)


@pytest.mark.parametrize("fault", [*SEGMENTS, "missing"])
async def test_a_damaged_segment_is_refused(store: Path, fault: str) -> None:
    """A segment whose bytes are not those that were pushed is a clear error."""
    segment = min((store / "default/calls/segments").iterdir())
    if fault == "missing":
        segment.unlink()
    else:
        segment.write_bytes(SEGMENTS[fault](segment.read_bytes()))
    await _refused(store, CorruptDataError)


@pytest.mark.parametrize("fault", ["newer format", "other model", "no tensors"])
async def test_a_segment_that_is_sound_but_not_ours_is_refused(store: Path, fault: str) -> None:
    """Bytes that keep the hash that a commit gives them are still checked for what they say."""
    newest = max((store / "default/calls/log").iterdir())
    commit = decode_commit(newest.read_bytes())
    path = store / "default/calls/segments" / commit.segments[0].sha256
    data = path.read_bytes()
    if fault == "newer format":
        data = data.replace(b'\\"format\\":1', b'\\"format\\":2')
    elif fault == "no tensors":
        data = (2).to_bytes(8, "little") + b"{}"
    else:
        segment = decode_segment(data)
        object.__setattr__(segment, "model_id", "moss-minilm")
        data = encode_segment(segment)
    assert data != path.read_bytes()
    ref = SegmentRef.of(data, rows=1, tombstones=0)
    (path.parent / ref.sha256).write_bytes(data)
    fields = json.loads(newest.read_bytes())
    fields["segments"][0] = {
        "sha256": ref.sha256,
        "size_bytes": ref.size_bytes,
        "rows": 1,
        "tombstones": 0,
    }
    newest.write_text(json.dumps(fields))
    await _refused(store, FormatVersionError if fault == "newer format" else CorruptDataError)


async def test_a_damaged_copy_in_the_cache_is_fetched_again(store: Path, tmp_path: Path) -> None:
    """The cache is never trusted: what does not match its hash is replaced, unnoticed by the caller."""
    for _ in range(2):
        remote = Remote(open_cloud(store), "default", SegmentCache(tmp_path / "cache"))
        session = await SessionIndex.open(remote, "calls")
        assert set(await texts_of(session)) == {"d0", "d1"}
        for path in (tmp_path / "cache/segments").iterdir():
            # As a fault of the disk would: the file that is mapped is another one.
            data = _flip(path.read_bytes())
            path.unlink()
            path.write_bytes(data)


# --- loading other indexes -------------------------------------------------------------------------


async def _stored(remote: Remote, name: str, *docs: DocumentInfo) -> SessionIndex:
    session = await open_custom(remote, name)
    await session.add_docs(docs)
    await session.push_index()
    return session


async def test_load_index_brings_documents_in_beside_what_is_there(remote: Remote) -> None:
    """Documents of a stored index join the session, are found, filtered and pushed with it."""
    await _stored(remote, "faq", doc("f1", 0.0, 1.0, 0.0, topic="wifi"), doc("both", text="faq"))
    session = await open_custom(remote)
    await session.add_docs([doc("t1", topic="call"), doc("both", text="call")])
    assert await session.load_index("faq") == 2
    assert await texts_of(session) == {"t1": "text of t1", "both": "faq", "f1": "text of f1"}
    only = QueryOptions((0.0, 1.0, 0.0), filter={"field": "topic", "condition": {"$eq": "wifi"}})
    found = await session.query("", only)
    assert [(hit.id, hit.index_name) for hit in found.docs] == [("f1", "calls")]
    np.testing.assert_array_equal(session.vectors_of(["f1"]), [[0.0, 1.0, 0.0]])
    assert (await session.push_index()).doc_count == 3
    assert (await SessionIndex.open(remote, "calls")).doc_count == 3


async def test_what_was_deleted_here_is_back_when_it_is_loaded(remote: Remote) -> None:
    """Loading writes: a deletion that this index has stored earlier does not undo it in the cloud."""
    await _stored(remote, "faq", doc("a"), doc("b"))
    session = await open_custom(remote)
    await session.load_index("faq")
    await session.delete_docs(["a"])
    await session.add_docs([doc("b", text="changed")])
    await session.push_index()
    await session.load_index("faq")
    assert await texts_of(session) == {"b": "text of b", "a": "text of a"}
    assert (await session.push_index("merge")).doc_count == 2
    assert await texts_of(await SessionIndex.open(remote, "calls")) == await texts_of(session)


async def test_what_cannot_be_loaded(remote: Remote, embedder: WordEmbedder) -> None:
    """No such index, another model, another size, a bad interval: named errors, an unchanged session."""
    await _stored(remote, "faq", doc("a"))
    session = await open_custom(remote)
    await session.add_docs([doc("x", 1.0, 0.0)])
    with pytest.raises(IndexNotFoundError, match="'nothing'"):
        await session.load_index("nothing")
    with pytest.raises(ModelMismatchError, match="3 numbers per vector, not 2"):
        await session.load_index("faq")
    for interval in (0, -1):
        with pytest.raises(InvalidArgumentError, match="polling_interval_in_seconds"):
            await session.load_index("faq", True, interval)
    assert set(await texts_of(session)) == {"x"}
    words = await SessionIndex.open(remote, "words", "moss-minilm")
    with pytest.raises(ModelMismatchError, match="made with model 'custom'"):
        await words.load_index("faq")
    # Nobody chose a model for this one, and nothing is in it yet.
    free = await SessionIndex.open(remote, "free")
    assert await free.load_index("faq") == 1
    assert free.model_id == "custom"
    await free.add_docs([doc("y")])
    assert (await free.push_index()).doc_count == 2


async def test_auto_refresh_pulls_newer_versions_on_reads(remote: Remote) -> None:
    """When the interval is over the next read starts a refresh: new, changed and deleted documents come."""
    faq = await _stored(remote, "faq", doc("a"), doc("b"))
    clock = Clock()
    session = await open_custom(remote, now=clock)
    await session.load_index("faq", auto_refresh=True, polling_interval_in_seconds=60)
    await session.push_index()
    await faq.add_docs([doc("a", text="newer"), doc("c")])
    await faq.delete_docs(["b"])
    await faq.push_index()
    clock.now_s += 59
    await session.get_docs()
    await settle(session)
    assert set(await texts_of(session)) == {"a", "b"}
    clock.now_s += 2
    await session.query("x", QueryOptions(alpha=0.0))
    await settle(session)
    assert await texts_of(session) == {"a": "newer", "c": "text of c"}
    plain = await open_custom(remote, "plain", now=clock)
    await plain.load_index("faq")
    await faq.add_docs([doc("d")])
    await faq.push_index()
    clock.now_s += 10_000
    await plain.get_docs()
    await settle(plain)
    assert plain.doc_count == 2


async def test_auto_refresh_pauses_while_there_are_unpushed_edits(remote: Remote) -> None:
    """An edit of one's own pauses refreshing; pushing it resumes it."""
    faq = await _stored(remote, "faq", doc("a"))
    clock = Clock()
    session = await open_custom(remote, now=clock)
    await session.load_index("faq", auto_refresh=True, polling_interval_in_seconds=60)
    for edit in (session.add_docs([doc("mine")]), session.delete_docs(["mine"])):
        await edit
        await faq.add_docs([doc(f"new{session.unpushed}{clock.now_s}")])
        await faq.push_index()
        before = set(await texts_of(session))
        clock.now_s += 100
        await session.get_docs()
        await settle(session)
        assert set(await texts_of(session)) == before
        await session.push_index()
        await session.get_docs()
        await settle(session)
        assert set(await texts_of(session)) > before
    faq_docs = set(await texts_of(faq))
    assert set(await texts_of(session)) == faq_docs


async def test_a_session_can_watch_its_own_index(remote: Remote) -> None:
    """A session that loads its own name with auto_refresh follows what others push under it."""
    writer = await _stored(remote, "calls", doc("a"))
    clock = Clock()
    reader = await SessionIndex.open(remote, "calls", now=clock)
    reader.watch(30)
    await writer.add_docs([doc("b")])
    await writer.delete_docs(["a"])
    await writer.push_index()
    clock.now_s += 31
    await reader.get_docs()
    await settle(reader)
    assert set(await texts_of(reader)) == {"b"}
    assert reader.version == writer.version
    assert reader.unpushed == 0
    assert await reader.refresh() is False
    await writer.add_docs([doc("c")])
    await writer.push_index()
    assert await reader.refresh() is True
    assert await reader.load_index("calls") == 2
    assert set(await texts_of(reader)) == {"b", "c"}


async def test_a_refresh_that_fails_leaves_the_copy_at_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """While the cloud is away reads go on; the log has the index and the kind; later it catches up."""
    root = tmp_path / "cloud"
    remote = Remote(open_cloud(root), "default", None)
    faq = await _stored(remote, "faq", doc("a"))
    clock = Clock()
    session = await open_custom(Remote(open_cloud(root), "default", None), now=clock)
    await session.load_index("faq", auto_refresh=True, polling_interval_in_seconds=60)
    await faq.add_docs([doc("b")])
    await faq.push_index()
    root.rename(tmp_path / "away")
    root.write_text("no directory")
    clock.now_s += 61
    with caplog.at_level(logging.WARNING):
        await session.get_docs()
        await settle(session)
    assert set(await texts_of(session)) == {"a"}
    assert "refresh of index 'faq' failed: cloud_unavailable" in caplog.text
    root.unlink()
    (tmp_path / "away").rename(root)
    clock.now_s += 61
    await session.get_docs()
    await settle(session)
    assert set(await texts_of(session)) == {"a", "b"}


async def test_the_graph_grows_in_the_background(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A large index gets a graph while it is searched; who resumes it finds the graph in the cache."""
    monkeypatch.setattr("moss_voice.index.EXACT_ROWS", 100)
    rows = np.random.default_rng(5).normal(size=(600, 16))
    session = await open_custom(remote)
    await session.add_docs([DocumentInfo(f"d{n}", "t", None, row) for n, row in enumerate(rows)])
    await session.push_index()
    built: list[int] = []
    cache_write = SegmentCache.write_built

    def write_built(self: SegmentCache, key: str, write: Callable[[Path], None]) -> None:
        cache_write(self, key, write)
        built.append(1)

    monkeypatch.setattr(SegmentCache, "write_built", write_built)
    for expected in (1, 1):
        again = await SessionIndex.open(remote, "calls")
        job = again._graph_job
        assert job is not None
        await asyncio.wrap_future(job)
        index = again._index
        assert index is not None
        assert not index.wants_graph
        assert len(built) == expected
        found = await again.query("", QueryOptions(tuple(rows[37]), 1))
        assert found.docs[0].id == "d37"
        await again.close()
    await session.close()
    assert threading.active_count() < 50
