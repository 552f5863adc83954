"""One index, alive: the async face that embeds, searches, resumes and pushes.

Work that computes runs on a small pool of our own threads, never on the event loop and never on
asyncio's shared pool; the cloud is touched by `open`, `push_index`, `load_index` and refreshes alone.
A call that fails leaves the session as it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from moss_voice import ranking
from moss_voice.cloud.cloud import Encoded
from moss_voice.cloud.log import Commit, Segment, SegmentRef
from moss_voice.cloud.outbox import Entry
from moss_voice.embedding import Embedder
from moss_voice.errors import (
    CloudUnavailableError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    MossError,
    SessionClosedError,
)
from moss_voice.filters import Filter, parse_filter
from moss_voice.following import Followed, Following
from moss_voice.index import Batch, Block, Index, encode_document
from moss_voice.models import CUSTOM_MODEL as CUSTOM
from moss_voice.models import DEFAULT_MODEL, MODEL_IDS, load_embedder
from moss_voice.searching import (
    PLAIN,
    Manner,
    Match,
    Places,
    Prepared,
    StoredDocument,
    decode_document,
)
from moss_voice.text import ANALYZER, term_ids
from moss_voice.types import (
    DocumentInfo,
    GetDocumentsOptions,
    MergedChanges,
    MutationOptions,
    OnConflict,
    PushIndexResult,
    QueryOptions,
    QueryResultDocumentInfo,
    SearchResult,
)
from moss_voice.versions import (
    Remote,
    Version,
    built_keys,
    fetch_version,
    find_newest,
    keep_newest,
    read_graph,
    read_segment,
)
from moss_voice.withholding import Withholding
from moss_voice.workers import in_worker, pool

__all__ = [
    "IfUnreachable",
    "Progress",
    "SessionIndex",
    "normalised",
]

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
T = TypeVar("T")
Progress = Callable[[int, int], None]
# Where the cloud does not take a push: keep it in the outbox, or raise.
IfUnreachable = Literal["queue", "raise"]

# How many texts are embedded per hop to the pool: others get a turn and progress is told in between.
EMBED_CHUNK = 256
# Background work (graphs) gives way to everything that answers a caller.
_BACKGROUND_NICENESS = 10


class _Delta(NamedTuple):
    """What a push carries.

    Attributes:
        changes: The number of the last change in it.
        edits: How many edits of the session's own are in it.
        doc_count: Documents in the session then.
        segment: None where nothing changed.
    """

    changes: int
    edits: int
    doc_count: int
    segment: Segment | None


class SessionIndex:
    """A local index that is read and written in real time, and resumed by name.

    Open one with `MossClient.session`. Every operation but `push_index` and `load_index` works in
    memory. Methods may be called concurrently; writes are applied one after another.
    """

    def __init__(
        self,
        name: str,
        *,
        model_id: str,
        embedder: Embedder | None,
        remote: Remote,
        pinned: bool = True,
        ttl_s: int | None = None,
        redact: Callable[[str], str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty, from ready parts.

        Args:
            name: The index's name, and the target of `push_index`.
            model_id: The embedding model's id.
            embedder: The model; None for `custom`.
            remote: Where to push and load.
            pinned: False where the model was not chosen, so that `load_index` may change it.
            ttl_s: The index's retention period, set by each push; None leaves it as it is.
            redact: Returns what may be kept of a text; applied to what is added and asked.
            now: Seconds on a clock that never goes back; when to look for newer versions.
        """
        self._name = name
        self._model_id = model_id
        self._embedder = embedder
        self._remote = remote
        self._pinned = pinned
        self._ttl_s = ttl_s
        self._withholding = Withholding(redact)
        self._now = now
        # Where a push waits that the cloud did not take.
        self._waiting: Path | None = None
        self._index = None if embedder is None else Index(embedder.dim)
        self._commit: Commit | None = None
        self._clock = 0
        # Held while rows or what is known of them change; never across an await.
        self._write = threading.Lock()
        self._changes = 0
        self._edits = 0
        self._unpushed: dict[str, int] = {}
        # By id: the number of the change, and when it was. Stays where a document is added again, since
        # then it belongs at the end.
        self._deleted: dict[str, tuple[int, int]] = {}
        # When what is stored as deleted was deleted.
        self._tombstones: dict[str, int] = {}
        self._following = Following(self)
        self._pushing = asyncio.Lock()
        self._graph_job: Future[None] | None = None
        self._closed = threading.Event()

    @classmethod
    async def open(
        cls,
        remote: Remote,
        name: str,
        model_id: str | None = None,
        *,
        must_exist: bool = False,
        shared: bool = False,
        version: int | None = None,
        ttl_s: int | None = None,
        redact: Callable[[str], str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Resume an index by name without embedding anything anew, or start it empty.

        While the cloud is away, the version that was kept of it here is opened, and is `stale`.

        Args:
            remote: Where it is.
            name: The index's name.
            model_id: The embedding model's id; that of the stored index where None.
            must_exist: True refuses to start it empty.
            shared: True for one that is only read: see `share_version`.
            version: An older version to open in place of the newest.
            ttl_s: See `SessionIndex`.
            redact: See `SessionIndex`.
            now: See `SessionIndex`.

        Raises:
            IndexNotFoundError: If `must_exist` and the cloud has none of that name, or not that version.
            EncryptionKeyError: If it is encrypted and its key is not here.
            ModelMismatchError: A `ValueError`, if the stored index belongs to another model.
            ModelNotFoundError: If there is no such model.
            CorruptDataError: If what is stored is damaged.
            CloudUnavailableError: If the cloud does not answer and nothing is kept of the index here.
        """
        if version is None:
            head, stale = await find_newest(remote, name)
        else:
            head, stale = await _older(remote, name, version), False
        if head is None:
            if must_exist:
                raise IndexNotFoundError(
                    f"the cloud holds no index {name!r} in project {remote.project!r}"
                )
            return await cls.start(remote, name, model_id, ttl_s=ttl_s, redact=redact, now=now)
        chosen = model_id if model_id is not None else head.model_id
        if chosen in MODEL_IDS:
            # Before it is loaded, which may mean a download.
            _check_model(name, head, chosen)
        embedder, loaded = await asyncio.gather(
            in_worker(_embedder_of, chosen), fetch_version(remote, head, shared=shared)
        )
        known_as = embedder.model_id if embedder else CUSTOM
        _check_model(name, head, known_as)
        self = cls(
            name,
            model_id=known_as,
            embedder=embedder,
            remote=remote,
            ttl_s=ttl_s,
            redact=redact,
            now=now,
        )
        self._index, self._commit, self._clock = loaded.index, head, loaded.clock
        self._tombstones = loaded.tombstones
        if stale:
            self._following.went_stale(name, self.version)
        elif version is None:
            await in_worker(keep_newest, remote, head)
        self._grow_graph(loaded.prefixes)
        return self

    @classmethod
    async def start(
        cls,
        remote: Remote,
        name: str,
        model_id: str | None = None,
        *,
        ttl_s: int | None = None,
        redact: Callable[[str], str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Start empty, whatever the cloud holds of that name: it is not asked.

        Raises:
            ModelNotFoundError: If there is no such model.
        """
        embedder = await in_worker(_embedder_of, model_id or DEFAULT_MODEL)
        return cls(
            name,
            model_id=embedder.model_id if embedder else CUSTOM,
            embedder=embedder,
            remote=remote,
            pinned=model_id is not None,
            ttl_s=ttl_s,
            redact=redact,
            now=now,
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed.is_set() else f"{self.unpushed} unpushed"
        state += ", stale" if self.stale else ""
        return f"<SessionIndex {self._name!r} {self.doc_count} docs, {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def name(self) -> str:
        """The index's name."""
        return self._name

    @property
    def doc_count(self) -> int:
        """Documents in the session."""
        return len(self._index) if self._index is not None else 0

    @property
    def model_id(self) -> str:
        """The embedding model's id."""
        return self._model_id

    @property
    def embedder(self) -> Embedder | None:
        """The embedding model; None for `custom`."""
        return self._embedder

    @property
    def dim(self) -> int | None:
        """Numbers per vector; None while the first document of the model `custom` is awaited."""
        return self._index.dim if self._index is not None else None

    @property
    def version(self) -> int:
        """The version in the cloud that this copy comes from; 0 before the first push."""
        return self._commit.version if self._commit is not None else 0

    @property
    def stale(self) -> bool:
        """True while this copy was made without the cloud, and has not been compared with it since."""
        return self._following.stale

    @property
    def unpushed(self) -> int:
        """Documents added, changed or deleted since the last push."""
        return len(self._unpushed.keys() | self._deleted.keys())

    # --- reading and writing -----------------------------------------------------------------------

    async def add_docs(
        self,
        docs: Sequence[DocumentInfo],
        options: MutationOptions | None = None,
        *,
        on_progress: Progress | None = None,
        written_at: Sequence[int] | None = None,
    ) -> tuple[int, int]:
        """Add documents, or update those whose id is known; all of them, or none where it fails.

        Args:
            docs: See `DocumentInfo`.
            options: See `MutationOptions`.
            on_progress: Told how many of how many are embedded.
            written_at: Milliseconds, one per document: when it was written, for who brings in what was
                written elsewhere; now where None.

        Returns:
            How many were added and how many updated.

        Raises:
            InvalidArgumentError: If a document cannot be stored, or its embedding is missing (model
                `custom`), of the wrong size, not finite or zero; names the documents.
            SessionClosedError: After `close`.
        """
        self._check_open()
        for doc in docs:
            if not isinstance(doc, DocumentInfo):
                raise InvalidArgumentError(f"docs: expected DocumentInfo, got {type(doc).__name__}")
        if self._withholding:
            docs = [self._redacted(doc) for doc in docs]
        if written_at is not None and len(written_at) != len(docs):
            raise InvalidArgumentError("written_at: expected one time per document")
        upsert = (options or MutationOptions()).upsert
        if not upsert and self._index is not None:
            index = self._index
            kept = [position for position, doc in enumerate(docs) if doc.id not in index]
            docs = [docs[position] for position in kept]
            written_at = written_at and [written_at[position] for position in kept]
        if not docs:
            return 0, 0
        vectors = await self._vectors_for(docs, on_progress)
        put = partial(self.put, docs, vectors, written_at=written_at, upsert=upsert)
        return await in_worker(put)

    def _redacted(self, doc: DocumentInfo) -> DocumentInfo:
        """Return what may be kept of a document; its embedding only where it says no more than that."""
        clean = self._withholding.clean
        text = clean(doc.text)
        metadata = doc.metadata and {
            name: clean(value) if isinstance(value, str) else value
            for name, value in doc.metadata.items()
        }
        ours = self._embedder is not None and text != doc.text
        return DocumentInfo(doc.id, text, metadata, None if ours else doc.embedding, doc.payload)

    def put(
        self,
        docs: Sequence[DocumentInfo],
        vectors: F32,
        *,
        written_at: Sequence[int] | None = None,
        upsert: bool = True,
    ) -> tuple[int, int]:
        """Add documents with their unit rows; synchronous, for code that is on a worker already.

        Args:
            docs: See `DocumentInfo`.
            vectors: (n, dim) float32 unit rows.
            written_at: Milliseconds, one per document: see `stamp`; now where None. What is older than
                what is known of a document is left out, as it would be once it is pushed.
            upsert: See `MutationOptions`.

        Returns:
            How many were added and how many updated.
        """
        lines = [encode_document(doc.id, doc.text, doc.metadata, doc.payload) for doc in docs]
        terms = [term_ids(doc.text) for doc in docs]
        ids = [doc.id for doc in docs]
        with self._write:
            self._check_open()
            if self._index is None:
                self._index = Index(int(vectors.shape[1]))
            at = np.array(written_at or [self._stamp()] * len(ids), np.int64)
            batch = Batch(ids, lines, vectors, terms, at)
            if written_at is not None or not upsert:
                batch = self._admitted(batch, upsert=upsert)
            if not batch.ids:
                return 0, 0
            self._clock = max(self._clock, int(batch.written_at.max()))
            counts = self._index.upsert(batch)
            self._edits += 1
            self._mark(batch.ids)
        self._grow_graph()
        return counts

    def _admitted(self, batch: Batch, *, upsert: bool) -> Batch:
        """Leave out what an insert may not touch, and what is older than what is known."""
        assert self._index is not None  # noqa: S101 - the caller has made it
        newest = self._index.written_at(batch.ids)
        held = set(newest)
        for id_ in batch.ids:
            _, deleted_at = self._deleted.get(id_, (0, -1))
            times = newest.get(id_, -1), deleted_at, self._tombstones.get(id_, -1)
            newest[id_] = max(times)
        kept: list[int] = []
        for position, (id_, at) in enumerate(
            zip(batch.ids, batch.written_at.tolist(), strict=True)
        ):
            if at > newest[id_] and (upsert or id_ not in held):
                kept.append(position)
                newest[id_] = at - 1
                held.add(id_)
        return Batch(
            [batch.ids[position] for position in kept],
            [batch.documents[position] for position in kept],
            batch.vectors[kept],
            [batch.terms[position] for position in kept],
            batch.written_at[kept],
        )

    def stamp(self) -> int:
        """Return a time for a change, in milliseconds; later than every change this session has seen."""
        with self._write:
            return self._stamp()

    def _mark(self, ids: Collection[str]) -> None:
        self._changes += 1
        for id_ in ids:
            self._unpushed[id_] = self._changes

    def _stamp(self) -> int:
        """Return a time for a change: never before any change that this session has seen.

        A hybrid clock (Kulkarni et al., 2014, reduced to one number): what another machine with a fast
        clock wrote must not beat what is written here after reading it.
        """
        self._clock = max(time.time_ns() // 1_000_000, self._clock + 1)
        return self._clock

    async def delete_docs(self, doc_ids: Sequence[str]) -> int:
        """Delete documents by id; unknown ids are passed over. Returns how many were deleted."""
        self._check_open()
        return await in_worker(self.remove, _ids(doc_ids))

    def remove(self, doc_ids: Sequence[str], *, written_at: int | None = None) -> int:
        """Delete documents; synchronous, for code that is on a worker already.

        Args:
            doc_ids: Unknown ids are passed over.
            written_at: Milliseconds: when they were deleted, now where None. Documents written later
                stay.

        Returns:
            How many were deleted.
        """
        with self._write:
            self._check_open()
            if self._index is None:
                return 0
            if written_at is not None:
                known = self._index.written_at(doc_ids)
                doc_ids = [id_ for id_, at in known.items() if at <= written_at]
            gone = self._index.delete(doc_ids)
            if gone:
                self._edits += 1
                self._mark_deleted(gone, written_at)
        return len(gone)

    def _mark_deleted(self, ids: Collection[str], written_at: int | None = None) -> None:
        self._changes += 1
        at = self._stamp() if written_at is None else written_at
        for id_ in ids:
            self._unpushed.pop(id_, None)
            self._deleted[id_] = (self._changes, at)

    async def get_docs(self, options: GetDocumentsOptions | None = None) -> list[DocumentInfo]:
        """Return documents by id in the order asked (unknown ids are passed over), or all in order.

        `embedding` is given back with the model `custom` alone.
        """
        self._check_open()
        self._following.look()
        wanted = options.doc_ids if options is not None else None
        return await in_worker(self._get, None if wanted is None else _ids(wanted))

    def _get(self, ids: Sequence[str] | None) -> list[DocumentInfo]:
        if self._index is None:
            return []
        index = self._index
        found = index.get(ids)
        vectors: Sequence[tuple[float, ...] | None] = [None] * len(found)
        if self._embedder is None:
            vectors = [tuple(row) for row in index.vectors_of([d.id for d in found]).tolist()]
        return [
            DocumentInfo(doc.id, doc.text, doc.metadata, vector, doc.payload)
            for doc, vector in zip(found, vectors, strict=True)
        ]

    async def query(self, query: str, options: QueryOptions | None = None) -> SearchResult:
        """Return the documents that fit a text, an embedding or both, best first.

        Args:
            query: A blank text without an embedding finds nothing.
            options: See `QueryOptions`.

        Raises:
            InvalidArgumentError: If the embedding is missing (model `custom`), of the wrong size, not
                finite or zero.
            FilterError: If the filter is malformed.
            SessionClosedError: After `close`.
        """
        started = time.perf_counter()
        matches = await self.search(query, options)
        docs = [self.result_of(match) for match in matches]
        took_ms = (time.perf_counter() - started) * 1000.0
        return SearchResult(docs, query, self._name, took_ms)

    async def search(self, query: str, options: QueryOptions | None = None) -> list[Match]:
        """Do what `query` does, and return what the hits were ranked by too."""
        self._check_open()
        if not isinstance(query, str):
            raise InvalidArgumentError(f"query: expected a str, got {type(query).__name__}")
        self._following.look()
        query = self._withholding.clean(query)
        options = options or QueryOptions()
        condition = parse_filter(options.filter)
        if not query.strip() and options.embedding is None:
            return []
        return await in_worker(self._query, query, options, condition)

    def result_of(self, match: Match) -> QueryResultDocumentInfo:
        """Return a match as callers get it."""
        doc = match.document
        return QueryResultDocumentInfo(
            doc.id, doc.text, doc.metadata, doc.payload, match.score, self._name, match.parts
        )

    def _query(self, query: str, options: QueryOptions, condition: Filter | None) -> list[Match]:
        alpha = ranking.DEFAULT_ALPHA if options.alpha is None else options.alpha
        dim = self._index.dim if self._index is not None else None
        vector = None
        if options.embedding is not None:
            vector = _unit(options.embedding, dim)
        elif alpha > 0.0:
            if self._embedder is None:
                size = f" with {dim} numbers" if dim is not None else ""
                raise InvalidArgumentError(
                    "the model 'custom' cannot embed a query: pass QueryOptions.embedding"
                    f"{size}, or alpha=0 for keywords alone"
                )
            vector = self._embedder.embed_query(query)
        if self._index is None:
            return []
        return self._index.search(
            vector=vector if alpha > 0.0 else None,
            terms=term_ids(query),
            top_k=options.top_k or ranking.DEFAULT_TOP_K,
            alpha=alpha,
            condition=condition,
            min_score=options.min_score,
        )

    def prepare(
        self,
        terms: Mapping[int, float],
        *,
        top_k: int,
        exclude: Collection[str] = (),
        boost: Mapping[str, float] | None = None,
        places: Places | None = None,
        manner: Manner = PLAIN,
    ) -> Prepared | None:
        """Begin a search by what needs no vector; None without documents.

        Synchronous, for code that is on a worker already; see `Index.prepare` and `searching.rank`.
        """
        if self._index is None:
            return None
        return self._index.prepare(
            terms, top_k=top_k, exclude=exclude, boost=boost, places=places, manner=manner
        )

    def best_by_words(self, terms: Mapping[int, float]) -> float:
        """Return the best BM25 score that any document has for some words; 0 where none has any."""
        if self._index is None:
            return 0.0
        return float(self._index.words(terms).scores.max(initial=0.0))

    @property
    def revision(self) -> int:
        """A number that no other state of this or another index has; -1 without documents."""
        return self._index.revision if self._index is not None else -1

    def sample(self, most: int) -> tuple[list[StoredDocument], F32]:
        """Return some documents with their vectors; see `Index.sample`."""
        if self._index is None:
            return [], np.empty((0, 0), np.float32)
        return self._index.sample(most)

    def places_of(self, fields: Sequence[str]) -> Places:
        """Return where the documents of each value of some metadata fields lie; see `Index.places_of`."""
        return self._index.places_of(fields) if self._index is not None else Places({}, None)

    def documents(self) -> list[StoredDocument]:
        """Return all documents in order; synchronous, for code that is on a worker already."""
        return self._index.get() if self._index is not None else []

    def vectors_of(self, ids: Sequence[str]) -> F32:
        """Return the stored unit rows of known ids; synchronous, for code that is on a worker already."""
        if self._index is None:
            return np.empty((0, 0), np.float32)
        return self._index.vectors_of(ids)

    async def _vectors_for(self, docs: Sequence[DocumentInfo], on_progress: Progress | None) -> F32:
        if self._embedder is None:
            missing = [doc.id for doc in docs if doc.embedding is None]
            if missing:
                raise InvalidArgumentError(
                    "the model 'custom' needs an embedding with every document; missing in"
                    f" {_named(missing)}"
                )
        dim = self._index.dim if self._index is not None else None
        given = [doc for doc in docs if doc.embedding is not None]
        brought = dict(zip((id(doc) for doc in given), _unit_rows(given, dim), strict=True))
        to_embed = [position for position, doc in enumerate(docs) if id(doc) not in brought]
        if dim is None:
            dim = next(iter(brought.values())).size
        vectors = np.empty((len(docs), dim), np.float32)
        for position, doc in enumerate(docs):
            if id(doc) in brought:
                vectors[position] = brought[id(doc)]
        for start in range(0, len(to_embed), EMBED_CHUNK):
            if on_progress is not None:
                on_progress(len(brought) + start, len(docs))
            self._check_open()
            assert self._embedder is not None  # noqa: S101 - 'custom' has nothing to embed
            chunk = to_embed[start : start + EMBED_CHUNK]
            vectors[chunk] = await in_worker(self._embedder.embed, [docs[i].text for i in chunk])
        if on_progress is not None:
            on_progress(len(docs), len(docs))
        return vectors

    # --- the cloud ---------------------------------------------------------------------------------

    async def push_index(
        self,
        on_conflict: OnConflict = "replace",
        *,
        if_unreachable: IfUnreachable = "queue",
    ) -> PushIndexResult:
        """Store the session in the cloud under its name; uploads only what changed.

        Readers see the version before until the push is complete, and all of the new one after.

        Args:
            on_conflict: Where somebody else pushed since this copy was read: `replace` makes the cloud
                hold what this session holds, `merge` keeps both (per document the newer write wins,
                deletions included) and brings theirs into this session, `error` raises.
            if_unreachable: Where the cloud does not answer: `queue` keeps the push in the outbox, from
                which `moss-voice recover` or the next client sends it, merging, and returns with the
                status `pending`; the session goes on as before, and a later push of its own takes the
                place of that one. `raise` raises, as `error` always does.

        Raises:
            ConflictError: Under `error`; has both versions. Under `replace`, where documents of this copy
                were forgotten meanwhile.
            CloudUnavailableError: If the cloud does not answer and the push cannot be kept; the session
                keeps its edits unpushed.
            EncryptionKeyError: If the index is encrypted and its key is not here.
            SessionClosedError: After `close`.
        """
        if on_conflict not in ("replace", "merge", "error"):
            raise InvalidArgumentError(
                f"on_conflict: expected 'replace', 'merge' or 'error', got {on_conflict!r}"
            )
        if if_unreachable not in ("queue", "raise"):
            raise InvalidArgumentError(
                f"if_unreachable: expected 'queue' or 'raise', got {if_unreachable!r}"
            )
        async with self._pushing:
            self._check_open()
            if self._index is None:
                raise InvalidArgumentError(
                    f"index {self._name!r} of model 'custom' has no documents yet: nothing to push"
                )
            delta = await in_worker(self._delta)
            encoded = await in_worker(self._encode, delta.segment)
            try:
                return await self._push(delta, encoded, on_conflict)
            except CloudUnavailableError:
                self._remote.outage.noticed()
                outbox = self._remote.outbox
                if outbox is None or if_unreachable == "raise" or on_conflict == "error":
                    raise
            return await in_worker(self._keep_push, delta, encoded)

    def _encode(self, segment: Segment | None) -> Encoded | None:
        if segment is None:
            return None
        return self._remote.cloud.encode(self._remote.project, self._name, segment)

    async def _push(
        self, delta: _Delta, encoded: Encoded | None, on_conflict: OnConflict
    ) -> PushIndexResult:
        assert self._index is not None  # noqa: S101 - checked by the caller
        base, cache = self._commit, self._remote.cache
        pushed = await self._remote.cloud.push(
            self._remote.project,
            self._name,
            base_version=base.version if base is not None else 0,
            base_segments=base.segments if base is not None else (),
            delta=encoded,
            doc_count=delta.doc_count,
            model_id=self._model_id,
            dim=self._index.dim,
            analyzer=ANALYZER,
            on_conflict=on_conflict,
            ttl_s=self._ttl_s,
            whole=self._whole,
            load=self._read_segment,
        )
        if encoded is not None and cache is not None:
            await in_worker(cache.put, encoded.ref, encoded.data)
        merged = on_conflict == "merge" and pushed.merged_from is not None
        loaded = await fetch_version(self._remote, pushed.commit) if merged else None
        changes = await in_worker(self._pushed, pushed.commit, delta, loaded)
        self._remote.outage.over()
        self._following.healed(self._name)
        self._following.resume()
        await in_worker(self._settle_push, pushed.commit)
        await self._report(pushed.commit)
        await self._tidy(pushed.commit)
        return PushIndexResult(
            job_id=pushed.commit.job_id,
            index_name=self._name,
            doc_count=pushed.commit.doc_count,
            status="completed",
            version=pushed.commit.version,
            uploaded_bytes=pushed.uploaded_bytes,
            merged_from=pushed.merged_from,
            replaced=pushed.commit.replaced,
            merged=changes,
        )

    def _settle_push(self, commit: Commit) -> None:
        """Remember what was pushed, and forget what waited for it."""
        keep_newest(self._remote, commit)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._remote.outbox is not None:
            self._remote.outbox.drop(waiting)

    def _keep_push(self, delta: _Delta, encoded: Encoded | None) -> PushIndexResult:
        """Keep a push that the cloud did not take, in the place of an earlier one of this session."""
        outbox = self._remote.outbox
        assert outbox is not None and self._index is not None  # noqa: S101, PT018 - the caller looked
        job_id = uuid.uuid4().hex
        entry = Entry(
            project_id=self._remote.project,
            cloud=self._remote.where,
            index_name=self._name,
            model_id=self._model_id,
            dim=self._index.dim,
            analyzer=ANALYZER,
            job_id=job_id,
            created_at_ms=time.time_ns() // 10**6,
            base_version=self.version,
            segment=encoded.ref if encoded is not None else None,
            ttl_s=self._ttl_s,
        )
        if self._waiting is None:
            self._waiting = outbox.place_for(self._remote.project, self._name)
        outbox.keep(self._waiting, entry, encoded.data if encoded is not None else b"")
        logger.warning(
            "index %r: the cloud is away; %d changes wait in the outbox", self._name, self.unpushed
        )
        return PushIndexResult(
            job_id=job_id,
            index_name=self._name,
            doc_count=delta.doc_count,
            status="pending",
            version=self.version,
        )

    async def _tidy(self, commit: Commit) -> None:
        """Join the cloud's small segments and remove what nobody needs, now and then.

        The base of this session stays valid: a compaction is no change of the documents.
        """
        if not self._remote.cloud.needs_compaction(commit):
            return
        cloud, project = self._remote.cloud, self._remote.project
        try:
            await cloud.compact(project, self._name, load=self._read_segment)
            await cloud.collect(project, self._name)
        except MossError as error:
            # The push itself stands, and the next one tries again.
            logger.warning("index %r was not compacted: %s", self._name, error.code)
            return
        plain = [ref.sha256 for ref in commit.segments if ref.key_id is None]
        if cloud.keyring is not None and plain and self._remote.cache is not None:
            # Sealed there now: what anybody can read is not to stay here either.
            await in_worker(self._remote.cache.drop, plain, built_keys(commit))

    async def _report(self, commit: Commit) -> None:
        """Store the job of a push, so that any process can ask for it."""
        try:
            await self._remote.cloud.report(self._remote.project, commit)
        except MossError as error:
            # The push itself stands.
            logger.warning("push of index %r: its job was not stored (%s)", self._name, error.code)

    def _delta(self) -> _Delta:
        """Return what changed since the last push."""
        with self._write:
            assert self._index is not None  # noqa: S101 - checked by the caller
            delta = _Delta(self._changes, self._edits, len(self._index), None)
            deleted = {id_: at for id_, (_, at) in self._deleted.items()}
            if not self._unpushed and not deleted:
                return delta
            block = self._index.extract(list(self._unpushed))
        return delta._replace(segment=self._segment(block, deleted))

    def _whole(self) -> Segment:
        """Return everything that this session holds, as one segment."""
        with self._write:
            assert self._index is not None  # noqa: S101 - only asked for in a push
            block = self._index.extract()
            deleted = {id_: at for id_, (_, at) in self._deleted.items()}
        return self._segment(block, deleted)

    def _segment(self, block: Block, deleted: Mapping[str, int]) -> Segment:
        return Segment(
            model_id=self._model_id,
            analyzer=ANALYZER,
            ids=block.ids,
            documents=block.documents,
            written_at=block.written_at,
            vectors=block.vectors,
            postings=block.postings,
            lengths=block.lengths,
            tombstones=deleted,
        )

    async def _read_segment(self, ref: SegmentRef) -> Segment:
        return await read_segment(self._remote, self._name, ref)

    def _pushed(
        self, commit: Commit, delta: _Delta, loaded: Version | None
    ) -> MergedChanges | None:
        """Forget the edits that a push carried; those made meanwhile stay."""
        changes: MergedChanges | None = None
        with self._write:
            base = self.version
            self._commit = commit
            self._unpushed = {i: at for i, at in self._unpushed.items() if at > delta.changes}
            stored = {i: at for i, (change, at) in self._deleted.items() if change <= delta.changes}
            self._deleted = {i: mark for i, mark in self._deleted.items() if i not in stored}
            self._tombstones |= stored
            self._edits -= delta.edits
            if loaded is not None:
                before = self._index.written_at() if self._index is not None else {}
                self._take_over(loaded)
                assert self._index is not None  # noqa: S101 - just taken over
                changes = _compared(before, self._index.written_at(), base, commit.parent)
        if loaded is not None:
            self._grow_graph(loaded.prefixes)
        return changes

    async def copy_to(self, remote: Remote, name: str) -> PushIndexResult:
        """Store all that this session holds as a new index somewhere else, nothing embedded anew.

        Raises:
            IndexExistsError: If there is one of that name.
        """
        if await remote.cloud.read_head(remote.project, name) is not None:
            raise IndexExistsError(f"index {name!r} exists in project {remote.project!r}")
        if self._index is None:
            raise InvalidArgumentError(
                f"index {self._name!r} has no documents yet: nothing to copy"
            )
        pushed = await remote.cloud.push(
            remote.project,
            name,
            base_version=0,
            base_segments=(),
            delta=await in_worker(self._whole),
            doc_count=self.doc_count,
            model_id=self._model_id,
            dim=self._index.dim,
            analyzer=ANALYZER,
            on_conflict="error",
            ttl_s=self._ttl_s,
        )
        await remote.cloud.report(remote.project, pushed.commit)
        return PushIndexResult(
            job_id=pushed.commit.job_id,
            index_name=name,
            doc_count=pushed.commit.doc_count,
            status="completed",
            version=pushed.commit.version,
            uploaded_bytes=pushed.uploaded_bytes,
        )

    async def load_index(
        self,
        index_name: str,
        auto_refresh: bool = False,
        polling_interval_in_seconds: float = 600,
    ) -> int:
        """Bring a stored index into this session, beside what it holds, without embedding anew.

        Args:
            index_name: An index of the same model.
            auto_refresh: Look for newer versions now and then, when the session is read, and bring
                them in; paused while the session has unpushed edits of its own.
            polling_interval_in_seconds: How often.

        Returns:
            How many documents the stored index has.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
            ModelMismatchError: A `ValueError`, if it belongs to another model.
        """
        self._check_open()
        if polling_interval_in_seconds <= 0:
            raise InvalidArgumentError(
                "polling_interval_in_seconds: expected a number above 0,"
                f" got {polling_interval_in_seconds}"
            )
        head, stale = await find_newest(self._remote, index_name)
        if head is None:
            raise IndexNotFoundError(
                f"the cloud holds no index {index_name!r} in project {self._remote.project!r}"
            )
        if head.model_id != self._model_id:
            await self._adopt_model(head)
        self._check_fits(head)
        loaded = await fetch_version(self._remote, head)
        copy = Followed(
            index_name,
            head.version,
            polling_interval_in_seconds if auto_refresh else None,
            self._now() + polling_interval_in_seconds,
        )
        await in_worker(self._take_in, copy, loaded)
        self._following.follow(copy, listening=auto_refresh)
        if stale:
            self._following.went_stale(index_name, head.version)
        else:
            await in_worker(keep_newest, self._remote, head)
        return head.doc_count

    async def _adopt_model(self, head: Commit) -> None:
        if self._pinned or self.doc_count or self.unpushed:
            raise ModelMismatchError(
                f"index {head.index!r} was made with model {head.model_id!r}, this session with"
                f" {self._model_id!r}; open a session with model_id={head.model_id!r}"
            )
        embedder = await in_worker(_embedder_of, head.model_id)
        with self._write:
            self._embedder, self._model_id = embedder, head.model_id
            self._index = None if embedder is None else Index(embedder.dim)

    def _check_fits(self, head: Commit) -> None:
        if head.model_id != self._model_id:
            raise ModelMismatchError(
                f"index {head.index!r} now belongs to model {head.model_id!r}; load it anew"
            )
        if self.dim not in (None, head.dim):
            raise ModelMismatchError(
                f"index {head.index!r} has {head.dim} numbers per vector, not {self.dim} like this"
                " session"
            )

    def _take_in(self, copy: Followed, loaded: Version) -> None:
        """Bring a loaded version into this session: what changed in it since the version before."""
        with self._write:
            self._check_open()
            if copy.name == self._name:
                self._take_over(loaded)
                copy.version = loaded.commit.version
                return
            written_at = loaded.index.written_at()
            changed = [id_ for id_, at in written_at.items() if copy.written_at.get(id_) != at]
            gone = [id_ for id_ in copy.written_at if id_ not in written_at]
            self._clock = max(self._clock, loaded.clock)
            if self._index is None:
                self._index = Index(loaded.index.dim)
            if changed:
                batch = _batch(loaded.index.extract(changed))
                # Written now, as far as this index is concerned: what was deleted from it is back.
                now = np.full(len(batch.ids), self._stamp(), np.int64)
                self._index.upsert(batch._replace(written_at=now))
                self._mark(changed)
            self._mark_deleted(self._index.delete(gone))
            copy.written_at, copy.version = written_at, loaded.commit.version
        self._grow_graph()

    def _take_over(self, loaded: Version) -> None:
        """Go over to a newer version of this session's own index, with its unpushed edits on top.

        Per document the newer write wins here as it will in the cloud: see `log.resolve`.
        """
        index = loaded.index
        theirs = index.written_at(self._deleted)
        gone = [i for i, (_, at) in self._deleted.items() if at >= theirs.get(i, -1)]
        index.delete(gone)
        if self._index is not None:
            ours = self._index.written_at(self._unpushed)
            theirs = index.written_at(ours)
            mine = [
                i
                for i, at in ours.items()
                if at >= theirs.get(i, -1) and at > loaded.tombstones.get(i, -1)
            ]
            index.upsert(_batch(self._index.extract(mine)))
            self._unpushed = {i: self._unpushed[i] for i in mine}
        self._index, self._commit = index, loaded.commit
        self._tombstones = loaded.tombstones
        self._clock = max(self._clock, loaded.clock)

    def watch(self, interval_s: float) -> None:
        """Look for newer versions of this session's own index when it is read, every `interval_s`.

        A server tells of them as they are made; looking is then only what is fallen back on.
        """
        copy = self._following.find(self._name, self.version)
        copy.interval_s = interval_s
        copy.next_look = self._now() + interval_s
        self._following.follow(copy, listening=True)

    async def refresh(self) -> bool:
        """Bring in the newest version of this session's own index; tells whether there was a newer."""
        return await self.bring_in(self._following.find(self._name, self.version))

    @property
    def has_edits(self) -> bool:
        """True while edits of this session's own are not pushed."""
        return self._edits > 0

    def now(self) -> float:
        """Return seconds on a clock that never goes back."""
        return self._now()

    def versions_of(self, name: str) -> AsyncGenerator[int] | None:
        """Return an index's versions as the server tells of them; None where there is none."""
        return self._remote.cloud.log.watch(self._remote.project, name)

    async def bring_in(self, copy: Followed) -> bool:
        """Bring in the newest version of an index, if there is a newer; tells whether there was."""
        head = await self._remote.cloud.read_head(self._remote.project, copy.name)
        self._remote.outage.over()
        if copy.name == self._name:
            # A push makes versions, too.
            copy.version = self.version
        if head is None or head.version <= copy.version:
            self._following.healed(copy.name)
            return False
        self._check_fits(head)
        loaded = await fetch_version(self._remote, head)
        if self._edits:
            copy.missed = True
            return False
        await in_worker(self._take_in, copy, loaded)
        await in_worker(keep_newest, self._remote, head)
        self._following.healed(copy.name)
        if copy.name == self._name:
            self._grow_graph(loaded.prefixes)
        return True

    # --- life --------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Let go of everything; unpushed edits are lost. Closing again does nothing."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self.unpushed:
            logger.info("session %r closed with %d unpushed changes", self._name, self.unpushed)
        await self._following.close()
        if self._graph_job is not None:
            # It looks at _closed every tenth of a second.
            await asyncio.wrap_future(self._graph_job)

    async def settled(self) -> None:
        """Wait until the graph that is being built, if any, is in use and kept in the cache."""
        if self._graph_job is not None:
            await asyncio.wrap_future(self._graph_job)

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise SessionClosedError(f"session {self._name!r} is closed; open it anew")

    # --- graphs ------------------------------------------------------------------------------------

    def _grow_graph(self, prefixes: tuple[tuple[str, int], ...] = ()) -> None:
        """Start building a graph where the index has outgrown the exact scan; searches go on."""
        index = self._index
        running = self._graph_job is not None and not self._graph_job.done()
        if index is None or running or not index.wants_graph:
            return
        self._graph_job = pool("graphs", 1).submit(self._build_graph, index, prefixes)

    def _build_graph(self, index: Index, prefixes: tuple[tuple[str, int], ...]) -> None:
        """Find the graph of the longest prefix in the cache, or build one and keep it there."""
        cache = self._remote.cache
        try:
            if cache is not None:
                read_graph(index, prefixes, cache)
            if not index.wants_graph:
                return
            _give_way()
            graph = index.build_graph(should_stop=partial(self._should_stop, index))
            if graph is not None and cache is not None:
                for key, n_rows in prefixes:
                    if n_rows == graph.n_rows:
                        cache.write_built(key, graph.write)
        except (MossError, OSError) as error:
            # A graph only saves time: the exact scan goes on answering.
            logger.warning("no graph for index %r: %s", self._name, type(error).__name__)

        newer = self._index
        if newer is not None and newer is not index:
            self._build_graph(newer, ())

    def _should_stop(self, index: Index) -> bool:
        # The interpreter waits for this thread before it exits.
        going = self._closed.is_set() or not threading.main_thread().is_alive()
        return going or self._index is not index


def _give_way() -> None:
    """Lower this thread's priority where the system has one per thread.

    For good: raising it again needs a privilege, and the graph pool's thread does nothing else.
    """
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICENESS)


def _check_model(name: str, head: Commit, model_id: str) -> None:
    if model_id != head.model_id:
        raise ModelMismatchError(
            f"index {name!r} was made with model {head.model_id!r}, not {model_id!r};"
            " leave out model_id to use the stored one"
        )


def _embedder_of(model_id: str) -> Embedder | None:
    return None if model_id == CUSTOM else load_embedder(model_id)


def _ids(ids: Sequence[str]) -> Sequence[str]:
    if isinstance(ids, str) or not all(isinstance(id_, str) for id_ in ids):
        raise InvalidArgumentError("doc_ids: expected a list of str")
    return ids


def _named(ids: Sequence[str], *, most: int = 5) -> str:
    """Return ids for a message, not more than a reader wants."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(map(repr, ids[:most])) + more


def normalised(rows: npt.NDArray[np.float64]) -> tuple[F32, npt.NDArray[np.bool_]]:
    """Bring rows to length one, however large or small their numbers are.

    Args:
        rows: (n, dim) float64.

    Returns:
        (n, dim) float32, and which rows could be: those of finite numbers that are not all zero.
    """
    peaks = np.abs(rows).max(axis=1, initial=0.0)
    sound = np.isfinite(peaks) & (peaks > 0.0)
    scaled = np.where(sound[:, None], rows, 1.0) / np.where(sound, peaks, 1.0)[:, None]
    unit: F32 = (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).astype(np.float32)
    return unit, sound


def _unit(values: Sequence[float] | npt.NDArray[Any], dim: int | None) -> F32:
    """Return a query's embedding as a (dim,) float32 unit vector."""
    vector = np.asarray(values, np.float64)
    if vector.size == 0 or (dim is not None and vector.size != dim):
        wanted = f"{dim} numbers" if dim is not None else "numbers"
        raise InvalidArgumentError(f"QueryOptions.embedding: expected {wanted}, got {vector.size}")
    unit, sound = normalised(vector[None, :])
    if not sound[0]:
        raise InvalidArgumentError(
            "QueryOptions.embedding: expected finite numbers that are not all zero"
        )
    first: F32 = unit[0]
    return first


def _unit_rows(docs: Sequence[DocumentInfo], dim: int | None) -> list[F32]:
    """Return the embeddings that documents bring, as unit vectors of one size.

    Raises:
        InvalidArgumentError: Naming every document whose embedding is of another size, not finite or
            zero.
    """
    if not docs:
        return []
    dim = dim or len(docs[0].embedding or ())
    odd = [doc.id for doc in docs if len(doc.embedding or ()) != dim]
    if odd or not dim:
        raise InvalidArgumentError(
            f"embedding: expected {dim or 'at least one'} numbers per document; not so in"
            f" {_named(odd or [docs[0].id])}"
        )
    rows, sound = normalised(np.array([doc.embedding for doc in docs], np.float64))
    if not sound.all():
        odd = [doc.id for doc, is_sound in zip(docs, sound, strict=True) if not is_sound]
        raise InvalidArgumentError(
            f"embedding: expected finite numbers that are not all zero; not so in {_named(odd)}"
        )
    return list(rows)


def _batch(block: Block) -> Batch:
    """Return rows of one index, ready to be added to another."""
    terms = [term_ids(decode_document(line).text) for line in block.documents]
    return Batch(block.ids, block.documents, block.vectors, terms, block.written_at)


async def _older(remote: Remote, name: str, version: int) -> Commit:
    commit = await remote.cloud.read_commit(remote.project, name, version)
    if commit is None or commit.deleted:
        raise IndexNotFoundError(
            f"index {name!r} has no version {version} (any more); `moss-voice index history` shows"
            " what is kept"
        )
    return commit


def _compared(
    before: Mapping[str, int], after: Mapping[str, int], base: int, head: int
) -> MergedChanges:
    """Return what others have changed between two versions of a copy."""
    return MergedChanges(
        base_version=base,
        head_version=head,
        added=tuple(id_ for id_ in after if id_ not in before),
        updated=tuple(id_ for id_, at in after.items() if before.get(id_, at) != at),
        deleted=tuple(id_ for id_ in before if id_ not in after),
    )
